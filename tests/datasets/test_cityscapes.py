import numpy as np
import pytest

from datasets import DataError, EvalTransform, SegmentationDataset, get_meta, quick_check, read_list
from datasets.files import read_label

META = get_meta("cityscapes")
FRAME = "gtFine/val/frankfurt/frankfurt_000000_000294_gtFine_{}.png"


def test_label_ids_and_train_ids_of_a_real_frame_agree(shared):
    values, classes = {}, {}
    for encoding in META.encodings:
        file = shared / "cityscapes" / FRAME.format(encoding)
        values[encoding] = read_label(file, META.encoding(encoding))
        classes[encoding] = META.encode(values[encoding], encoding)
    # The frame is a small copy whose two label files were scaled apart: outlines differ by a
    # pixel here and there, but every label id must mostly lie on its own class.
    assert (classes["labelIds"] != classes["labelTrainIds"]).mean() < 0.003
    for value in np.unique(values["labelIds"]):
        here = values["labelIds"] == value
        official = np.bincount(classes["labelTrainIds"][here], minlength=256)
        assert official.argmax() == classes["labelIds"][here][0], f"label id {value}"
    assert {0, 2, 8, 13, 255} <= set(np.unique(classes["labelIds"]).tolist())


def test_submission_files_hold_label_ids():
    ids = META.decode(np.arange(19, dtype=np.uint8), "labelIds")
    assert ids.tolist() == [7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33]
    assert META.decode(np.arange(19, dtype=np.uint8), "labelTrainIds").tolist() == [*range(19)]


def test_colours_and_weights_stand_beside_their_class():
    assert META.palette[META.class_names.index("car")] == (0, 0, 142)
    assert META.class_weights[META.class_names.index("motorcycle")] == 1.1529


def test_train_ids_read_as_label_ids_are_noticed(shared, tmp_path):
    entry = FRAME.format("labelTrainIds").replace("gtFine/", "leftImg8bit/", 1)
    image = entry.replace("gtFine_labelTrainIds", "leftImg8bit")
    (tmp_path / "cityscapes").symlink_to(shared / "cityscapes")
    (tmp_path / "val.lst").write_text(f"{image}\t{FRAME.format('labelTrainIds')}\n")

    def check(encoding):
        dataset = SegmentationDataset(
            tmp_path, "val.lst", META, encoding, transform=EvalTransform()
        )
        return quick_check(dataset)

    with pytest.raises(DataError, match=r"set DATASET\.LABELS labelTrainIds"):
        check("")
    (remark, ignored) = check("labelIds")
    assert "is labelIds meant, as DATASET.LABELS says?" in remark and "are ignored" in ignored
    assert check("labelTrainIds") == []
    (tmp_path / "val.lst").write_text(f"{image}\t{FRAME.format('labelIds')}\n")
    assert check("") == check("labelIds") == []


def test_a_label_id_read_as_train_id_is_named(shared):
    file = FRAME.format("labelIds")
    values = read_label(shared / "cityscapes" / file, META.encoding("labelTrainIds"))
    words = r"in gtFine/.* neither a class of cityscapes \(0..18\) nor ignore \(255\)"
    with pytest.raises(DataError, match=words):
        META.encode(values, "labelTrainIds", file)


@pytest.mark.parametrize(
    ("split", "lines", "cities"), [("train", 2975, 18), ("val", 500, 3), ("test", 1525, 6)]
)
def test_lists_name_the_published_frames(root, split, lines, cities):
    entries = read_list(root / f"data/list/cityscapes/{split}.lst")
    assert len(entries) == lines
    assert len({entry.image.split("/")[2] for entry in entries}) == cities
    for entry in entries:
        folder, name = f"{split}/{entry.image.split('/')[2]}", entry.image.split("/")[3]
        frame = name.removesuffix("_leftImg8bit.png")
        assert entry.image == f"leftImg8bit/{folder}/{frame}_leftImg8bit.png"
        label = f"gtFine/{folder}/{frame}_gtFine_labelIds.png"
        assert entry.label == (None if split == "test" else label)


def test_trainval_is_train_then_val(root):
    lists = {
        name: (root / f"data/list/cityscapes/{name}.lst").read_text()
        for name in ("train", "val", "trainval")
    }
    assert lists["trainval"] == lists["train"] + lists["val"]
