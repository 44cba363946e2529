"""What the finished runs of the documentation say: page, table of runs and kept weights."""

import importlib
import itertools
import json
import sys
from pathlib import Path

import pytest
import yaml
from result_runs import CFG, SMALL, put, record_of

from configs import get_config
from models.weights import load_trained
from utils.records import sha256
from utils.results import mean_and_spread, wanted_runs


def test_the_rows_of_the_documentation_can_be_compared(results, root):
    """Lists have nothing in common but where none chooses, and rows of one score differ in no list
    and no crop."""
    table = results.read_table(root / "docs/results.yaml")
    seen = {}
    for run in wanted_runs(table, "docs/results.yaml"):
        config = get_config([root / file for file in run.cfg], run.settings)
        lists = [config.DATASET.TRAIN_SET, config.DATASET.TEST_SET, run.score]
        if config.DATASET.DATASET == "synthetic":
            spans = sorted(tuple(map(int, text.split(":"))) for text in lists)
            assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans)), run.stem
        else:
            parts = [Path(text).stem for text in lists]
            chosen = config.TRAIN.EVAL_EVERY < 1000
            assert parts == ["train" if chosen else "trainval", "val", "test"], run.stem
        same = (run.score, lists[0]) if config.DATASET.DATASET == "camvid" else run.score
        rule = seen.setdefault(same, (lists, config.TRAIN.IMAGE_SIZE, config.TRAIN.BASE_SIZE))
        assert rule == (lists, config.TRAIN.IMAGE_SIZE, config.TRAIN.BASE_SIZE), run.stem


def test_mean_and_spread():
    assert mean_and_spread([0.5]) == "50.0"
    assert mean_and_spread([0.5, 0.52, None]) == "51.0 ± 1.4"
    assert mean_and_spread([None]) == ""


def test_the_page_tells_what_the_records_say(tmp_path, monkeypatch, results):
    page = importlib.import_module("pages.results_page")
    monkeypatch.setattr(page, "DOCS", tmp_path)
    records = [record_of(results, "a", seed=seed, title="Plain") for seed in (1, 2)]
    records[1]["curve"] = [entry | {"step": 4 * entry["epoch"]} for entry in records[1]["curve"]]
    records += [record_of(results, "a", seed=3, set=SMALL | {"TRAIN.LR": 0.5})]
    records += [record_of(results, "b", score="7:9")]
    for record in records:
        given = record["settings"].items()
        record["settings"] = {k: v for k, v in given if not k.startswith("MODEL.OPTIONS")}
    fine = {"MODEL.OPTIONS.detail_channels": 32, "DATASET.TRAIN_SET": "list/trainval.lst"}
    records += [record_of(results, "c") | {"settings": fine}]
    for record in records:
        record["test"] = record["test"] | {"mIoU": 0.5 + 0.02 * record["seed"] % 0.3}
        record["title"] = {"a": "Plain", "b": "Drawn", "c": "Fine"}[record["name"]]
    put(tmp_path / "results", *records)
    table = tmp_path / "results.yaml"
    runs = {name: {"cfg": [CFG]} for name in "abc"}
    lists = {"7:9": "A few scenes"}
    content = {"score": "200:204", "runs": runs, "lists": lists, "notes": "## Tried\n"}
    table.write_text(yaml.safe_dump(content))
    monkeypatch.setattr(sys, "argv", ["results_page.py", str(table)])
    assert page.main() == 0
    text = (tmp_path / "results.md").read_text()
    assert "| `pidnet_s` | 2 | 2 | 7 | 2.0 | CPU, 1 thread | 20.0 ± 0.0 | 53.0 ± 1.4 |" in text
    assert "| Plain | `pidnet_s` | 1 | 2 | 6 | 2.0 | CPU, 1 thread | 20.0 | 56.0 |" in text
    assert "| `pidnet_s`, detail_channels 32 | 1 | 2 | 6 | 2.0 | CPU, 1 thread |  | 58.0 |" in text
    assert "Runs without a validation score have trained on the validation list" in text
    assert "| Plain | 90.0 ± 0.0 |  |" in text and text.endswith("## Tried\n")
    main, other = text.split("### A few scenes\n\nScored on `7:9`.")
    assert "## 200:204\n\nScored on `200:204`." in main and "Drawn" not in main
    assert "Plain" not in other and "| Drawn | `pidnet_s`" in other
    for name in ("curves", "parts"):
        picture = (tmp_path / f"images/results_{name}.png").read_bytes()
        assert picture.startswith(b"\x89PNG") and f"](images/results_{name}.png)" in text
    monkeypatch.setattr(sys, "argv", ["results_page.py", str(table), "--check"])
    assert page.main() == 0
    (tmp_path / "results/a-2.json").unlink()
    assert page.main() == 1


def test_the_page_of_the_documentation_is_current(run):
    run("tools/pages/results_page.py", "docs/results.yaml", "--check")


def test_times_are_of_networks_without_options(results):
    page = importlib.import_module("pages.results_page")
    plain = record_of(results, "a") | {"title": "Plain"}
    fine = plain | {"name": "b", "title": "Fine"}
    fine["settings"] = plain["settings"] | {"MODEL.OPTIONS.detail_channels": 32}
    plain["settings"] = {}
    assert set(page.latency_points([plain, fine])) == {"Plain"}


KEPT = ("slim_scenes-304", "camvid/rtlinearformer_slim")  # record, and where its weights are


def test_the_weights_in_the_repository_are_those_of_their_record(root, monkeypatch):
    record = json.loads((root / f"docs/results/{KEPT[0]}.json").read_text(encoding="utf-8"))
    weights = root / f"pretrained_models/{KEPT[1]}.pt"
    assert sha256(weights) == record["weights"]["sha256"]
    trained = load_trained(weights)
    assert trained.model.architecture == record["architecture"] and trained.score == record["best"]
    assert trained.dataset == "camvid" and len(trained.class_names) == 11
    card = importlib.import_module("pages.model_card")
    monkeypatch.setattr(sys, "argv", ["model_card.py", *KEPT, "--check"])
    assert card.main() == 0


@pytest.mark.slow
def test_they_score_what_their_record_says(root, run, shared, tmp_path):
    record = json.loads((root / f"docs/results/{KEPT[0]}.json").read_text(encoding="utf-8"))
    cfg = "configs/camvid/rtlinearformer_slim_camvid_360x480_best.yaml"
    words = ("DATASET.ROOT", shared, "DATASET.TEST_SET", record["scored"], "OUTPUT_DIR", tmp_path)
    words += ("TEST.MODEL_FILE", root / f"pretrained_models/{KEPT[1]}.pt", "TEST.OVERLAYS", 0)
    run("tools/eval.py", "--cfg", cfg, *words)
    (file,) = tmp_path.rglob("eval_*.json")
    found = json.loads(file.read_text(encoding="utf-8"))["scores"]["mIoU"]
    assert found == pytest.approx(record["test"]["mIoU"], abs=2e-4)
