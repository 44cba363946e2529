"""The driver of the suite; what its parts find is for a machine with a GPU."""

import time

import pytest
import suite
import torch
from common import NotPossible, Part
from throughput import last_of, union


def test_busy_time_counts_what_overlaps_once():
    assert union([]) == 0
    assert union([(5, 7), (0, 2), (1, 3), (6, 6.5)]) == 5
    assert last_of([(0, 1), (4, 5), (6, 10)], 6) == [(4, 5), (6, 10)]


@pytest.mark.parametrize(
    ("code", "limit", "status"),
    [
        ("import time; time.sleep(600)", 0.5, "timed out"),
        ("raise SystemExit('error: it is broken')", 60, "failed"),
        ("", 60, "ok"),
    ],
)
def test_a_part_is_ended_at_its_limit_and_its_end_is_told(
    tmp_path, monkeypatch, code, limit, status
):
    (tmp_path / "part.py").write_text(code)
    monkeypatch.setattr(suite, "__file__", str(tmp_path / "part.py"))
    part = suite.Running(suite.Plan("part", "none", limit), limit, tmp_path, "cpu")
    while not part.ended():
        time.sleep(0.05)
    result = part.result()
    assert result["status"] == status and result["cases"] == {
        "ok": 0,
        "failed": 0,
        "not possible": 0,
    }
    assert ("broken" in result["message"]) == (status == "failed")
    assert status in suite.table([result])


def test_what_is_not_possible_is_a_sentence(tmp_path):
    part = Part("one", torch.device("cpu"), tmp_path)

    def impossible():
        raise NotPossible("there is no such thing here")

    part.case("a", impossible)
    part.case("b", lambda: 1 / 0)
    part.case("c", lambda: {"value": 3})
    assert [case["status"] for case in part.cases] == ["not possible", "failed", "ok"]
    assert part.cases[0]["message"] == "there is no such thing here"
    assert (tmp_path / "one.json").is_file()
