"""The program that trains what a table asks for, and its records."""

import hashlib
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from result_runs import CFG, SMALL, put, record_of

from models.weights import load_trained
from utils.results import (
    half_precision,
    join_file,
    read_results,
    split_file,
    wanted_runs,
)

STRONG = "configs/_base_/strong_recipe.yaml"


@pytest.fixture
def place(tmp_path):
    """Writes a table; its path, and the arguments that keep everything in this folder."""

    def write(**runs):
        path = tmp_path / "table.yaml"
        path.write_text(yaml.safe_dump({"score": "200:204", "runs": runs}, sort_keys=False))
        return path, "--state", tmp_path / "state", "--work", tmp_path / "work"

    return write


def test_a_table_is_trained_once_and_scored_on_its_list(place, run, tmp_path):
    arguments = place(
        first={"title": "Two epochs", "cfg": [CFG], "set": SMALL, "seeds": [1, 2]},
        long={"cfg": [CFG], "set": SMALL, "minutes": 1000},
    )
    first = run("tools/results.py", *arguments, "--minutes", "30").stdout
    assert "long-304: left out" in first
    records = read_results(tmp_path / "state")
    assert [(r["name"], r["seed"]) for r in records] == [("first", 1), ("first", 2)]
    record = records[0]
    assert record["scored"] == "200:204" and 0 <= record["test"]["mIoU"] <= 1
    assert [epoch["epoch"] for epoch in record["curve"]] == [1, 2]
    assert record["best"]["list"] == "scenes 100:104" and record["minutes"] > 0
    assert record["settings"] == records[1]["settings"]
    assert record["settings"]["MODEL.OPTIONS.base_channels"] == 8
    assert "SEED" not in record["settings"] and str(tmp_path) not in json.dumps(record)
    weights = b"".join((tmp_path / "state" / f).read_bytes() for f in record["weights"]["files"])
    assert hashlib.sha256(weights).hexdigest() == record["weights"]["sha256"]
    trained = load_trained(tmp_path / "state" / record["weights"]["files"][0])
    assert trained.model.num_classes == 11 and trained.score == record["best"]
    kept = tmp_path / "state" / record["weights"]["files"][0]
    assert str(tmp_path).encode() not in kept.read_bytes()
    (evaluation,) = (tmp_path / "work").glob("first-1-*/*/*/eval_200-204_half.json")
    scored = json.loads(evaluation.read_text())
    assert scored["weights_sha256"] == record["weights"]["sha256"]
    assert scored["scores"] == record["test"]
    assert records[1]["weights"]["sha256"] != record["weights"]["sha256"]

    began = time.time()
    again = run("tools/results.py", *arguments, "--minutes", "30").stdout
    assert "first-1: done" in again and "train.py" not in again
    assert all(p.stat().st_mtime < began for p in (tmp_path / "state").iterdir())


def test_one_row_whose_weights_are_not_kept(place, run, refuses, tmp_path):
    one = {"cfg": [CFG], "set": SMALL | {"TRAIN.END_EPOCH": 1}, "weights": False}
    arguments = place(one=one, other=one)
    refuses(["--row two", "one, other"], "tools/results.py", *arguments, "--row", "two")
    run("tools/results.py", *arguments, "--row", "other")
    (record,) = read_results(tmp_path / "state")
    assert record["name"] == "other" and record["weights"]["files"] == []
    assert len(record["weights"]["sha256"]) == 64
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["other-304.json"]


