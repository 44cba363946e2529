"""Labels that were smoothed on their way."""

import io
import re

import cv2
import numpy as np
import pytest
from pictures import check_list, quick, write
from PIL import Image

from datasets import DataError, get_meta


def shapes(tmp_path, smooth):
    """A dataset of three colours whose two labels `smooth` draws or spoils."""
    file = tmp_path / "shapes.yaml"
    file.write_text(
        "class_names: [background, disc, square]\nencoding: color\n"
        "palette: [[0, 0, 0], [220, 60, 60], [60, 60, 220]]\n"
    )
    meta, labels = get_meta(str(file)), []
    for seed in range(2):
        label = np.zeros((60, 80, 3), np.uint8)
        label = smooth(label, seed)
        labels.append(cv2.cvtColor(label, cv2.COLOR_RGB2BGR))
    write(tmp_path, meta, labels)
    return meta


def plain(label, seed):
    cv2.circle(label, (20 + seed, 25), 14, (220, 60, 60), -1)
    cv2.rectangle(label, (30, 20), (70, 50), (60, 60, 220), -1)
    return label


def antialiased(label, seed):
    cv2.circle(label, (20 + seed, 25), 14, (220, 60, 60), -1, cv2.LINE_AA)
    return label


def scaled(interpolation, factor):
    def smooth(label, seed):
        return cv2.resize(
            plain(label, seed), None, fx=factor, fy=factor, interpolation=interpolation
        )

    return smooth


def jpeg(label, seed):
    return cv2.imdecode(cv2.imencode(".jpg", plain(label, seed))[1], cv2.IMREAD_UNCHANGED)


SMOOTH = {
    "anti-aliased": antialiased,
    "half, linear": scaled(cv2.INTER_LINEAR, 0.7),
    "half, area": scaled(cv2.INTER_AREA, 0.5),
    "double, linear": scaled(cv2.INTER_LINEAR, 2),
    "cubic": scaled(cv2.INTER_CUBIC, 1.5),
    "JPEG": jpeg,
    "blurred": lambda label, seed: cv2.GaussianBlur(plain(label, seed), (5, 5), 1),
}


@pytest.mark.parametrize("kind", SMOOTH)
def test_smoothed_colours_are_named(tmp_path, kind):
    meta = shapes(tmp_path, SMOOTH[kind])
    words = "colours beside those of the classes, on "
    remark = next(remark for remark in quick(tmp_path, meta) if words in remark)
    assert remark.endswith("without smoothing (2 of 2 labels looked at)")
    summary = check_list(tmp_path, "train.lst", meta)
    assert summary.problems == [] and sum(words in text for text in summary.suspicions) == 2
    assert f"{tmp_path}/train.lst:1: labels/frame0.png has " in summary.suspicions[0]


def nearest(label, seed):
    return scaled(cv2.INTER_NEAREST, 0.7)(label, seed)


def with_other_things(label, seed):
    """Thirty colours that are no class, among them a blend of two that are, as areas and lines."""
    label = plain(label, seed)
    for number in range(28):
        cv2.rectangle(label, (2 * number, 52), (2 * number + 5, 59), (9 * number, 255, 9), -1)
    cv2.rectangle(label, (0, 0), (9, 9), (110, 30, 30), -1)
    cv2.line(label, (0, 15), (79, 15), (250, 250, 0), 1)
    return label


@pytest.mark.parametrize("draw_label", [plain, nearest, with_other_things])
def test_other_colours_than_the_classes_have_are_no_smoothing(tmp_path, draw_label):
    meta = shapes(tmp_path, draw_label)
    assert quick(tmp_path, meta) == []
    assert check_list(tmp_path, "train.lst", meta).suspicions == []


# labels of values

MASK = "class_names: [background, blob]\nencoding: {0: background, 255: blob}\n"
LEVELS = "class_names: [soil, leaf, stem]\nencoding: {0: soil, 90: leaf, 170: stem}\n"
EVERY = f"ignored: {list(range(1, 255))}\n"


def values(tmp_path, text, smooth, levels=(255, 255)):
    """A dataset of two labels of values that `smooth` draws or spoils in three colours."""
    (tmp_path / "x.yaml").write_text(text)
    meta, labels = get_meta(str(tmp_path / "x.yaml")), []
    for seed in range(2):
        drawn = smooth(np.zeros((60, 80, 3), np.uint8), seed)
        level = drawn.max(2) / 220 * levels[0]  # both colours have 220
        labels.append(np.clip(level.round(), 0, 255).astype(np.uint8))
        if levels[1] != levels[0]:
            cv2.rectangle(labels[-1], (0, 0), (9, 9), levels[1], -1)
    write(tmp_path, meta, labels)
    return meta


