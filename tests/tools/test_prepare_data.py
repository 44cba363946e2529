import filecmp
import importlib
import shutil
from pathlib import Path

import pytest

from datasets import read_list


@pytest.fixture
def prepare(root, monkeypatch, capsys):
    """Runs the tool in this process; returns what it printed."""
    tool = importlib.import_module("prepare_data")

    def prepare_lists(*arguments: object, status: int = 0) -> str:
        monkeypatch.setattr("sys.argv", ["prepare_data.py", *map(str, arguments)])
        assert tool.main() == status
        return capsys.readouterr().out

    return prepare_lists


def touch(folder: Path, *files: str) -> None:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()


def published(root: Path, dataset: str, split: str) -> list[str]:
    files = []
    for entry in read_list(root / f"data/list/{dataset}/{split}.lst"):
        files += [file for file in (entry.image, entry.label) if file]
    return files


@pytest.mark.medium
def test_a_whole_cityscapes_tree_gives_the_lists_of_the_repository(prepare, root, tmp_path):
    for split in ("train", "val", "test"):
        touch(tmp_path / "cityscapes", *published(root, "cityscapes", split))
    out = prepare("cityscapes", tmp_path)
    assert "train: 2975 of 2975 pairs\nval: 500 of 500 pairs\ntest: 1525 of 1525 images\n" in out
    names = [f"{split}.lst" for split in ("train", "val", "test", "trainval")]
    folders = (root / "data/list/cityscapes", tmp_path / "list/cityscapes")
    assert filecmp.cmpfiles(*folders, names, shallow=False) == (names, [], [])


def test_a_part_of_cityscapes_is_listed_and_the_rest_named(prepare, root, tmp_path):
    files = published(root, "cityscapes", "val")
    files.remove("gtFine/val/frankfurt/frankfurt_000000_000294_gtFine_labelIds.png")
    files.remove("leftImg8bit/val/frankfurt/frankfurt_000000_000576_leftImg8bit.png")
    own = "val/ulm/ulm_000000_000001"
    touch(
        tmp_path / "cityscapes",
        *files,
        f"leftImg8bit/{own}_leftImg8bit.png",
        f"gtFine/{own}_gtFine_labelIds.png",
    )
    out = prepare("cityscapes", tmp_path, "--out", tmp_path / "out", status=1)
    assert "val: 498 of 500 pairs\n  missing images: 1 (frankfurt_000000_000576)\n" in out
    assert "images without a label: 1 (frankfurt_000000_000294)" in out
    assert "listed, but not published in this split: 1 (ulm_000000_000001)" in out
    assert "missing images: 2975 (aachen_000000_000019, " in out
    assert "train.lst: not written" in out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["val.lst"]
    entries = read_list(tmp_path / "out/val.lst")
    assert len(entries) == 499 and entries[-1].image == f"leftImg8bit/{own}_leftImg8bit.png"


def test_published_camvid_gives_the_lists_of_the_repository(prepare, root, tmp_path):
    for split in ("trainval", "test"):
        touch(tmp_path / "camvid", *published(root, "camvid", split))
    out = prepare("camvid", tmp_path)
    assert "train: 367 of 367 pairs\nval: 101 of 101 pairs\ntest: 233 of 233 pairs\n" in out
    names = [f"{split}.lst" for split in ("train", "val", "test", "trainval")]
    folders = (root / "data/list/camvid", tmp_path / "list/camvid")
    assert filecmp.cmpfiles(*folders, names, shallow=False) == (names, [], [])


def test_camvid_in_folders_is_split_by_frame(prepare, tmp_path):
    pairs = ("train/0001TP_006690", "test/Seq05VD_f05100", "train/0016E5_07959", "val/0016E5_1")
    files = [f"images/{pair}.jpg" for pair in pairs] + [f"labels/{pair}.png" for pair in pairs]
    touch(tmp_path / "camvid", *files, "images/train/0001TP_006720.jpg")
    out = prepare("camvid", tmp_path, status=1)
    words = "in another split's folder, listed in their own: 1 (images/train/0016E5_07959.jpg"
    assert f"note: {words} (val))\n" in out
    assert "of no split, left out: 1 (0016E5_1)" in out
    assert "images without a label: 1 (0001TP_006720)" in out
    lists = tmp_path / "list/camvid"
    assert (lists / "val.lst").read_text() == (
        "images/train/0016E5_07959.jpg\tlabels/train/0016E5_07959.png\n"
    )
    assert len(read_list(lists / "trainval.lst")) == 2


def test_real_camvid_gives_its_own_lists(prepare, shared, tmp_path):
    prepare("camvid", shared, "--out", tmp_path)
    names = [f"{split}.lst" for split in ("train", "val", "test", "trainval")]
    compared = filecmp.cmpfiles(shared / "list/camvid", tmp_path, names, shallow=False)
    assert compared == (names, [], [])


def test_what_cannot_be_listed_is_one_sentence(prepare, run, tmp_path):
    done = run("tools/prepare_data.py", "camvid", tmp_path, status=2)
    sentence = f"{tmp_path}/camvid is not a folder; ROOT is the folder that holds camvid/"
    assert done.stderr == f"error: {sentence}\n"
    (tmp_path / "cityscapes/images").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds no pair of image and label"):
        prepare("cityscapes", tmp_path)
    touch(tmp_path / "camvid", "images/0001TP_006690.png", "images/train/0001TP_006690.jpg")
    with pytest.raises(ValueError, match=r"0001TP_006690 is there twice, as .* and .*; keep one"):
        prepare("camvid", tmp_path)


def test_published_lists_are_not_replaced_by_shorter_ones(prepare, root, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(root / "data/list", data / "list")
    touch(data / "camvid", "images/0001TP_006690.png", "labels/0001TP_006690_L.png")
    assert "nothing written" in prepare("camvid", data, status=1)
    assert len(read_list(data / "list/camvid/train.lst")) == 367
    prepare("camvid", data, "--out", tmp_path / "out", status=1)
    assert len(read_list(tmp_path / "out/train.lst")) == 1


def test_the_segnet_layout_is_found_and_never_replaces_the_published_lists(prepare, root, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(root / "data/list", data / "list")
    for split in ("train", "val", "test"):
        for entry in read_list(root / f"data/list/camvid/{split}.lst"):
            name = f"{entry.image.removeprefix('images/')}"
            touch(data / "camvid", f"{split}/{name}", f"{split}annot/{name}")
    assert "nothing written" in prepare("camvid", data, status=1)
    assert read_list(data / "list/camvid/test.lst")[0].image.startswith("images/")
    prepare("camvid", data, "--out", tmp_path / "out")
    again = prepare("camvid", data, "--out", tmp_path / "out")
    assert again.count("is up to date") == 4 and "written" not in again
    prepare("camvid", data, "--force")
    assert read_list(data / "list/camvid/test.lst")[0].image.startswith("test/")
    entry = read_list(tmp_path / "out/test.lst")[0]
    assert (entry.image, entry.label) == (
        "test/0001TP_008550.png",
        "testannot/0001TP_008550.png",
    )
    assert [len(read_list(tmp_path / f"out/{s}.lst")) for s in ("train", "val", "test")] == [
        367,
        101,
        233,
    ]