@pytest.mark.slow
def test_time_that_is_up_stops_a_run_with_its_checkpoint(place, run, tmp_path):
    arguments = place(one={"cfg": [CFG], "set": SMALL | {"TRAIN.END_EPOCH": 2000}})
    out = run("tools/results.py", *arguments, "--minutes", "0.7").stdout
    assert "one-304: stopped, what it has saved is kept" in out
    assert len(list((tmp_path / "work").rglob("last.pt"))) == 1
    assert not list((tmp_path / "state").glob("*.json"))
    saved = next((tmp_path / "work").rglob("log.txt"))
    run("tools/results.py", *arguments, "--minutes", "0.7")
    assert "resumed after epoch" in saved.read_text()


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"score": "a.lst", "runs": {"a": {"cfg": [CFG], "seed": 1}}}, "unknown key seed"),
        ({"score": "a.lst", "runs": {"a": {"set": {}}}}, "has no cfg"),
        ({"score": "a.lst", "runs": {"a": {"cfg": CFG}}}, "cfg is"),
        ({"score": "a.lst", "runs": {"a": {"cfg": [CFG], "seeds": [-1]}}}, "seeds is"),
        ({"score": "a.lst", "runs": {"a": {"cfg": [CFG], "start": "b"}}}, "a row above it"),
        ({"score": "a.lst", "runs": {"a": {"cfg": [CFG], "weights": 1}}}, "weights is 1"),
        (
            {
                "score": "a.lst",
                "runs": {"a": {"cfg": [CFG], "weights": False}, "b": {"cfg": [CFG], "start": "a"}},
            },
            "not kept",
        ),
        ({"score": "a.lst", "runs": {"a": None}}, "is None"),
        ({"runs": {}}, "has no score"),
        ({"score": "a.lst", "runs": {}, "lists": {429: "Few"}}, "lists has 429"),
        ({"score": "a.lst", "runs": {"a": {"cfg": [CFG], "minutes": True}}}, "minutes is True"),
    ],
    ids=str,
)
def test_a_table_that_is_none_is_refused(table, words):
    with pytest.raises(ValueError, match=words):
        wanted_runs(table, "table.yaml")


def test_a_wrong_setting_is_refused_before_anything_is_trained(place, refuses, tmp_path):
    good, bad = {"cfg": [CFG], "set": SMALL}, {"cfg": [CFG], "set": {"TRAIN.LR": "high"}}
    words = ["table.yaml, runs: bad: TRAIN.LR is 'high'"]
    refuses(words, "tools/results.py", *place(good=good, bad=bad))
    assert not (tmp_path / "work").exists() and not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"set": SMALL | {"TRAIN.LR": 0.5}}, ["TRAIN.LR", "now 0.5"]),
        ({"set": {**SMALL, "TRAIN.END_EPOCH": 3}}, ["TRAIN.END_EPOCH 2 (now 3)"]),
        (
            {"cfg": [CFG, STRONG], "set": SMALL | {"TRAIN.WARMUP_STEPS": 0}},
            ["LOSS.DICE", "now 0.5"],
        ),
        ({"score": "300:304"}, ["score 200:204 (now 300:304)"]),
        ({"opts": ["TRAIN.WD", "0.5"]}, ["TRAIN.WD", "now 0.5"]),
    ],
    ids=str,
)
def test_a_record_of_other_settings_is_refused_by_name(
    change, words, place, refuses, results, tmp_path
):
    put(tmp_path / "state", record_of(results, "one"))
    opts = change.pop("opts", ())
    arguments = place(one={"cfg": [CFG], "set": SMALL} | change)
    told = refuses(words, "tools/results.py", *arguments, *opts)
    assert "one-304.json" in told and "remove the record" in told
    assert not (tmp_path / "work").exists()


def test_a_record_serves_other_machines(place, call, results, tmp_path):
    put(tmp_path / "state", record_of(results, "one"))
    arguments = place(one={"cfg": [CFG], "set": SMALL})
    out = call("tools/results.py", *arguments, "DATASET.ROOT", "../data", "WORKERS", 3).stdout
    assert "one-304: done" in out and "train.py" not in out


def test_a_record_is_of_the_weights_that_it_started_from(place, refuses, results, tmp_path):
    first, second = record_of(results, "first"), record_of(results, "second")
    second["settings"]["start"] = "an earlier one"
    put(tmp_path / "state", first, second)
    row = {"cfg": [CFG], "set": SMALL}
    words = ["second-304.json", "start an earlier one (now 0)"]
    refuses(words, "tools/results.py", *place(first=row, second=row | {"start": "first"}))


def test_a_start_that_is_not_at_hand_is_left_out(place, call, results, tmp_path):
    """Where a row asks for it by name, before anything is trained and with a status that tells."""
    row = {"cfg": [CFG], "set": SMALL}
    words = place(first=row, second=row | {"start": "first"})
    told = call("tools/results.py", *words, "--row", "second", status=2).stderr
    assert "starts from first-304: that row is not done; --row first names it" in told
    first = record_of(results, "first") | {"weights": {"sha256": "0", "files": ["first-304.pt"]}}
    put(tmp_path / "state", first)
    out = call("tools/results.py", *words).stdout
    assert "second-304: left out, it starts from first-304: " in out and "does not exist" in out
    told = call("tools/results.py", *words, "--row", "second", status=2).stderr
    assert "first-304.pt does not exist" in told and "--state FOLDER" in told
    (tmp_path / "state/first-304.pt").write_bytes(b"others")
    told = call("tools/results.py", *words, "--row", "second", status=2).stderr
    assert "first-304.pt is not what the record of first-304 tells of" in told
    put(tmp_path / "state", first | {"weights": {"sha256": "0", "files": []}})
    told = call("tools/results.py", *words, "--row", "second", status=2).stderr
    assert "the weights of first-304 were not kept" in told
    assert not (tmp_path / "work").exists()


