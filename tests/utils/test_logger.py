"""The run's log: one writer, epochs that are done again, lines that a crash cut off."""

import errno
import json

import pytest
from processes import small_files
from tensorboardX.proto.event_pb2 import Event

from utils.logger import RunLog, read_metrics
from utils.records import StorageError


def test_metrics_round_trip_and_a_cut_line_is_left_out(tmp_path):
    log = RunLog(tmp_path)
    for epoch in (1, 2, 3):
        log.metrics({"epoch": epoch, "loss": 1 / epoch})
    log.info("hello")
    log.close()
    with log.metrics_file.open("a") as stream:
        stream.write('{"epoch": 4, "lo')
    assert [r["epoch"] for r in read_metrics(log.metrics_file)] == [1, 2, 3]
    assert (tmp_path / "log.txt").read_text() == "hello\n"


def test_epochs_that_will_be_done_again_are_forgotten(tmp_path):
    log = RunLog(tmp_path)
    log.forget_after(0)
    for epoch in (1, 2, 3):
        log.metrics({"epoch": epoch})
    log.forget_after(2)
    log.metrics({"epoch": 3, "again": True})
    log.close()
    lines = log.metrics_file.read_text().splitlines()
    assert [json.loads(line) for line in lines][2] == {"epoch": 3, "again": True}
    assert len(lines) == 3


def test_other_processes_write_nothing(tmp_path):
    log = RunLog(tmp_path / "run", enabled=False)
    log.info("x")
    log.metrics({"epoch": 1})
    log.scalars({"a": 1.0}, 1)
    log.forget_after(0)
    log.close()
    assert not (tmp_path / "run").exists()


def test_tensorboard_gets_every_number(tmp_path):
    log = RunLog(tmp_path)
    log.scalars({"train/loss": 0.5, "train/lr": 1e-3}, 7)
    log.close()
    (file,) = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
    data, events = file.read_bytes(), []
    while data:  # length, its checksum, event, its checksum
        size = int.from_bytes(data[:8], "little")
        events.append(Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    assert events[0].file_version == "brain.Event:2"
    values = {e.summary.value[0].tag: e.summary.value[0].simple_value for e in events[1:]}
    assert values == {"train/loss": 0.5, "train/lr": pytest.approx(1e-3)}
    assert {e.step for e in events[1:]} == {7}


@pytest.mark.parametrize("what", ["info", "scalars", "metrics"])
def test_a_full_disk_ends_the_run_with_one_sentence(tmp_path, monkeypatch, what):
    monkeypatch.setattr("utils.logger.tqdm.write", str)  # pytest keeps what is printed in a file
    log = RunLog(tmp_path)
    calls = {
        "info": lambda: log.info("x" * 1000),
        "scalars": lambda: log.scalars({"a" * 1000: 1.0}, 1),
        "metrics": lambda: log.metrics({"epoch": 1, "text": "x" * 1000}),
    }
    words = "cannot be written: File too large; .* are free there; checkpoints are whole; TRAIN.RES"
    with small_files(4096):
        with pytest.raises(StorageError, match=words):
            for _ in range(100):  # and never waits for room
                calls[what]()
        log.close()
    assert all(p.stat().st_size <= 4096 for p in tmp_path.rglob("*") if p.is_file())


@pytest.mark.parametrize("terminal", [False, True])
def test_a_line_a_minute_where_no_terminal_shows_a_bar(tmp_path, monkeypatch, terminal):
    now = [1000.0]
    monkeypatch.setattr("utils.logger.time.monotonic", lambda: now[0])
    monkeypatch.setattr("utils.logger.sys.stderr.isatty", lambda: terminal, raising=False)
    log = RunLog(tmp_path)
    for second in range(0, 200, 10):
        now[0] = 1000.0 + second
        log.every_minute(lambda second=second: f"second {second}")
    log.close()
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert lines == ([] if terminal else ["second 70", "second 140"])


def test_a_terminal_that_has_gone_does_not_end_a_run(tmp_path, monkeypatch):
    def gone(_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("utils.logger.tqdm.write", gone)
    log = RunLog(tmp_path)
    log.info("kept in the file")
    log.close()
    assert (tmp_path / "log.txt").read_text() == "kept in the file\n"
