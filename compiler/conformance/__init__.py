"""What every target must do, tried on any of them; reached through the registry alone."""

from compiler.conformance.results import CheckResult, ConformanceReport, Status
from compiler.conformance.suite import SuiteRequest, check_names, run_suite

__all__ = [
    "CheckResult",
    "ConformanceReport",
    "Status",
    "SuiteRequest",
    "check_names",
    "run_suite",
]
