"""Training data as a user meets it: caches, the device path, unreadable images, Ctrl-C."""

import json
import math
import os
import re
import shlex
import signal
import time
from pathlib import Path

import cv2
import pytest
import torch
from builders import build_dataset, held_out_list
from checks import advice
from processes import wait_for

from configs import get_config
from datasets import get_meta
from datasets.synthetic import draw_scene
from utils.run_state import Plan

ROOT = Path(__file__).resolve().parents[2]
STEM = "rtlinearformer_slim_synthetic"
SCENES = 12


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """DATASET.ROOT with a few drawn scenes as CamVid files with index labels."""
    folder = tmp_path_factory.mktemp("data")
    for part in ("camvid/images", "camvid/labels", "list"):
        (folder / part).mkdir(parents=True)
    lines = []
    for index in range(SCENES):
        image, label = draw_scene(index, height=64, width=96)
        label = get_meta("camvid").decode(label, "index")
        cv2.imwrite(f"{folder}/camvid/images/{index}.png", image)
        cv2.imwrite(f"{folder}/camvid/labels/{index}.png", label)
        lines.append(f"images/{index}.png\tlabels/{index}.png\n")
    (folder / "list/train.lst").write_text("".join(lines))
    (folder / "list/val.lst").write_text("".join(lines[:2]))
    return folder


@pytest.fixture
def arguments(root, tiny, tmp_path):
    """Arguments of a training run on `root`; files go to `tmp_path / name`."""

    def build(name, *more):
        sets = "DATASET.TRAIN_SET list/train.lst DATASET.TEST_SET list/val.lst".split()
        data = ["DATASET.DATASET", "camvid", "DATASET.ROOT", root, "DATASET.LABELS", "index"]
        return [*tiny, *data, *sets, "OUTPUT_DIR", tmp_path / name, *more]

    return build


