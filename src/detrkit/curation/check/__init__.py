"""Search for what is wrong with a data set."""

from detrkit.curation.check.result import CheckResult
from detrkit.curation.check.run import Checked, check_data, examine
from detrkit.data.faults import FAULTS, Fault, Finding, Location, Severity

__all__ = ["FAULTS", "CheckResult", "Checked", "Fault", "Finding", "Location", "Severity", "check_data", "examine"]
