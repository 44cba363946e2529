"""Pictures hold what they show."""

import json

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from utils.visualize import (
    error_map,
    plot_confusion,
    plot_curve,
    side_by_side,
    write_photograph,
    write_png,
)


def test_overlays_stand_beside_their_image(tmp_path):
    image = np.full((10, 20, 3), 100, np.uint8)
    red = np.zeros_like(image)
    red[..., 0] = 200
    picture = side_by_side(image, [red, image], opacity=0.5)
    assert picture.shape == (10, 3 * 20 + 2 * 6, 3)
    assert picture[5, 5].tolist() == [100] * 3
    assert picture[5, 30].tolist() == [150, 50, 50]
    assert picture[5, 22].tolist() == [255] * 3
    write_png(tmp_path / "sub" / "x.png", picture)
    assert np.array_equal(cv2.imread(str(tmp_path / "sub/x.png"))[..., ::-1], picture)


def test_photographs_are_png_or_jpeg(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    picture = cv2.GaussianBlur(picture, (0, 0), 3)
    for name, kind in (("x.png", b"\x89PNG"), ("x.jpg", b"\xff\xd8")):
        write_photograph(tmp_path / name, picture)
        assert (tmp_path / name).read_bytes().startswith(kind)
        read = cv2.imread(str(tmp_path / name))[..., ::-1].astype(int)
        assert np.abs(read - picture).max() <= (0 if name == "x.png" else 20)
    with pytest.raises(ValueError, match=r"\(1, 70000, 3\) cannot be written as such"):
        write_photograph(tmp_path / "y.jpg", np.zeros((1, 70000, 3), np.uint8))


def test_class_maps_keep_their_values(tmp_path):
    values = np.arange(12, dtype=np.uint8).reshape(3, 4)
    write_png(tmp_path / "x.png", values)
    assert np.array_equal(cv2.imread(str(tmp_path / "x.png"), cv2.IMREAD_UNCHANGED), values)


@pytest.mark.parametrize("scored", [True, False])
def test_curve(tmp_path, scored):
    records = [{"epoch": e, "loss": 3 / e} | ({"miou": e / 10} if scored else {}) for e in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    plot_curve(tmp_path / "metrics.jsonl", tmp_path / "curve.png", "val.lst")
    picture = cv2.imread(str(tmp_path / "curve.png"))
    assert picture.shape[:2] == (480, 840)
    red = (picture[..., 2] > 180) & (picture[..., 0] < 80)
    assert red.sum() > 200


def test_the_curve_names_the_list_that_was_scored(tmp_path, monkeypatch):
    labels = []
    monkeypatch.setattr(
        Figure,
        "savefig",
        lambda figure, *_, **__: labels.extend(a.get_ylabel() for a in figure.axes),
    )
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1, "loss": 2.0, "miou": 0.5}\n')
    plot_curve(tmp_path / "metrics.jsonl", tmp_path / "curve.png", "val.lst")
    assert labels == ["training loss", "mIoU on val.lst, %"]


def test_errors_are_red_and_ignored_pixels_black():
    label = np.array([[0, 1, 255]], np.uint8)
    picture = error_map(np.array([[0, 2, 2]], np.uint8), label, 255)
    assert picture.tolist() == [[[255, 255, 255], [220, 20, 20], [0, 0, 0]]]


@pytest.mark.parametrize("count", [2, 19, 150])
def test_a_confusion_matrix_is_drawn_with_its_names(tmp_path, monkeypatch, count):
    seen = []
    original = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *a, **k: seen.append(figure) or original(figure, *a, **k)
    )
    matrix = np.eye(count) * 30
    matrix[0, 1] = 10
    matrix[1] = 0  # a class that the truth lacks
    plot_confusion(matrix, [f"class {i}" for i in range(count)], tmp_path / "c.png", "val.lst")
    axes = seen[0].axes[0]
    assert axes.images[0].get_array()[0, :2].tolist() == [75, 25]
    assert [label.get_text() for label in axes.get_yticklabels()][-1] == f"class {count - 1}"
    assert [text.get_text() for text in axes.texts[:2]] == (["75", "25"] if count < 41 else [])
    assert min(cv2.imread(str(tmp_path / "c.png")).shape[:2]) > 300
