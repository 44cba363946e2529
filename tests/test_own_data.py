"""The page about one's own data: its script, its files and its commands, run in a fresh folder."""

import contextlib
import importlib
import importlib.util
import io
import json
import re
import runpy
import shlex
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
from training import check_job

from configs import get_config
from configs.loader import changed_keys, leaf_names
from datasets import DataError

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/your_own_data.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with what the page makes, beside the repository's configurations."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "configs").symlink_to(ROOT / "configs")
    (script,) = blocks("python")
    (folder / "make_examples.py").write_text(script)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        runpy.run_path("make_examples.py")
    files = blocks("yaml")
    assert len(files) == 2
    for text in files:
        (folder / text.splitlines()[0].removeprefix("# ")).write_text(text)
    return folder


def call(folder, words):
    """Exit status and output of a command of the page, called in this process."""
    _, script, *arguments = map(str, words)
    signals = {
        number: signal.getsignal(number)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.chdir(folder)
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr("sys.argv", [script, *arguments])
        status = importlib.import_module(Path(script).stem).main()
    for number, handler in signals.items():
        signal.signal(number, handler)
    return status, out.getvalue()


@pytest.mark.parametrize("network", ["rtlinearformer_slim_own", "pidnet_s_own"])
def test_the_strong_recipe_takes_a_dozen_photographs_as_it_is_named(folder, monkeypatch, network):
    monkeypatch.chdir(folder)
    (strong, key, value) = re.findall(r"`--cfg (\S*strong_recipe\.yaml) (\S+) (\S+)`", PAGE)[0]
    data = "DATASET.DATASET data/shapes/shapes.yaml DATASET.ROOT data/shapes".split()
    files = [f"configs/own/{network}.yaml", strong]
    crops = ["TRAIN.IMAGE_SIZE", "(128,96)"]
    job = check_job(get_config(files, [*data, *crops, key, value]), folder / "strong")
    assert len(job.train_set) == 12 and job.plan.steps_per_epoch == 3
    assert not [remark for remark in job.remarks if "does nothing" in remark]
    with pytest.raises(ValueError, match=f"12 training images do not fill one batch .*{key}"):
        check_job(get_config(files, [*data, *crops]), folder / "strong")


@pytest.fixture(scope="module")
def outputs(folder):
    """The output of every command of the page, in order."""
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    assert len(lines) == 9
    done = {}
    for line in lines:
        if line.startswith("python -m pip"):
            continue
        words = shlex.split(line)
        if importlib.util.find_spec("onnx") is None:
            words = ["torch" if word == "onnx" else word for word in words]
        status, done[line] = call(folder, words)
        assert status == 0, done[line]
    return done


@pytest.mark.slow
def test_the_commands_of_the_page_check_train_and_score(folder, outputs):
    checks = [text for line, text in outputs.items() if "check_data" in line]
    for count, text in zip((100, 32), checks, strict=True):
        assert f"{count} entries checked, no problem" in text
    for name, classes in (("blobs", {"background", "blob"}), ("shapes", {"disc", "square"})):
        output = folder / f"output/{name}"
        assert (output / "check_rtlinearformer_slim_own/sheet_train.png").is_file()
        record = json.loads((output / "rtlinearformer_slim_own/eval_val.json").read_text())
        assert record["dataset"] == name and classes <= set(record["scores"]["classes"])
        assert record["scores"]["mIoU"] > 0.9  # as the page says
    predicted = folder / "output/shapes/predicted"
    index = cv2.imread(str(predicted / "index/val_003.png"), cv2.IMREAD_UNCHANGED)
    label = cv2.imread(str(folder / "data/shapes/labels/val_003.png"))[..., ::-1]
    palette = np.array([(0, 0, 0), (220, 60, 60), (60, 60, 220)], np.uint8)
    assert (palette[index] == label).all(-1).mean() > 0.9
    assert len(list((predicted / "overlay").iterdir())) == 32
    assert len((predicted / "shares.csv").read_text().splitlines()) == 33
    (file,) = (folder / "output/shapes/exported").glob("*.gate.json")
    exported = json.loads(file.read_text())
    assert exported["status"] == "passed" and exported["comparison"]["miou_file"] > 90


@pytest.mark.slow
def test_training_says_what_few_images_mean(outputs):
    blobs, shapes = (text for line, text in outputs.items() if "train.py" in line)
    assert "3 epochs of 20 steps" in blobs and "note: " not in blobs
    assert "30 epochs of 3 steps" in shapes and "tensors loaded" in shapes
    assert "note: an epoch has only 3 steps and the run 90, too few to learn much: raise" in shapes


NETWORKS = sorted(
    path.stem
    for path in (ROOT / "configs/cityscapes").glob("*.yaml")
    if "_OVERLAY_" not in path.read_text()
)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_keeps_its_recipe_and_nothing_of_its_dataset(name, tmp_path):
    theirs = ROOT / f"configs/cityscapes/{name}.yaml"
    own = ROOT / "configs/_base_/own.yaml"
    (tmp_path / "own.yaml").write_text(f"_BASE_: [{theirs}, {own}]")
    recipe, alone, both = (get_config(path) for path in (theirs, own, tmp_path / "own.yaml"))
    changed, kept = changed_keys(both, recipe.dump()), changed_keys(both, alone.dump())
    assert changed.keys() <= {key for key in leaf_names(both) if is_of_the_data(key)}
    assert not [key for key in kept if is_of_the_data(key)]
    assert "MODEL.NAME" in kept or recipe.MODEL.NAME == "rtlinearformer_base"  # the default


def is_of_the_data(key):
    """Whether data decide a setting, rather than the recipe of a network."""
    crops = "IMAGE_SIZE BATCH_SIZE_PER_GPU END_EPOCH BASE_SIZE SHORT_SIDE SCALE_RANGE SCALE_STEP"
    section, _, leaf = key.rpartition(".")
    return section in ("TEST", "DATASET") or (section == "TRAIN" and leaf in crops.split())


def test_the_second_network_of_the_page_has_its_own_recipe():
    (text,) = blocks("text")
    assert text.strip() in (ROOT / "configs/own/pidnet_s_own.yaml").read_text()
    train = get_config(ROOT / "configs/own/pidnet_s_own.yaml").TRAIN
    assert (train.OPTIMIZER, train.LR, train.WD, train.WARMUP_STEPS) == ("sgd", 0.01, 0.0005, 0)


def test_a_mask_that_is_not_declared_is_told_what_to_declare(folder, tmp_path):
    (tmp_path / "blobs.yaml").write_text("class_names: [background, blob]\n")
    cfg = ("--cfg", "configs/own/rtlinearformer_slim_own.yaml", "OUTPUT_DIR", tmp_path)
    own = ("DATASET.DATASET", tmp_path / "blobs.yaml", "DATASET.ROOT", "data/blobs", "WORKERS", 0)
    words = r"declared as encoding: \{0: background, 255: blob\}"
    with pytest.raises(
        DataError, match=rf"train.lst:1: label value 255 in masks/train_000.png .*{words}"
    ):
        call(folder, ["python", "tools/train.py", *cfg, *own])
    status, out = call(folder, ["python", "tools/check_data.py", *cfg, *own])
    assert status == 1 and re.search(words, out)