@pytest.mark.parametrize("kind", SMOOTH)
@pytest.mark.parametrize(
    ("text", "levels"),
    [
        (MASK + "ignored: others\n", (255, 255)),
        (MASK + EVERY, (255, 255)),
        (LEVELS + "ignored: others\n", (170, 90)),
    ],
    ids=["others", "declared", "three"],
)
def test_smoothed_values_that_are_ignored_are_named(tmp_path, kind, text, levels):
    meta = values(tmp_path, text, SMOOTH[kind], levels)
    words = r"labels/frame0.png has \d+ values beside those of the classes, on \d+\.\d% of its"
    (remark,) = [text for text in quick(tmp_path, meta) if "beside those" in text]
    assert re.search(words, remark) and remark.endswith("(2 of 2 labels looked at)")
    summary = check_list(tmp_path, "train.lst", meta)
    assert summary.problems == []
    assert sum("values beside those" in text for text in summary.suspicions) == 2


@pytest.mark.parametrize("draw_label", [plain, nearest])
def test_sharp_values_are_no_smoothing(tmp_path, draw_label):
    meta = values(tmp_path, LEVELS + "ignored: others\n", draw_label, (170, 90))
    assert quick(tmp_path, meta) == []
    assert check_list(tmp_path, "train.lst", meta).suspicions == []


def test_other_ignored_things_are_no_smoothing(tmp_path):
    meta = values(tmp_path, LEVELS + "ignored: others\n", plain, (170, 90))
    label = np.zeros((60, 80), np.uint8)
    label[:30] = 90
    for number in range(12):  # areas, and few lines
        label[40:46, 6 * number : 6 * number + 5] = 20 + number
    label[35], label[37], label[:, 70] = 3, 4, 5
    write(tmp_path, meta, [label])
    assert check_list(tmp_path, "train.lst", meta).suspicions == []


@pytest.mark.parametrize("kind", SMOOTH)
@pytest.mark.parametrize("declared", [True, False])
def test_smoothed_values_without_a_class_are_told_the_smoothing(tmp_path, kind, declared):
    text = MASK if declared else "class_names: [background, blob]\n"
    meta = values(tmp_path, text, SMOOTH[kind])
    words = (
        r"label values \d.* in labels/frame0.png are neither .*; \d+ of these values stand on "
        r"outlines only and look like smoothed edges \(the label was resized or drawn with "
        r"anti-aliasing\): export it again without smoothing(.*)"
    )
    with pytest.raises(DataError) as error:
        quick(tmp_path, meta)
    rest = re.search(words, str(error.value)).group(1)
    mask = "; a mask of 0 and 255 is declared as encoding: {0: background, 255: blob}"
    assert rest == ("" if declared else mask) + "; tools/check_data.py finds all at once"
    assert re.search(words, check_list(tmp_path, "train.lst", meta).problems[0])


def test_an_antialiased_palette_picture_read_as_index(tmp_path):
    (tmp_path / "x.yaml").write_text("class_names: [soil, leaf, stem]\n")
    meta = get_meta(str(tmp_path / "x.yaml"))
    drawn = SMOOTH["double, linear"](np.zeros((60, 80, 3), np.uint8), 0)
    stream = io.BytesIO()
    Image.fromarray(drawn).quantize(40).save(stream, "PNG")
    write(tmp_path, meta, [drawn[..., 0]])
    (tmp_path / "labels/frame0.png").write_bytes(stream.getvalue())
    with pytest.raises(DataError, match=r"look like smoothed edges .* without smoothing; tools"):
        quick(tmp_path, meta)


def test_noise_is_no_smoothing(tmp_path):
    (tmp_path / "x.yaml").write_text("class_names: [soil, leaf, stem]\n")
    meta = get_meta(str(tmp_path / "x.yaml"))
    write(tmp_path, meta, [np.random.default_rng(0).integers(0, 40, (40, 60), dtype=np.uint8)])
    with pytest.raises(DataError, match="every value of the labels is declared in") as error:
        quick(tmp_path, meta)
    assert "smoothed edges" not in str(error.value)
