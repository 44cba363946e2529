"""The only door through which weights enter a model: completely, or not at all."""

from .convert import (
    absent_training_heads,
    class_count,
    convert_state_dict,
    needs_extra,
    recognise,
    rename_for,
)
from .found import Found, describe, find_trained
from .loading import load_weights, read_checkpoint
from .readers import Checkpoint
from .trained import Trained, load_trained

__all__ = [
    "Checkpoint",
    "Found",
    "Trained",
    "absent_training_heads",
    "class_count",
    "convert_state_dict",
    "describe",
    "find_trained",
    "load_trained",
    "load_weights",
    "needs_extra",
    "read_checkpoint",
    "recognise",
    "rename_for",
]
