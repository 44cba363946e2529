"""Small datasets on disk, sound unless a test breaks them."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from datasets import EvalTransform, SegmentationDataset, get_meta


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """ROOT with three CamVid pairs of 20x30: index labels 0..11 and a list that names them."""
    rng = np.random.default_rng(0)
    for part in ("images", "labels"):
        (tmp_path / "camvid" / part).mkdir(parents=True)
    lines = []
    for name in "abc":
        image = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
        label = rng.integers(0, 12, (20, 30), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / f"camvid/images/{name}.png"), image)
        cv2.imwrite(str(tmp_path / f"camvid/labels/{name}.png"), label)
        lines.append(f"images/{name}.png\tlabels/{name}.png\n")
    (tmp_path / "list").mkdir()
    (tmp_path / "list/train.lst").write_text("".join(lines))
    return tmp_path


@pytest.fixture
def open_dataset(folder: Path) -> Callable[..., SegmentationDataset]:
    """The dataset of `folder`; keyword arguments replace its own."""

    def build(**more) -> SegmentationDataset:
        arguments = {
            "root": folder,
            "list_file": "list/train.lst",
            "meta": get_meta("camvid"),
            "encoding": "index",
            "transform": EvalTransform(),
        }
        return SegmentationDataset(**(arguments | more))

    return build
