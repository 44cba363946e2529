"""Boundaries and parts of the list in an evaluation's record."""

import json

import pytest
import torch
from measures import Measures, group_of

from configs import get_config
from datasets.synthetic import SyntheticScenes
from utils.metrics import ConfusionMatrix

RUN = "synthetic/rtlinearformer_slim_synthetic"


@pytest.mark.parametrize(
    ("name", "folder", "prefix"),
    [
        ("images/0006R0_f00930.png", "images", "0006R0"),
        ("test/Seq05VD_f00030.png", "test", "Seq05VD"),
        ("leftImg8bit/val/lindau/lindau_000000_000019.png", "leftImg8bit/val/lindau", "lindau"),
        ("plain.png", ".", "plain"),
    ],
)
def test_parts_are_folders_or_what_stands_before_the_first_underscore(name, folder, prefix):
    assert (group_of(name, "folder"), group_of(name, "prefix")) == (folder, prefix)


class Scenes(SyntheticScenes):
    """Scenes called as the frames of two sequences."""

    def name(self, index):
        return f"images/{'ab'[index % 2]}{index // 4}_{index:03d}.png"


@pytest.fixture
def config(tiny):
    def build(*words):
        return get_config(tiny[1], [*tiny[2:], *words])

    return build


def test_the_parts_of_a_list_make_the_whole(config):
    dataset = Scenes(0, 7, (48, 64))
    measures = Measures(config("TEST.PER", "prefix", "TEST.BOUNDARY", "True"), dataset)
    torch.manual_seed(0)
    whole, names = ConfusionMatrix(11), []
    for first in (0, 3):  # batches of 3 and 4
        chosen = range(first, 3 + first + first // 3)
        batch = {
            "name": [dataset.name(i) for i in chosen],
            "label": torch.stack([torch.from_numpy(dataset.load(i).label) for i in chosen]),
        }
        guess = torch.where(torch.rand(batch["label"].shape) < 0.8, batch["label"].long(), 3)
        measures(batch, guess)
        whole.update(guess, batch["label"])
        names += batch["name"]
    counts = {key: group.images for key, group in measures.groups.items()}
    assert counts == {"a0": 2, "b0": 2, "a1": 2, "b1": 1} and len(names) == 7
    total = sum(group.confusion.matrix for group in measures.groups.values())
    assert torch.equal(total, whole.matrix)
    record = json.loads(json.dumps(measures.record()))
    assert record["parts"]["by"] == "prefix"
    assert list(record["parts"]["scores"]) == ["a0", "a1", "b0", "b1"]
    images = sum(part["images"] for part in record["parts"]["scores"].values())
    assert images == 7 and 0 < record["boundary"]["mean_f1"] < 1
    for key, part in record["parts"]["scores"].items():
        line = next(line for line in measures.text().splitlines() if line.startswith(key))
        assert f"{100 * part['mIoU']:.2f}" in line
        assert f"{100 * part['boundary']['mean_f1']:.2f}" in line


def test_nothing_is_measured_unless_asked_for(config):
    measures = Measures(config(), Scenes(0, 3, (48, 64)))
    measures({}, torch.zeros(0))
    assert (measures.text(), measures.record()) == ("", {})


def test_a_rule_that_parts_every_image_is_refused(config):
    class Alone(SyntheticScenes):
        def name(self, index):
            return f"{index}.png"

    words = r"^TEST\.PER prefix: every image of 100:104, such as 0\.png, is a part by itself; acc"
    with pytest.raises(ValueError, match=words):
        Measures(config("TEST.PER", "prefix"), Alone(0, 3, (48, 64)))


def test_an_evaluation_prints_and_records_them(tmp_path, call, tiny):
    words = [*tiny, "OUTPUT_DIR", tmp_path, "TRAIN.END_EPOCH", 1]
    call("tools/train.py", *words)
    plain = call("tools/eval.py", *words, "TEST.OVERLAYS", 0).stdout
    record = tmp_path / RUN / "eval_100-104.json"
    before = json.loads(record.read_text())["scores"]
    assert "boundary" not in before and not (tmp_path / RUN / "confusion_100-104.png").exists()
    more = ["TEST.BOUNDARY", "True", "TEST.PER", "prefix"]
    out = call("tools/eval.py", *words, *more).stdout
    after = json.loads(record.read_text())["scores"]  # the same evaluation, more said of it
    assert before.items() <= after.items()
    assert after["parts"]["scores"]["scene"]["mIoU"] == before["mIoU"]
    assert f"boundary_f1 {100 * after['boundary']['mean_f1']:.2f} (within 0.75 %" in out
    assert "boundary_f1" not in plain and "scene" in (record.with_suffix(".txt")).read_text()
