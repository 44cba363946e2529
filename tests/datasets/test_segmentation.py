import os

import cv2
import numpy as np
import pytest
import torch

from datasets import (
    DataError,
    Draw,
    EvalTransform,
    SegmentationDataset,
    TrainTransform,
    get_meta,
    quick_check,
)
from datasets.checking import CheckedList
from datasets.files import Entry
from datasets.segmentation import EntryList


def test_an_item_is_what_a_batch_is_made_of(open_dataset, folder):
    item = open_dataset()[1]
    values = cv2.imread(str(folder / "camvid/labels/b.png"), cv2.IMREAD_UNCHANGED)
    assert item["image"].shape == (3, 20, 30) and item["image"].dtype == torch.float32
    assert item["label"].dtype == torch.uint8
    assert np.array_equal(item["label"], get_meta("camvid").encode(values, "index"))
    assert (item["name"], item["size"]) == ("images/b.png", (20, 30))
    assert "boundary" not in item


def test_the_seed_alone_decides_the_augmentation(open_dataset):
    dataset = open_dataset(
        transform=TrainTransform((12, 16), color=True, boundary=True), need_boundary=True
    )
    one, same, other = (dataset[Draw(0, seed)] for seed in (5, 5, 6))
    for key in ("image", "label", "boundary"):
        assert torch.equal(one[key], same[key])
    assert not torch.equal(one["image"], other["image"])
    assert one["boundary"].dtype == torch.uint8 and one["boundary"].shape == (12, 16)


def test_a_boundary_that_nobody_makes_is_said(open_dataset):
    with pytest.raises(ValueError, match=r"images/a.png: the transform makes no boundary"):
        open_dataset(need_boundary=True)[0]


def test_lists_without_labels_give_items_without(open_dataset, folder):
    (folder / "list/test.lst").write_text("images/a.png\n")
    dataset = open_dataset(list_file="list/test.lst")
    assert not dataset.labelled and set(dataset[0]) == {"image", "name", "size"}
    quick_check(dataset)
    with pytest.raises(DataError, match=r"test.lst names no labels; training needs"):
        quick_check(open_dataset(list_file="list/test.lst", transform=TrainTransform((9, 9))))


def test_colour_labels_by_default(open_dataset, folder):
    meta = get_meta("camvid")
    classes = np.random.default_rng(1).integers(0, 11, (20, 30), dtype=np.uint8)
    picture = cv2.cvtColor(meta.colorize(classes), cv2.COLOR_RGB2BGR)
    cv2.imwrite(str(folder / "camvid/labels/a.png"), picture)
    assert np.array_equal(open_dataset(encoding="")[0]["label"], classes)


# what is wrong with a pair


def spoil(folder, file: str, array: np.ndarray | bytes, suffix: str = ".png") -> None:
    data = array if isinstance(array, bytes) else cv2.imencode(suffix, array)[1].tobytes()
    (folder / "camvid" / file).write_bytes(data)


