"""Every problem of every pair of a list, and what the whole list holds; a quick form of it too."""

from .examine import CheckedList, Finding, examine, examine_all
from .quick import quick_check, shared_images
from .summary import Summary

__all__ = [
    "CheckedList",
    "Finding",
    "Summary",
    "examine",
    "examine_all",
    "quick_check",
    "shared_images",
]
