"""Fixtures of the tests of networks and weights."""

import sys
from pathlib import Path

import pytest
import torch


@pytest.fixture
def save(tmp_path):
    """torch.save into the test's folder; returns the path."""

    def save_as(content: object, name: str = "weights.pt", **how) -> Path:
        torch.save(content, tmp_path / name, **how)
        return tmp_path / name

    return save_as


@pytest.fixture
def without_extra(monkeypatch):
    """As on a machine that has no transformers."""
    monkeypatch.setitem(sys.modules, "transformers", None)


@pytest.fixture
def with_extra():
    """The library of the extra `query`."""
    return pytest.importorskip("transformers", reason="needs pip install -e .[query]")
