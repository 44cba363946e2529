"""What to run. Imports nothing else of this project."""

from .loader import get_config

__all__ = ["get_config"]
