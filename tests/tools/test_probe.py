"""What --probe says before a long run."""

import re

import pytest
from probe import keeping


@pytest.mark.parametrize(
    ("images", "largest", "expected"),
    [
        (12, 12, (12, 1)), (12, 40, (12, 1)), (12, 11, (6, 2)), (12, 5, (4, 3)), (12, 1, (1, 12)),
        (7, 6, (1, 7)), (16, 9, (8, 2)),
    ],
)  # fmt: skip
def test_the_batch_is_kept_with_the_fewest_passes(images, largest, expected):
    assert keeping(images, largest) == expected


def test_a_probe_says_what_a_run_takes_and_writes_nothing(tmp_path, call, tiny):
    words = ["--probe", *tiny, "TRAIN.END_EPOCH", 1000, "OUTPUT_DIR", tmp_path / "out"]
    out = call("tools/train.py", *words).stdout
    assert re.search(r"1 process on cpu: \d+\.\d images/s, \d+ ms per step of 4 images", out)
    assert re.search(r"3000 steps take \d+:\d\d:\d\d", out)
    assert re.search(r"\d+\.\d\d GB of \d+\.\d\d GB taken at most", out)
    assert "TRAIN.BATCH_SIZE_PER_GPU 4 TRAIN.ACCUMULATE 1 keeps the batch of 4" in out
    assert not (tmp_path / "out").exists()


def test_a_probe_refuses_what_a_run_refuses(tmp_path, refuses, tiny):
    refuses(["batch of 99"], "tools/train.py", "--probe", *tiny, "TRAIN.BATCH_SIZE_PER_GPU", 99)


def test_a_probe_is_one_process(monkeypatch, refuses, tiny):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    refuses(["--probe runs in one process"], "tools/train.py", "--probe", *tiny)