def test_a_start_is_trained_before_what_needs_it(results, monkeypatch, tmp_path):
    """In a folder without records both rows may be asked for, and one that has begun goes on
    without the weights that it has taken already."""
    row = {"cfg": [CFG], "set": SMALL}
    table = {"score": "200:204", "runs": {"first": row, "second": row | {"start": "first"}}}
    args = SimpleNamespace(opts=[], row=["first", "second"], table=Path("t.yaml"))
    args.state, args.work = tmp_path / "state", tmp_path / "work"
    runs = results.chosen(wanted_runs(table, "t.yaml"), args)
    results.check(runs, args)
    first = record_of(results, "first") | {"weights": {"sha256": "0", "files": ["first-304.pt"]}}
    put(args.state, first)
    taken = results.start_file(runs[1], results.settings_of(runs[1], args), args.work)
    taken.parent.mkdir()
    taken.touch()
    results.check(runs, args)
    monkeypatch.setattr(results, "train", lambda *given: False)
    assert results.attempt(runs[1], args, None).startswith("stopped")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], ["no table"]),
        (["gone.yaml"], ["the table gone.yaml", "No such file"]),
        (["docs"], ["the table docs", "directory"]),
        (["docs/results.yaml", "--minutes", "nan"], ["--minutes is nan"]),
        (["docs/results.yaml", "--row", "scenes", "slim_scenes"], ["write --row slim_scenes"]),
    ],
    ids=str,
)
def test_a_command_that_cannot_be_meant_is_refused(given, words, refuses):
    refuses(words, "tools/results.py", *given)


def test_data_that_is_elsewhere_is_missed_by_its_setting(place, refuses, tmp_path):
    camvid = {"cfg": ["configs/camvid/rtlinearformer_slim_camvid_360x480.yaml"], "set": {}}
    camvid["score"] = "list/camvid/test.lst"
    words = [f"DATASET.ROOT {tmp_path / 'gone'} does not exist"]
    refuses(words, "tools/results.py", *place(a=camvid), "DATASET.ROOT", tmp_path / "gone")


def test_weights_that_are_not_at_hand_are_missed(results, tmp_path):
    record = record_of(results, "first") | {"weights": {"sha256": "0", "files": ["first-304.pt"]}}
    with pytest.raises(ValueError, match=r"first-304\.pt does not exist"):
        join_file(record, tmp_path, tmp_path / "x.pt")
    assert not (tmp_path / "x.pt").exists()


def test_settings_have_a_work_folder_of_their_own(results):
    folders = []
    for more in ({}, {"TRAIN.LR": 0.5}, {"TRAIN.END_EPOCH": 3}):
        row = {"cfg": [CFG], "set": SMALL | more}
        (run,) = wanted_runs({"score": "200:204", "runs": {"a": row}}, "t")
        for opts in ([], ["DATASET.ROOT", "elsewhere"]):
            args = SimpleNamespace(opts=opts, work=Path("work"), state=Path("nowhere"))
            settings = results.settings_of(run, args)
            folders.append(results.configuration(run, args, settings)[1])
    assert folders[::2] == folders[1::2] and len(set(folders)) == 3


