"""Timing and counting."""

import itertools
import json

import numpy as np
import pytest
import torch
from torch import nn

from utils import benchmark
from utils.benchmark import (
    alternate,
    count_macs,
    count_parameters,
    measure,
    peak_memory,
    time_ratio,
)


def test_statistics_of_known_times(monkeypatch):
    blocks = iter([np.array([1.0, 2.0, 3.0, 4.0, 5.0]), np.array([6.0, 7.0, 8.0, 9.0, 10.0, 11.0])])
    monkeypatch.setattr(benchmark, "_block", lambda *_: next(blocks))
    result = alternate({"a": int}, 2, warmup_seconds=0.0, images=3)["a"]
    assert result["median_ms"] == 6.0
    assert result["p10_ms"] == pytest.approx(2.0) and result["p90_ms"] == pytest.approx(10.0)
    assert result["mean_ms"] == pytest.approx(6.0) and result["fps"] == pytest.approx(500.0)
    assert result["iterations"] == 11 and result["round_ms"] == [3.0, 8.5]


def test_ratio_pairs_the_rounds():
    ratio = time_ratio(
        {"round_ms": [2.0, 30.0, 1.0], "p10_ms": 1.0},
        {"round_ms": [4.0, 40.0, 4.0], "p10_ms": 4.0},
    )
    assert ratio == {"median": 0.5, "low": 0.25, "high": 0.75, "p10": 0.25}


def test_functions_take_turns():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "abc"}
    result = alternate(functions, 3, warmup_seconds=0.0, min_seconds=0.0, min_iterations=6)
    assert all(times["iterations"] == 6 for times in result.values())
    blocks = [(name, len(list(group))) for name, group in itertools.groupby(calls)]
    warm_up, measured = blocks[:3], [name for name, count in blocks[3:] for _ in range(count)]
    assert [name for name, _ in warm_up] == ["a", "b", "c"]
    assert "".join(measured) == "aabbcc" + "bbccaa" + "ccaabb"


@pytest.fixture
def wait(monkeypatch):
    """A clock that only goes on when somebody waits: what is measured is exact."""
    now = [0.0]
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: now[0])

    def wait_for(seconds):
        now[0] += seconds

    return wait_for


def test_times_are_those_of_the_clock_and_long_enough(wait):
    result = alternate(
        {"short": lambda: wait(0.002), "long": lambda: wait(0.02)},
        2,
        warmup_seconds=0.0,
        min_seconds=0.1,
        min_iterations=2,
    )
    for name, milliseconds, iterations in (("short", 2, 50), ("long", 20, 6)):
        assert result[name]["median_ms"] == pytest.approx(milliseconds)
        assert result[name]["iterations"] == iterations  # 0.1 s, in whole rounds
    assert time_ratio(result["short"], result["long"])["median"] == pytest.approx(0.1)
    json.dumps(result, allow_nan=False)


def test_first_call_is_left_out(wait):
    calls = []

    def slow_at_first():
        wait(0.001 if calls else 200)
        calls.append(0)

    result = measure(slow_at_first, warmup_seconds=0.0, min_seconds=0.0, min_iterations=3)
    assert result["p90_ms"] == pytest.approx(1) and result["iterations"] == 3
    assert len(calls) == 5  # first, warm-up, measured


def test_bad_settings():
    with pytest.raises(ValueError, match="rounds 0"):
        alternate({"a": int}, 0)
    with pytest.raises(ValueError, match="iterations 0"):
        measure(int, min_iterations=0)


def test_peak_memory_of_the_process():
    peak = peak_memory(lambda: torch.ones(64, 1024, 1024))  # 256 MB
    assert "whole process" in peak["what"]
    assert peak["bytes"] is None or peak["bytes"] > 2**28


def test_macs_and_parameters_by_hand():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, padding=1, groups=4),
    )
    expected = 16 * 32 * (8 * 3 * 9 + 8 * 2 * 9)
    assert count_macs(model, (32, 64)) == expected
    assert count_macs(model.bfloat16(), (32, 64)) == expected
    assert count_parameters(model) == 8 * 3 * 9 + 16 + 8 * 2 * 9 + 8
    assert next(model.parameters()).device.type == "cpu"
    with torch.device("meta"):
        never_filled = nn.Conv2d(3, 1000, 7)
    assert count_macs(never_filled, (7, 7)) == 3 * 1000 * 49
