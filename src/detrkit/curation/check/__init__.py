"""Looking for what is wrong with a data set, and repairing a copy of it."""

from detrkit.curation.check.findings import CheckResult, Finding, Place
from detrkit.curation.check.kinds import KINDS, Kind, Severity
from detrkit.curation.check.run import Checked, check_data, examine

__all__ = ["KINDS", "CheckResult", "Checked", "Finding", "Kind", "Place", "Severity", "check_data", "examine"]
