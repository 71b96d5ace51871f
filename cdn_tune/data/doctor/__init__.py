"""The doctor: examines a data folder before a training, and reports what would go wrong and how to mend it."""

from cdn_tune.data.doctor.examine import examine
from cdn_tune.data.doctor.report import Finding, Report

__all__ = ["Finding", "Report", "examine"]
