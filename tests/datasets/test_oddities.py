"""What training is told of odd files, from the few that it looks at before it starts."""

import io

import cv2
import numpy as np
import pytest
from pictures import check_list, quick, saved
from PIL import Image

from datasets import EvalTransform, get_meta, quick_check, shared_images
from datasets.files import read_header
from datasets.synthetic import SyntheticScenes

RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
VALUES = np.random.default_rng(0).integers(0, 12, (20, 30), dtype=np.uint8)


def deep() -> bytes:
    ramp = np.linspace(0, 4095, 600).round().astype(np.uint16).reshape(20, 30)
    return cv2.imencode(".png", ramp)[1].tobytes()


def pages(array: np.ndarray, kind: str = "TIFF", count: int = 3, **options) -> bytes:
    more = [Image.fromarray(array[::-1])] * (count - 1)
    return saved(array, kind, save_all=True, append_images=more, **options)


ODD = {
    "EXIF": ("images", saved(RGB, "PNG", orientation=3), "carries EXIF orientation 3 and is read"),
    "EXIF label": ("labels", saved(VALUES, "PNG", orientation=6), "carries EXIF orientation 6"),
    "depth": ("images", deep(), "has 1 band of 16 bits, of which 12 are used; the upper 8 are"),
    "bands": (
        "images",
        saved(np.dstack([RGB, VALUES]), "PNG"),
        "has 4 bands of 8 bits; the four",
    ),
    "pages": ("images", pages(RGB), "has 3 pages, of which the first is read; one file per"),
    "frames": ("images", pages(RGB, "PNG", 2), "has 2 frames, of which the first is read"),
    "WebP": ("images", pages(RGB, "WEBP", 2, lossless=True), "has 2 frames, of which the first"),
}


@pytest.mark.parametrize("kind", ODD)
def test_the_quick_check_names_what_is_odd_once_for_each_kind(open_dataset, folder, kind):
    part, data, words = ODD[kind]
    for name in "bc":
        (folder / f"camvid/{part}/{name}.png").write_bytes(data)
    (remark,) = quick_check(open_dataset())
    assert remark.startswith(f"{folder}/list/train.lst: {part}/b.png {words}")
    assert remark.endswith(f" (2 of 3 {part} looked at)")
    summary = check_list(folder, "list/train.lst", get_meta("camvid"), "index")
    assert summary.problems == [] and [words in text for text in summary.suspicions] == [True] * 2


def test_every_kind_is_named(open_dataset, folder):
    for (part, data, _), name in zip((ODD["EXIF"], ODD["depth"], ODD["bands"]), "abc", strict=True):
        (folder / f"camvid/{part}/{name}.png").write_bytes(data)
    (folder / "camvid/labels/a.png").write_bytes(ODD["EXIF label"][1])
    remarks = quick_check(open_dataset())
    assert [remark.rsplit(" (")[-1] for remark in remarks] == [
        "1 of 3 images looked at)", "1 of 3 labels looked at)",
        "1 of 3 images looked at)", "1 of 3 images looked at)",
    ]  # fmt: skip


@pytest.mark.parametrize("count", [2, 5])
def test_a_label_of_several_pages_is_refused(open_dataset, folder, count):
    (folder / "camvid/labels/b.png").write_bytes(pages(VALUES, count=count))
    with pytest.raises(ValueError, match=rf"labels/b.png has {count} frames; a label is one pict"):
        quick_check(open_dataset())
    summary = check_list(folder, "list/train.lst", get_meta("camvid"), "index")
    assert f"labels/b.png has {count} frames" in summary.problems[0]


@pytest.mark.parametrize("beside", [1, 4, 5])  # smaller copies, masks, masks of smaller copies
def test_copies_and_masks_in_a_tiff_are_no_pages(open_dataset, folder, beside):
    frames = [Image.fromarray(VALUES), Image.fromarray(VALUES[::2, ::2].copy())]
    frames[1].encoderinfo = {"tiffinfo": {254: beside}}
    stream = io.BytesIO()
    frames[0].save(stream, "TIFF", save_all=True, append_images=frames[1:])
    assert read_header(stream.getvalue()).frames == 1
    (folder / "camvid/labels/b.png").write_bytes(stream.getvalue())
    assert quick_check(open_dataset()) == []


