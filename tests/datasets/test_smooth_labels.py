"""Labels by colour that were smoothed on their way."""

import cv2
import numpy as np
import pytest
from pictures import check_list, quick, write

from datasets import get_meta


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
