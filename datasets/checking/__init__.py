"""Every problem of every pair of a list, and what the whole list holds."""

from .examine import CheckedList, Finding, examine, examine_all
from .summary import Summary

__all__ = ["CheckedList", "Finding", "Summary", "examine", "examine_all"]