def test_a_tiff_whose_pages_run_in_circles_is_read():
    data = bytearray(pages(VALUES, count=2))
    first = int.from_bytes(data[4:8], "little")
    size = int.from_bytes(data[first : first + 2], "little")
    place = first + 2 + 12 * size
    data[place : place + 4] = first.to_bytes(4, "little")
    assert read_header(bytes(data)).size == (20, 30)


# palettes

COLORS = [(0, 0, 0), (220, 60, 60), (60, 60, 220)]
SHAPES = "class_names: [background, disc, square]\npalette: [[0,0,0], [220,60,60], [60,60,220]]\n"


@pytest.fixture
def painted(tmp_path):
    """What both checks say of a label of values with a palette."""

    def check(values: np.ndarray, palette: list[tuple[int, ...]], text: str = SHAPES) -> list[str]:
        (tmp_path / "shapes.yaml").write_text(text)
        for part in ("images", "labels"):
            (tmp_path / part).mkdir(exist_ok=True)
        picture = Image.fromarray(values)
        picture.putpalette([part for color in palette for part in color])
        picture.save(tmp_path / "labels/a.png")
        (tmp_path / "images/a.png").write_bytes(saved(RGB, "PNG"))
        (tmp_path / "train.lst").write_text("images/a.png\tlabels/a.png\n")
        meta = get_meta(str(tmp_path / "shapes.yaml"))
        suspicions = check_list(tmp_path, "train.lst", meta).suspicions
        remarks = quick(tmp_path, meta)
        assert len(remarks) == len(suspicions)
        return remarks

    return check


@pytest.mark.parametrize(
    ("order", "present", "words"),
    [
        ((0, 2, 1), (0, 1, 2), "value 1 is read as disc and shown in the colour of square"),
        ((0, 2), (0, 1), "value 1 is read as disc and shown in the colour of square"),
        ((2, 1, 0), (0, 1, 2), "value 0 is read as background and shown in the colour of square"),
        ((1, 2, 0), (1, 2), "value 1 is read as disc and shown in the colour of square"),
    ],
)
def test_a_palette_in_another_order_is_named(painted, tmp_path, order, present, words):
    values = np.resize(np.array(present, np.uint8), (20, 30))
    (remark,) = painted(values, [COLORS[index] for index in order])
    assert remark == (
        f"{tmp_path}/train.lst: labels/a.png has the colours of the classes in another order in "
        f"its palette: {words}; if the colours are right, labels are to be read by them (encoding: "
        f"color in {tmp_path}/shapes.yaml) (1 of 1 labels looked at)"
    )
    read = painted(values, [COLORS[index] for index in order], SHAPES + "encoding: color\n")
    assert read == []


def test_other_palettes_say_nothing(painted):
    values = np.resize(np.array([0, 1, 2], np.uint8), (20, 30))
    assert painted(values, COLORS) == []
    assert painted(values, [(0, 0, 0), (60, 60, 220), (9, 9, 9)]) == []  # of another making
    assert painted(values, [(value, value, value) for value in range(3)]) == []
    names_only = "class_names: [background, disc, square]\n"
    assert painted(values, [COLORS[0], COLORS[2], COLORS[1]], names_only) == []


# the same images in both lists


def test_images_of_both_lists_are_counted(open_dataset, folder):
    for count in (0, 1, 3):
        lines = [f"images/{name}.png\tlabels/{name}.png\n" for name in "abc"[:count]]
        (folder / "list/val.lst").write_text("".join(lines) + "images/d.png\tlabels/d.png\n")
        found = shared_images(open_dataset(), open_dataset(list_file="list/val.lst"))
        start = f"{count} of {count + 1} images of {folder}/list/val.lst are in {folder}/list/train"
        assert len(found) == bool(count) and all(text.startswith(start) for text in found)


def test_drawn_scenes_share_no_files():
    scenes = SyntheticScenes(0, 2, (64, 96), transform=EvalTransform())
    assert shared_images(scenes, scenes) == []
