"""Search for what is wrong with a data set."""

from detrkit.curation.check.result import CheckResult
from detrkit.curation.check.run import Checked, CheckOptions, check_data, examine
from detrkit.data.faults import Finding, Severity

__all__ = ["CheckOptions", "CheckResult", "Checked", "Finding", "Severity", "check_data", "examine"]
