"""A disk without room: said before work begins, or, where it fills later, with what is whole."""

import json

import pytest
from processes import limited, small_disk

pytest.importorskip("resource", reason="limits of a process are POSIX")

RUN = "synthetic/rtlinearformer_slim_synthetic"


def test_a_run_without_room_is_refused_and_moves_nothing(tmp_path, refuses, tiny, monkeypatch):
    earlier = tmp_path / RUN
    earlier.mkdir(parents=True)
    (earlier / "best.pt").write_bytes(b"earlier")
    monkeypatch.setattr("utils.records.free_space", lambda _: 100_000)
    words = [f"OUTPUT_DIR {earlier} has no room for the checkpoints of this run", "0.1 MB are free"]
    refuses(words, "tools/train.py", *tiny, "OUTPUT_DIR", tmp_path)
    assert [p.name for p in earlier.parent.iterdir()] == [earlier.name]
    assert [p.name for p in earlier.iterdir()] == ["best.pt"]


def test_a_disk_that_fills_ends_the_run_and_it_goes_on_later(tmp_path, run, tiny):
    arguments = [*tiny, "OUTPUT_DIR", tmp_path]
    run("tools/train.py", *arguments, "TRAIN.END_EPOCH", 1)
    folder = tmp_path / RUN
    before = {name: (folder / name).read_bytes() for name in ("last.pt", "best.pt")}
    resume = [*arguments, "TRAIN.RESUME", "True"]
    full = run("tools/train.py", *resume, status=2, preexec_fn=limited(100_000))
    assert full.stderr.startswith("error: ") and full.stderr.count("\n") == 1, full.stderr
    assert "pt cannot be written: File too large; it needs" in full.stderr
    assert "the file that was there is unchanged" in full.stderr
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == [".lock"]
    run("tools/train.py", *resume)
    records = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in records] == [1, 2]


@pytest.mark.slow
def test_a_disk_that_is_full_from_the_start(tmp_path, run, tiny):
    with small_disk(tmp_path, "256k") as disk:
        done = run("tools/train.py", *tiny, "OUTPUT_DIR", disk / "runs", status=2)
        assert "has no room for the checkpoints" in done.stderr and not any(disk.iterdir())
