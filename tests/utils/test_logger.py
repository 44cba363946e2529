"""The run's log: one writer, epochs that are done again, lines that a crash cut off."""

import json

from utils.logger import RunLog, read_metrics


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
