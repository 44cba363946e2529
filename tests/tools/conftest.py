"""Trained networks of seconds."""

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from prediction import checkpoint, frames, predictor

from datasets import get_meta
from models import build_model
from utils.checkpoint import save_checkpoint

__all__ = ["checkpoint", "frames", "predictor", "weights"]

OPTIONS = {
    "pidnet_s": {"base_channels": 4, "context_channels": 6, "head_channels": 8},
    "rtlinearformer_slim": {
        "base_channels": 8, "attention_channels": 16, "head_channels": 16, "context_channels": 16,
    },
}  # fmt: skip


@pytest.fixture
def weights(tmp_path: Path) -> Callable[..., Path]:
    """Writes a small network with random weights, as a run does; gives the folder."""

    def write(name: str = "pidnet_s", place: str = "best.pt", seed: int = 0) -> Path:
        meta = get_meta("synthetic")
        torch.manual_seed(seed)
        content = {
            "architecture": name,
            "options": OPTIONS[name],
            "dataset": meta.name,
            "class_names": list(meta.class_names),
            "palette": [list(color) for color in meta.palette],
            "model": build_model(name, meta.num_classes, **OPTIONS[name]).state_dict(),
        }
        path = tmp_path / "weights" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(path, content)
        return tmp_path / "weights"

    return write


@pytest.fixture(scope="module")
def results():
    """The module tools/results.py."""
    return importlib.import_module("results")
