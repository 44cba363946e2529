from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from datasets import get_meta, read_list
from datasets.camvid import split_of

META = get_meta("camvid")
RUNS = {
    "train": {"0001TP": 62, "0006R0": 101, "0016E5": 188 + 16},
    "val": {"0016E5": 101},
    "test": {"0001TP": 62, "Seq05V": 171},
}


def frames(path: Path) -> list[str]:
    return [Path(entry.image).stem for entry in read_list(path)]


@pytest.mark.parametrize("split", RUNS)
def test_lists_hold_the_frames_of_their_split(root, split):
    names = frames(root / f"data/list/camvid/{split}.lst")
    assert Counter(name[:6] for name in names) == RUNS[split]
    assert names == sorted(names)
    assert {split_of(name) for name in names} == {split}


def test_the_last_run_of_train_follows_val(root):
    names = frames(root / "data/list/camvid/train.lst")
    assert sum(name > "0016E5_08159" for name in names if name.startswith("0016E5")) == 16


def test_lists_follow_the_published_layout(root):
    for entry in read_list(root / "data/list/camvid/trainval.lst"):
        name = Path(entry.image).stem
        assert (entry.image, entry.label) == (f"images/{name}.png", f"labels/{name}_L.png")


@pytest.mark.parametrize("split", [*RUNS, "trainval"])
def test_frames_are_those_of_the_small_version(root, shared, split):
    small = shared / "list/camvid" / f"{split}.lst"
    assert frames(small) == frames(root / f"data/list/camvid/{split}.lst")


def test_frames_between_and_beside_the_runs_have_no_split():
    for frame in ("0016E5_07950", "0016E5_08160", "0016E5_L", "x"):
        assert split_of(frame) is None
    assert split_of("0001TP_008520") == "train" and split_of("0001TP_008550") == "test"


def test_classes_and_colours_are_those_of_the_published_checkpoints():
    assert dict(zip(META.class_names, META.palette, strict=True)) == {
        "bicyclist": (0, 128, 192),
        "building": (128, 0, 0),
        "car": (64, 0, 128),
        "pole": (192, 192, 128),
        "fence": (64, 64, 128),
        "pedestrian": (64, 64, 0),
        "road": (128, 64, 128),
        "sidewalk": (0, 0, 192),
        "sign": (192, 128, 128),
        "sky": (128, 128, 128),
        "tree": (128, 128, 0),
    }
    assert META.class_names[0] == "bicyclist" and META.class_names[-1] == "tree"


def test_colours_of_the_label_images():
    label = np.array([[(0, 128, 192), (128, 64, 128), (128, 128, 128), (128, 0, 192)]], np.uint8)
    assert META.encode(label).tolist() == [[0, 6, 9, 255]]  # lane markings are ignored


def test_indices_of_the_small_version_become_the_published_order():
    classes = META.encode(np.arange(11, dtype=np.uint8)[None], "index")
    assert [META.class_names[index] for index in classes[0]] == [
        "sky", "building", "pole", "road", "sidewalk", "tree", "sign", "fence", "car",
        "pedestrian", "bicyclist",
    ]  # fmt: skip
    assert META.encode(np.array([[11, 255]], np.uint8), "index").tolist() == [[255, 255]]
    with pytest.raises(ValueError, match=r"33 in .* camvid \(0..10\) nor ignore \(11, 255\)"):
        META.encode(np.array([[33]], np.uint8), "index")
