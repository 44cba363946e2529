"""The program that trains what a table asks for, with its records and its page."""

import hashlib
import importlib
import json
import sys
import time

import pytest
import torch
import yaml

from models.weights import load_trained
from utils.results import mean_and_spread, read_results, split_file, wanted_runs

CFG = "configs/synthetic/rtlinearformer_slim_synthetic.yaml"
SMALL = {
    "MODEL.OPTIONS.base_channels": 8,
    "MODEL.OPTIONS.attention_channels": 16,
    "MODEL.OPTIONS.head_channels": 16,
    "MODEL.OPTIONS.context_channels": 16,
    "DATASET.SIZE": "(96,64)",
    "TRAIN.IMAGE_SIZE": "(96,64)",
    "DATASET.TRAIN_SET": "0:12",
    "DATASET.TEST_SET": "100:104",
    "TRAIN.BATCH_SIZE_PER_GPU": 4,
    "WORKERS": 0,
    "TRAIN.END_EPOCH": 2,
    "TRAIN.WARMUP_STEPS": 2,
    "TEST.OVERLAYS": 0,
}


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
    weights = b"".join((tmp_path / "state" / f).read_bytes() for f in record["weights"]["files"])
    assert hashlib.sha256(weights).hexdigest() == record["weights"]["sha256"]
    trained = load_trained(tmp_path / "state" / record["weights"]["files"][0])
    assert trained.model.num_classes == 11 and trained.score == record["best"]
    assert records[1]["weights"]["sha256"] != record["weights"]["sha256"]

    began = time.time()
    again = run("tools/results.py", *arguments, "--minutes", "30").stdout
    assert "first-1: done" in again and "train.py" not in again
    assert all(p.stat().st_mtime < began for p in (tmp_path / "state").iterdir())


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
        ({"score": "a.lst", "runs": {"a": None}}, "is None"),
        ({"runs": {}}, "has no score"),
        ({"score": "a.lst", "runs": {"a": {"cfg": [CFG], "minutes": True}}}, "minutes is True"),
    ],
    ids=str,
)
def test_a_table_that_is_none_is_refused(table, words):
    with pytest.raises(ValueError, match=words):
        wanted_runs(table, "table.yaml")


def test_a_wrong_setting_is_refused_before_anything_is_trained(place, refuses, tmp_path):
    good, bad = {"cfg": [CFG], "set": SMALL}, {"cfg": [CFG], "set": {"TRAIN.EPOCHS": 2}}
    refuses(["TRAIN.EPOCHS"], "tools/results.py", *place(good=good, bad=bad))
    assert not (tmp_path / "work").exists() and not (tmp_path / "state").exists()


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
    assert "first-304.pt" in second["config"]
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


def test_mean_and_spread():
    assert mean_and_spread([0.5]) == "50.0"
    assert mean_and_spread([0.5, 0.52, None]) == "51.0 ± 1.4"
    assert mean_and_spread([None]) == ""


def test_the_page_tells_what_the_records_say(tmp_path, monkeypatch):
    page = importlib.import_module("pages.results_page")
    monkeypatch.setattr(page, "DOCS", tmp_path)
    scores = {"mIoU": 0.5, "classes": {"sky": {"IoU": 0.9}, "pole": {"IoU": None}}}
    for seed in (1, 2):
        record = {
            "name": "a", "title": "Plain", "seed": seed, "architecture": "pidnet_s",
            "curve": [{"epoch": e, "miou": 0.1 * e, "seconds": 60.0} for e in (1, 2)],
            "best": {"miou": 0.2}, "minutes": 2.0, "environment": {"device": "Some CPU"},
            "test": scores | {"mIoU": 0.5 + 0.02 * seed}, "weights": {"sha256": "0"},
        }  # fmt: skip
        (tmp_path / "results").mkdir(exist_ok=True)
        (tmp_path / "results" / f"a-{seed}.json").write_text(json.dumps(record))
    table = tmp_path / "results.yaml"
    table.write_text(yaml.safe_dump({"score": "x", "runs": {"a": {}}, "notes": "## Tried\n"}))
    monkeypatch.setattr(sys, "argv", ["results_page.py", str(table)])
    assert page.main() == 0
    text = (tmp_path / "results.md").read_text()
    assert "| Plain | `pidnet_s` | 2 | 2 | 2.0 | Some CPU | 20.0 ± 0.0 | 53.0 ± 1.4 |" in text
    assert "| Plain | 90.0 ± 0.0 |  |" in text and text.endswith("## Tried\n")
    assert (tmp_path / "images/results_curves.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(sys, "argv", ["results_page.py", str(table), "--check"])
    assert page.main() == 0
    (tmp_path / "results/a-2.json").unlink()
    assert page.main() == 1
