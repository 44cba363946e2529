"""What is possible but worth a look reaches the user: warnings of training and evaluation."""

import importlib
import json

import cv2
import numpy as np
import pytest

from configs import get_config
from datasets import get_meta

OWN = "configs/own/rtlinearformer_slim_own.yaml"
TINY = (
    "MODEL.OPTIONS.base_channels 8 MODEL.OPTIONS.attention_channels 16 "
    "MODEL.OPTIONS.head_channels 16 MODEL.OPTIONS.context_channels 16 TRAIN.IMAGE_SIZE (64,64) "
    "TRAIN.BATCH_SIZE_PER_GPU 2 TRAIN.END_EPOCH 1 WORKERS 0"
).split()


@pytest.fixture
def plants(tmp_path):
    """A dataset of one's own with class weights: its yaml file."""
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    rng, lines = np.random.default_rng(0), []
    for number in range(4):
        label = np.full((64, 64), 255, np.uint8)
        label[:8], label[8:16], label[16:24] = 0, 1, 2
        noise = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        cv2.imwrite(f"{tmp_path}/images/{number}.png", noise)
        cv2.imwrite(f"{tmp_path}/labels/{number}.png", label)
        lines.append(f"images/{number}.png\tlabels/{number}.png\n")
    for name in ("train", "val"):
        (tmp_path / f"{name}.lst").write_text("".join(lines))
    file = tmp_path / "plants.yaml"
    file.write_text("class_names: [soil, leaf, stem]\nclass_weights: [1, 2, 4]\n")
    return file


def arguments(plants, *more) -> list[str]:
    data = ("DATASET.DATASET", plants, "DATASET.ROOT", plants.parent)
    return [*map(str, (*data, "OUTPUT_DIR", plants.parent / "out", *more))]


@pytest.mark.parametrize("used", [True, False])
def test_class_weights_of_ones_own_are_used_or_said_to_be_unused(plants, used):
    builders = importlib.import_module("builders")
    config = get_config(OWN, arguments(plants, "DATASET.CLASS_WEIGHTS", used, *TINY))
    meta = get_meta(str(plants))
    criterion = builders.build_criterion(config, builders.build_network(config, meta), meta)
    weights = [w.tolist() for w in criterion.buffers() if w.shape == (3,)]
    sentence = (
        f"class_weights of {plants} are not used, since DATASET.CLASS_WEIGHTS is none (many "
        "recipes set it so); with DATASET.CLASS_WEIGHTS published they are"
    )
    assert builders.unused_weights(config, meta) == ([] if used else [sentence])
    assert ([1.0, 2.0, 4.0] in weights) == used


def test_published_weights_that_a_recipe_leaves_out_are_not_told(plants):
    builders = importlib.import_module("builders")
    config = get_config("configs/cityscapes/rtlinearformer_slim_cityscapes.yaml")
    assert config.DATASET.CLASS_WEIGHTS == "none"
    assert builders.unused_weights(config, get_meta("cityscapes")) == []
    plants.write_text("class_names: [soil, leaf, stem]\n")
    config = get_config(OWN, arguments(plants))
    assert builders.unused_weights(config, get_meta(str(plants))) == []


def test_training_and_evaluation_print_the_warnings(run, plants):
    text = (plants.parent / "train.lst").read_text()
    (plants.parent / "train.lst").write_text(text + text)
    opts = arguments(plants, "DATASET.CLASS_WEIGHTS", "False", *TINY)
    refused = run("tools/train.py", "--cfg", OWN, *opts, status=2).stderr
    assert "stands already in line 1; a training list may repeat lines with DATASET.REP" in refused
    opts += ["DATASET.REPEATED_LINES", "True"]
    out = run("tools/train.py", "--cfg", OWN, *opts).stdout
    share = "62% of the label pixels are ignored when read as index; only the others train and"
    for name in ("train", "val"):
        assert f"warning: {plants.parent}/{name}.lst: {share}" in out
    assert f"warning: class_weights of {plants} are not used" in out
    folder = plants.parent / "out/plants/rtlinearformer_slim_own"
    assert share in (folder / "log.txt").read_text() and ": 8 images of train.lst" in out
    scored = run("tools/eval.py", "--cfg", OWN, *opts).stdout
    assert scored.startswith(f"warning: {plants.parent}/val.lst: {share}")
    record = json.loads((folder / "eval_val.json").read_text())
    assert record["images"] == 4 and record["scores"]["pixels"] == 4 * 24 * 64


def test_the_test_list_must_not_repeat_lines(plants):
    builders = importlib.import_module("builders")
    text = (plants.parent / "val.lst").read_text()
    (plants.parent / "val.lst").write_text(text + text)
    config = get_config(OWN, arguments(plants, "DATASET.REPEATED_LINES", "True"))
    assert len(builders.build_dataset(config, train=True)) == 4
    with pytest.raises(ValueError, match=r"val.lst:5: images/0.png stands already in line 1"):
        builders.build_dataset(config, train=False)