@pytest.mark.parametrize(
    ("minutes", "table", "begun", "outcome"),
    [
        (70, 70, False, "trained"),
        (70, 71, False, "left out, 70.0 minutes are left of the 71 that it takes"),
        (10, 70, False, "left out"),
        (10, 70, True, "trained"),
        (None, 1000, False, "trained"),
    ],
)
def test_a_run_is_begun_where_its_minutes_are_left(
    minutes, table, begun, outcome, results, monkeypatch, tmp_path
):
    row = {"cfg": [CFG], "set": SMALL, "minutes": table}
    (run,) = wanted_runs({"score": "200:204", "runs": {"a": row}}, "t")
    args = SimpleNamespace(opts=[], work=tmp_path, state=tmp_path)
    _, folder = results.configuration(run, args, results.settings_of(run, args))
    if begun:
        folder.mkdir(parents=True)
        (folder / "last.pt").touch()
    trained = []
    monkeypatch.setattr(results, "train", lambda *given: trained.append(given) and False)
    end = None if minutes is None else time.monotonic() + 60 * minutes - 0.5
    told = results.attempt(run, args, end)
    assert bool(trained) == (outcome == "trained")
    assert told.startswith("stopped" if trained else outcome)


def test_what_fails_does_not_end_the_table(place, call, results, tmp_path):
    """Weights that are not there fail only when training starts."""
    bad = SMALL | {"MODEL.PRETRAINED": str(tmp_path / "gone.pt")}
    arguments = place(
        bad={"cfg": [CFG], "set": bad},
        after={"cfg": [CFG], "set": SMALL, "start": "bad"},
        last={"cfg": [CFG], "set": SMALL, "seeds": [7]},
    )
    put(tmp_path / "state", record_of(results, "last", seed=7))
    done = call("tools/results.py", *arguments, status=1)
    assert "bad-304: failed: training ended with status 2" in done.stdout
    assert "after-304: left out, it starts from bad-304: that row is not done" in done.stdout
    assert "stopped" not in done.stdout and "last-7: done" in done.stdout
    assert "not done: bad-304" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("score", ["5:1", "nothing"])
def test_a_list_that_cannot_be_scored_is_refused_before_anything_is_trained(
    score, place, refuses, tmp_path
):
    good = {"cfg": [CFG], "set": SMALL}
    refuses([score], "tools/results.py", *place(good=good, bad=good | {"score": score}))
    assert not (tmp_path / "work").exists()


def test_a_process_that_does_not_end_is_killed(results):
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", code])
    results.end_within(process, 0.2)
    assert process.returncode


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(value):
    good = {"a": torch.tensor([1.0, 7e4]), "b": torch.tensor([0.1]), "n": torch.tensor(3)}
    kept = half_precision(good)
    assert [t.dtype for t in kept.values()] == [torch.float32, torch.float16, torch.int64]
    assert all(t.isfinite().all() for t in kept.values())
    with pytest.raises(ValueError, match="weights b are not finite"):
        half_precision(good | {"b": torch.tensor([value])})


@pytest.mark.slow
def test_a_run_starts_from_the_weights_of_another(place, run, tmp_path):
    short = SMALL | {"TRAIN.END_EPOCH": 1}
    arguments = place(
        first={"cfg": [CFG], "set": short, "score": "300:302"},
        second={"cfg": [CFG], "set": short | {"TRAIN.LR": 1e-6}, "start": "first"},
    )
    run("tools/results.py", *arguments)
    first, second = read_results(tmp_path / "state")
    assert (first["scored"], second["scored"]) == ("300:302", "200:204")
    assert second["settings"]["start"] == first["weights"]["sha256"]
    assert f"first-304-{first['weights']['sha256'][:8]}.pt" in second["config"]
    assert str(tmp_path) not in json.dumps([first, second])
    files = [tmp_path / "state" / record["weights"]["files"][0] for record in (first, second)]
    a, b = (load_trained(file).model.state_dict() for file in files)
    far = max(float((a[key] - b[key]).abs().max()) for key in a if "bias" in key or "weight" in key)
    assert 0 < far < 1e-2  # as near as a step of such a rate and half precision leave them


def test_rows_come_before_further_seeds():
    row = {"cfg": [CFG], "seeds": [1, 2]}
    runs = wanted_runs({"score": "x", "runs": {"a": row, "b": row | {"seeds": [7]}}}, "t")
    assert [run.stem for run in runs] == ["a-1", "b-7", "a-2"]


def test_large_weights_come_in_parts(tmp_path):
    source = tmp_path / "weights.pt"
    torch.save(torch.randn(9 << 20), source)
    told = split_file(source, tmp_path / "state", "a-1.pt")
    parts = [tmp_path / "state" / name for name in told["files"]]
    assert len(parts) == 3 and max(p.stat().st_size for p in parts) < 16 << 20
    assert b"".join(p.read_bytes() for p in parts) == source.read_bytes()
