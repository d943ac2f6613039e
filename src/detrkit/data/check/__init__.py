"""Looking for what is wrong with a data set, and repairing a copy of it."""

from detrkit.data.check.findings import CheckResult, Finding, Place
from detrkit.data.check.kinds import KINDS, Kind, Severity
from detrkit.data.check.run import Checked, check_data, examine

__all__ = ["KINDS", "CheckResult", "Checked", "Finding", "Kind", "Place", "Severity", "check_data", "examine"]
