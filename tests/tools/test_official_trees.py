"""Every dataset, from its official folder tree to a score, by the commands of a user."""

import json
import re

import numpy as np
import official_trees
import pytest

from datasets import EvalTransform, SegmentationDataset, get_meta, read_list

TINY = (
    "MODEL.OPTIONS.base_channels 8 MODEL.OPTIONS.attention_channels 16 "
    "MODEL.OPTIONS.head_channels 16 MODEL.OPTIONS.context_channels 16 TRAIN.IMAGE_SIZE (64,64) "
    "TRAIN.BATCH_SIZE_PER_GPU 2 TRAIN.END_EPOCH 1 WORKERS 0"
).split()
SHORT = "TRAIN.SHORT_SIDE 64 TRAIN.BASE_SIZE 256 TEST.SHORT_SIDE 64 TEST.LONG_SIDE 256".split()
LONG = "TRAIN.BASE_SIZE 96 TEST.PAD True".split()


USUAL = ("camvid", "cityscapes")  # the others take the same way, and minutes


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in USUAL else pytest.mark.slow)
        for name in sorted(official_trees.BUILDERS)
    ],
)
def test_an_official_tree_is_listed_checked_trained_on_and_scored(run, tmp_path, name):
    official_trees.BUILDERS[name](tmp_path)
    out = run("tools/prepare_data.py", name, tmp_path, "--partial").stdout
    assert re.search(r"^train: 4 of \d+ pairs$", out, re.M)

    cfg = f"configs/{name}/rtlinearformer_slim_{name}.yaml"
    scale = LONG if name in ("camvid", "cityscapes") else SHORT
    arguments = ["--cfg", cfg, "DATASET.ROOT", tmp_path, "OUTPUT_DIR", tmp_path / "out"]
    checked = run("tools/check_data.py", *arguments).stdout
    assert "no problem" in checked

    run("tools/train.py", *arguments, *TINY, *scale)
    scored = run("tools/eval.py", *arguments, *TINY, *scale).stdout
    assert re.search(r"mIoU \d+\.\d\d", scored)
    folder = tmp_path / f"out/{name}/rtlinearformer_slim_{name}"
    split = "test" if name in ("camvid", "cocostuff10k") else "val"
    (written,) = folder.glob(f"eval_{split}_*.json")  # named by what TINY and the scale set
    record = json.loads(written.read_text())
    meta = get_meta(name)
    assert len(record["scores"]["classes"]) == meta.num_classes
    data = SegmentationDataset(
        tmp_path, f"list/{name}/{split}.lst", meta, transform=EvalTransform()
    )
    labels = [data.load(index).label for index in range(len(data))]
    truth = sum(int((label != 255).sum()) for label in labels)
    # Every pixel is scored at the image's own size, whatever size the network saw.
    assert record["scores"]["pixels"] == truth


def test_the_classes_of_a_tree_arrive_unchanged(run, tmp_path):
    for name in ("ade20k", "cocostuff10k", "cocostuff164k", "voc2012"):
        official_trees.BUILDERS[name](tmp_path)
        run("tools/prepare_data.py", name, tmp_path, "--partial")
        meta = get_meta(name)
        data = SegmentationDataset(tmp_path, f"list/{name}/train.lst", meta, transform=None)
        drawn = official_trees.scenes(meta, "train", 4)
        for index, (_, label) in enumerate(drawn):
            assert np.array_equal(data.load_label(index), label), name


def test_stuffthingmaps_are_read_without_conversion(run, tmp_path):
    official_trees.cocostuff164k(tmp_path)
    prepare = ("tools/prepare_data.py", "cocostuff164k", tmp_path, "--partial", "--labels")
    out = run(*prepare, "stuffthingmaps").stdout
    assert "read with DATASET.LABELS stuffthingmaps" in out and "converted" not in out
    assert not list(tmp_path.rglob("*_labelTrainIds.png"))
    meta = get_meta("cocostuff164k")
    raw = SegmentationDataset(
        tmp_path, "list/cocostuff164k/val.lst", meta, "stuffthingmaps", transform=None
    )
    for index, (_, label) in enumerate(official_trees.scenes(meta, "val", 2)):
        assert np.array_equal(raw.load_label(index), label)


def test_labels_of_the_usual_10k_converter_are_recognised(run, tmp_path):
    meta, folder = get_meta("cocostuff10k"), tmp_path / "cocostuff10k"
    for split in ("train", "test"):
        for number, (image, label) in enumerate(official_trees.scenes(meta, split, 2)):
            label[0, :2] = 170, 255
            inner = f"{split}2014/{number:012d}"
            official_trees.write_image(folder / f"images/{inner}.jpg", image)
            shifted = meta.decode(label, "trainIdsFrom1")
            official_trees.write_values(folder / f"annotations/{inner}_labelTrainIds.png", shifted)
    out = run("tools/prepare_data.py", "cocostuff10k", tmp_path, "--partial").stdout
    assert "read with DATASET.LABELS trainIdsFrom1" in out
    data = SegmentationDataset(tmp_path, "list/cocostuff10k/test.lst", meta, transform=None)
    words = (
        "171 .* neither a class .*; as DATASET.LABELS trainIdsFrom1 all its values would be known"
    )
    with pytest.raises(ValueError, match=words):
        data.load_label(0)


def test_sbd_makes_the_augmented_training_set(run, tmp_path):
    official_trees.voc2012(tmp_path)
    sbd = official_trees.sbd(tmp_path)
    out = run("tools/prepare_data.py", "voc2012", tmp_path, "--sbd", sbd).stdout
    assert "2 label files converted, 0 failed" in out
    entries = read_list(tmp_path / "list/voc2012/trainaug.lst")
    assert [entry.label for entry in entries] == [
        *(f"SegmentationClass/2007_{number:06d}.png" for number in range(4)),
        *(f"SegmentationClassAug/2010_{number:06d}.png" for number in range(2)),
    ]
    meta = get_meta("voc2012")
    data = SegmentationDataset(tmp_path, "list/voc2012/trainaug.lst", meta, transform=None)
    for index, (_, label) in enumerate(official_trees.scenes(meta, "aug", 2)):
        label[label == 255] = 0
        assert np.array_equal(data.load_label(4 + index), label)
    broken = sbd / "cls/2010_000009.mat"
    broken.write_bytes(b"text")
    out = run("tools/prepare_data.py", "voc2012", tmp_path, "--sbd", sbd, status=1).stdout
    assert f"problem: {broken} is not a MATLAB 5 file" in out


def test_a_tree_without_its_split_files_is_refused(refuses, tmp_path):
    official_trees.voc2012(tmp_path)
    (tmp_path / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt").unlink()
    refuses(["val.txt does not exist"], "tools/prepare_data.py", "voc2012", tmp_path)
    refuses(["--labels is color", "nothing for camvid"], "tools/prepare_data.py", "camvid",
            tmp_path, "--labels", "color")  # fmt: skip
