"""Pictures hold what they show."""

import json

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from utils.visualize import plot_curve, side_by_side, write_png


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