GRAY = np.zeros((20, 30), np.uint8)
PROBLEMS = {
    "value": (GRAY + 33, "label value 33 in labels/a.png is neither a class of camvid"),
    "size": (GRAY[:, :20], "labels/a.png is 20x20 but its image images/a.png is 20x30"),
    "rgb": (cv2.merge([GRAY] * 3), "labels/a.png has 3 channels.*DATASET.LABELS is index, acc"),
    "deep": (GRAY.astype(np.uint16), "labels/a.png has 16 bits"),
    "empty": (b"", "labels/a.png is empty"),
    "cut": (cv2.imencode(".png", GRAY)[1].tobytes()[:-30], "labels/a.png is a truncated PNG"),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_bad_labels_are_named_by_item_and_quick_check(open_dataset, folder, problem):
    content, words = PROBLEMS[problem]
    spoil(folder, "labels/a.png", content)
    dataset = open_dataset()
    with pytest.raises(DataError, match=words):
        dataset[0]
    with pytest.raises(DataError, match=words) as error:
        quick_check(dataset)
    assert "\n" not in str(error.value)


def test_jpeg_labels_are_refused_whatever_their_name(open_dataset, folder):
    spoil(folder, "labels/a.png", GRAY, ".jpg")
    with pytest.raises(DataError, match=r"labels/a.png is a JPEG"):
        open_dataset()[0]


def test_values_where_colours_are_expected(open_dataset):
    with pytest.raises(DataError, match=r"one channel.*LABELS is color, accepted: color, index"):
        quick_check(open_dataset(encoding="color"))


def test_missing_files_are_counted_and_placed(open_dataset, folder):
    dataset = open_dataset()
    quick_check(dataset)
    for file in ("images/b.png", "labels/c.png"):
        os.remove(folder / "camvid" / file)
    assert len(dataset.missing_files()) == 2
    with pytest.raises(DataError) as error:
        quick_check(dataset)
    assert str(error.value) == (
        f"{folder}/list/train.lst:2: images/b.png does not exist under {folder}/camvid "
        f"(DATASET.ROOT={folder}) (and 1 more like it)"
    )


def test_empty_files_are_found_without_reading(open_dataset, folder):
    spoil(folder, "images/b.png", b"")
    with pytest.raises(DataError, match=r"train.lst:2: images/b.png is empty"):
        quick_check(open_dataset(), samples=2)


def test_labels_without_any_class_are_refused(open_dataset, folder):
    for name in "abc":
        spoil(folder, f"labels/{name}.png", GRAY + 11)
    with pytest.raises(
        DataError,
        match=r"train.lst: none of 3 labels has a pixel of a class of camvid when read as index",
    ):
        quick_check(open_dataset())


def test_a_crop_that_never_fits_is_refused(open_dataset):
    quick_check(open_dataset(transform=TrainTransform((40, 60))))
    with pytest.raises(ValueError, match=r"crop 41x60 is larger than the images \(20x30\)"):
        quick_check(open_dataset(transform=TrainTransform((41, 60))))


def test_unknown_lists_and_encodings_are_refused_at_once(open_dataset):
    with pytest.raises(FileNotFoundError, match=r"list/tran.lst found neither"):
        open_dataset(list_file="list/tran.lst")
    with pytest.raises(ValueError, match=r"accepted: color, index"):
        open_dataset(encoding="labelIds")


def test_real_pairs_of_camvid(shared):
    dataset = SegmentationDataset(
        shared, "list/camvid/val.lst", get_meta("camvid"), "index", transform=EvalTransform()
    )
    quick_check(dataset)
    item = dataset[0]
    assert item["image"].shape == (3, 360, 480) and item["label"].shape == (360, 480)
    assert set(item["label"].unique().tolist()) <= {*range(11), 255}
    assert abs(float(item["image"].mean())) < 2


# unreadable images


def test_an_unreadable_image_is_replaced_by_one_that_the_draw_decides(open_dataset, folder):
    transform = TrainTransform((12, 16))
    spoil(folder, "images/a.png", b"\x89PNG\r\n\x1a\n")
    dataset = open_dataset(transform=transform)
    with pytest.raises(DataError, match=r"images/a.png is a truncated PNG"):
        dataset[Draw(0, 1)]
    dataset = open_dataset(transform=transform, skip_unreadable=True)
    taken = set()
    for seed in range(30):
        one, two = dataset[Draw(0, seed)], dataset[Draw(0, seed)]
        assert one["name"] == two["name"] != "images/a.png"
        assert torch.equal(one["image"], two["image"])
        place = f"{folder}/list/train.lst:1: images/a.png is a truncated PNG"
        assert {s.split(" (")[0] for s in one["skipped"]} == {place}
        taken.add(one["name"])
    assert taken == {"images/b.png", "images/c.png"}
    sound = dataset[Draw(1, 7)]
    assert sound["name"] == "images/b.png" and sound["skipped"] == []


def test_nothing_but_unreadable_images_is_an_error(open_dataset, folder):
    dataset = open_dataset(transform=TrainTransform((12, 16)), skip_unreadable=True)
    for name in "abc":
        spoil(folder, f"labels/{name}.png", b"no picture")
    words = r"^17 images in a row cannot be read, the last: /.*\.lst:"
    with pytest.raises(DataError, match=words) as error:
        dataset[Draw(0, 0)]
    assert str(error.value).count("tools/check_data.py finds all at once") == 1
    with pytest.raises(DataError, match=r"labels/a.png is a text file; labels must be PNGs"):
        quick_check(dataset)


def test_a_sentence_about_a_sample_names_its_line_and_the_checker(open_dataset, folder):
    end = "; tools/check_data.py finds all at once"
    for name, content in (("labels/b.png", GRAY + 33), ("labels/b.png", GRAY[:9]),
                          ("images/b.png", b"text"), ("labels/b.png", b"text")):  # fmt: skip
        before = (folder / "camvid" / name).read_bytes()
        spoil(folder, name, content)
        dataset = open_dataset(transform=TrainTransform((12, 16)))
        for read, argument in ((dataset.__getitem__, 1), (dataset.load, 1), (quick_check, dataset)):
            with pytest.raises(DataError) as error:
                read(argument)
            text = str(error.value)
            assert text.startswith(f"{folder}/list/train.lst:2: ") and name in text
            assert text.endswith(end) and text.count(end) == 1
        (folder / "camvid" / name).write_bytes(before)


def test_a_check_before_skipping_asks_for_one_sound_image(open_dataset, folder):
    transform = TrainTransform((12, 16))
    os.remove(folder / "camvid/images/a.png")
    spoil(folder, "labels/b.png", GRAY + 33)
    with pytest.raises(DataError, match=r"images/a.png does not exist"):
        quick_check(open_dataset(transform=transform))
    quick_check(open_dataset(transform=transform, skip_unreadable=True))


def test_packed_entries_read_like_a_list():
    entries = [Entry("i/a b.png", "l/é.png", 1), Entry("i/ü.png", "l/b.png", 3)]
    packed = EntryList(entries)
    assert list(packed) == entries and len(packed) == 2
    assert packed[-1] == entries[1] and entries[0] in packed
    with pytest.raises(IndexError):
        packed[2]
    assert list(EntryList([Entry("a.png", None, 7)])) == [Entry("a.png", None, 7)]


def test_the_checker_reads_a_list_as_training_does(open_dataset):
    dataset = open_dataset()
    checked = CheckedList(dataset.root, dataset.list_path, dataset.meta, dataset.encoding)
    assert list(checked.entries) == list(dataset.entries) and checked.list_problems == []
    assert [checked.source(i) for i in range(3)] == [dataset.source(i) for i in range(3)]