def metrics(folder):
    lines = (folder / "camvid" / STEM / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def log(folder):
    return (folder / "camvid" / STEM / "log.txt").read_text()


def weights(folder):
    return torch.load(folder / "camvid" / STEM / "last.pt", weights_only=True)["model"]


def assert_same_run(one, two):
    a, b = weights(one), weights(two)
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    clock = ("seconds", "trained_seconds", "eval_seconds", "images_per_second")
    assert [{k: v for k, v in r.items() if k not in clock} for r in metrics(one)] == [
        {k: v for k, v in r.items() if k not in clock} for r in metrics(two)
    ]


def test_neither_cache_nor_workers_change_a_run(tmp_path, run, arguments):
    run("tools/train.py", *arguments("plain"))
    for name, workers, cache in (("ram", 2, "ram"), ("disk", 0, "disk")):
        more = ["WORKERS", workers, "DATASET.CACHE", cache, "DATASET.CACHE_DIR", tmp_path / "kept"]
        run("tools/train.py", *arguments(name, *more))
        assert_same_run(tmp_path / "plain", tmp_path / name)
        assert f"cache: {SCENES} of {SCENES} images" in log(tmp_path / name)
    assert len(list((tmp_path / "kept").glob("*.scene"))) == SCENES


@pytest.mark.alone
@pytest.mark.parametrize("resident", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_device_path_trains_and_resumes_bit_for_bit(tmp_path, start, run, arguments, resident):
    size = "1.0" if resident else "0.0001"
    device = ["TRAIN.AUGMENT_ON", "device", "DATASET.CACHE_GB", size, "TRAIN.COLOR", "True"]
    run("tools/train.py", *arguments("whole", *device))
    words = "all images kept there" if resident else "no room for all images"
    assert words in log(tmp_path / "whole")
    process = start("tools/train.py", *arguments("broken", *device))
    file = tmp_path / "broken" / "camvid" / STEM / "log.txt"
    wait_for(lambda: file.exists() and "epochs of" in file.read_text(), process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 130 and "Traceback" not in err, out + err
    assert len(metrics(tmp_path / "broken")) < 2 if file.with_name("metrics.jsonl").exists() else 1
    run("tools/train.py", *arguments("broken", *device, "TRAIN.RESUME", "True"))
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_what_training_says_names_the_lists(call, tmp_path, arguments, root):
    out = call("tools/train.py", *arguments("said", "TRAIN.END_EPOCH", 1)).stdout
    assert "camvid: 12 images of list/train.lst to train on, 2 of list/val.lst to score" in out
    assert "1 process on cpu, " in out and "; 1 epoch of 3 steps" in out
    assert "augmentation on the CPU, images loaded by the training process\n" in out
    assert re.search(r"^epoch 1/1 loss \d\.\d+ mIoU on val.lst \d+\.\d\d \(best", out, re.M)
    assert "test set" not in out and "test.lst" not in out
    assert re.search(r"^best mIoU on val.lst .* after epoch 1: \S+/best.pt$", out, re.M)
    again = out.partition("score every class of list/val.lst, with pictures: ")[2].splitlines()[0]
    assert again.startswith("python tools/eval.py --cfg configs/synthetic/")
    assert "mIoU " in call(*shlex.split(again)[1:]).stdout  # the command is one that works


HELD_OUT = {  # lines of test.lst, as numbers of the scenes -> whether training names it
    "others": ((10, 11), True),
    "those that are scored": ((8, 9), False),
    "more than is scored": ((8, 9, 10), True),
    "one that is trained on": ((10, 0), False),
    "without labels": ((), False),
    "not there": (None, False),
}


@pytest.mark.parametrize("name", HELD_OUT)
def test_a_test_list_beside_the_scored_one_is_named(name, root, arguments, tmp_path):
    numbers, expected = HELD_OUT[name]
    pairs = {"train": range(8), "val": (8, 9), "test": numbers}
    lines = [f"images/{i}.png\tlabels/{i}.png\n" for i in range(SCENES)]
    (tmp_path / "lists").mkdir()
    for split, chosen in pairs.items():
        if chosen is not None:
            text = "".join(lines[i] for i in chosen) or "images/11.png\n"
            (tmp_path / f"lists/{split}.lst").write_text(text)
    folder = tmp_path / "lists"
    sets = ["DATASET.TRAIN_SET", folder / "train.lst", "DATASET.TEST_SET", folder / "val.lst"]
    _, cfg, *overrides = arguments("held", *sets)
    config = get_config(ROOT / cfg, list(map(str, overrides)))
    train_set, test_set = (build_dataset(config, train=train) for train in (True, False))
    found = held_out_list(config, train_set, test_set)
    assert found == ((folder / "test.lst").as_posix() if expected else None)
    if expected:
        sets = ["DATASET.TRAIN_SET", folder / "train.lst", "DATASET.TEST_SET", found]
        config = get_config(ROOT / cfg, list(map(str, [*overrides, *sets])))
        assert held_out_list(config, train_set, build_dataset(config, train=False)) is None


ENOUGH = ["TRAIN.END_EPOCH", "20", "TRAIN.EVAL_EVERY", "5", "MODEL.PRETRAINED", "best.pt"]


@pytest.mark.parametrize(
    ("steps", "overrides", "words"),
    [
        (
            1,
            ["TRAIN.END_EPOCH", "12"],
            ["only 1 step and the run 12, too few to learn much: raise"],
        ),
        (19, [], ["an epoch has only 19 steps and the run 19, too few"]),
        (20, [], []),
        (10, ["TRAIN.END_EPOCH", "20"], ["the run 200: start from trained weights (MODEL.PRE"]),
        (10, [*ENOUGH, "TRAIN.EVAL_EVERY", "1"], ["the run 200: score fewer epochs (TRAIN.EVAL"]),
        (10, ENOUGH, []),
        (20, ["TRAIN.WARMUP_STEPS", "19"], []),
        (20, ["TRAIN.WARMUP_STEPS", "20"], ["TRAIN.WARMUP_STEPS is 20 in a run of 20 steps"]),
        (5, ["TRAIN.WARMUP_STEPS", "1500"], ["only 5 steps", "ends at 0.001 and never reaches"]),
    ],
)
def test_settings_under_which_little_is_learnt_are_said(steps, overrides, words):
    few = ["TRAIN.END_EPOCH", "1", "TRAIN.WARMUP_STEPS", "0", *overrides]
    config = get_config(ROOT / "configs/synthetic/rtlinearformer_slim_synthetic.yaml", few)
    plan = Plan(config.TRAIN.END_EPOCH, steps, accumulate=1, batch=4)
    notes = advice(config, plan, last_lr=0.001)
    assert len(notes) == len(words) and all(note.startswith("note: ") for note in notes)
    assert all(word in note for word, note in zip(words, notes, strict=True))


@pytest.fixture
def damaged(root):
    """Image 5, which no check before training looks at, is cut off in the middle."""
    file = root / "camvid/images/5.png"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    yield "images/5.png"
    file.write_bytes(whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_ends_the_epoch_with_its_name(tmp_path, run, arguments, damaged, workers):
    done = run("tools/train.py", *arguments("stop", "WORKERS", workers), status=2)
    words = rf"error: \S+\.lst:\d+: {damaged} is a truncated PNG .*; tools/check_data.py finds all "
    assert re.fullmatch(rf"{words}at once\n", done.stderr)
    assert "epochs of" in log(tmp_path / "stop")  # training had begun


@pytest.mark.alone
@pytest.mark.parametrize("where", [pytest.param("cpu", marks=pytest.mark.slow), "device"])
def test_or_it_is_skipped_and_counted(tmp_path, start, run, arguments, damaged, where):
    skip = ["DATASET.ON_ERROR", "skip", "TRAIN.AUGMENT_ON", where]
    run("tools/train.py", *arguments("skip", *skip))
    records = metrics(tmp_path / "skip")
    assert [r["unreadable"] for r in records] == [1, 1] and len(records) == 2
    assert all(r["skipped"] == 0 and r["loss"] > 0 for r in records)
    said = re.findall(
        rf"step \d: \S+\.lst:\d+: {damaged} is a truncated PNG .*; another .*",
        log(tmp_path / "skip"),
    )
    assert len(said) == 2
    if where == "cpu":
        run("tools/train.py", *arguments("workers", *skip, "WORKERS", 2, "DATASET.CACHE", "ram"))
        assert_same_run(tmp_path / "skip", tmp_path / "workers")
    process = start("tools/train.py", *arguments("broken", *skip))
    file = tmp_path / "broken" / "camvid" / STEM / "log.txt"
    wait_for(lambda: file.exists() and "epochs of" in file.read_text(), process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=600)
    assert process.returncode == 143
    run("tools/train.py", *arguments("broken", *skip, "TRAIN.RESUME", "True"))
    assert_same_run(tmp_path / "skip", tmp_path / "broken")


def test_an_image_to_score_is_never_skipped(run, arguments, root):
    file = root / "camvid/labels/1.png"
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    done = run("tools/train.py", *arguments("score", "DATASET.ON_ERROR", "skip"), status=2)
    file.write_bytes(whole)
    assert re.match(r"error: \S+\.lst:\d+: labels/1.png is a truncated PNG", done.stderr)


@pytest.mark.alone
@pytest.mark.parametrize(
    "more",
    [["DATASET.CACHE", "ram"], ["TRAIN.AUGMENT_ON", "device", "DATASET.CACHE_GB", "0.0001"]],
    ids=["cpu", "device"],
)
def test_ctrl_c_leaves_no_process_and_no_memory_behind(tmp_path, start, arguments, more):
    many = ["WORKERS", 2, "TRAIN.END_EPOCH", 500, "TRAIN.EVAL_EVERY", 500, *more]
    shared_memory = set(os.listdir("/dev/shm"))
    process = start("tools/train.py", *arguments("long", *many), start_new_session=True)
    file = tmp_path / "long" / "camvid" / STEM / "metrics.jsonl"
    wait_for(file.exists, process)
    workers = children(process.pid)
    assert len(workers) >= min(2, len(os.sched_getaffinity(0)))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, err = process.communicate(timeout=600)
    assert process.returncode == 130 and "Traceback" not in err, out + err
    end = time.monotonic() + 300
    while alive := [pid for pid in workers if os.path.exists(f"/proc/{pid}")]:
        assert time.monotonic() < end, f"workers {alive} still run"
        time.sleep(0.1)
    left = {name for name in os.listdir("/dev/shm") if name.startswith(f"torch_{process.pid}")}
    assert not left - shared_memory


def children(pid):
    return [int(child) for child in open(f"/proc/{pid}/task/{pid}/children").read().split()]


BAD = {
    "cache": (["DATASET.CACHE", "tape"], ["DATASET.CACHE", "'tape'", "none, ram, disk"]),
    "error": (["DATASET.ON_ERROR", "ignore"], ["DATASET.ON_ERROR", "'ignore'", "stop, skip"]),
    "place": (["TRAIN.AUGMENT_ON", "gpu"], ["TRAIN.AUGMENT_ON", "'gpu'", "cpu, device"]),
    "size": (["DATASET.CACHE_GB", "0"], ["DATASET.CACHE_GB", "0.0", "above 0"]),
    "scenes": (
        ["DATASET.DATASET", "synthetic", "DATASET.TRAIN_SET", "0:12", "DATASET.TEST_SET", "0:2",
         "DATASET.CACHE", "disk"],
        ["DATASET.CACHE disk", "synthetic", "ram"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_settings_are_one_sentence(name, tmp_path, refuses, arguments):
    more, words = BAD[name]
    refuses(words, "tools/train.py", *arguments("bad", *more))
    assert not any(tmp_path.iterdir())


def test_counted_class_weights_are_said_kept_and_used(tmp_path, call, tiny):
    words = [*tiny, "OUTPUT_DIR", tmp_path, "TRAIN.END_EPOCH", 1, "DATASET.CLASS_WEIGHTS"]
    first, second, plain = (
        call("tools/train.py", *words, kind).stdout for kind in ("enet", "enet", "none")
    )
    (kept,) = (tmp_path / "cache").glob("*.pixels.json")
    pixels = json.loads(kept.read_text())["pixels"]
    assert sum(pixels) == 12 * 96 * 64
    weights = [1 / math.log(1.1 + count / sum(pixels)) for count in pixels]
    mean = sum(w * count for w, count in zip(weights, pixels, strict=True)) / sum(pixels)
    for out, origin in ((first, f"counted now, kept as {kept}"), (second, f"from {kept}")):
        assert f"class weights enet (share of the labelled pixels, {origin}): bicyclist" in out
        assert f"road {weights[6] / mean:.2f} (" in out
    losses = [re.search(r"epoch 1/1 loss (\S+)", out).group(1) for out in (first, second, plain)]
    assert losses[0] == losses[1] != losses[2] and "class weights" not in plain
