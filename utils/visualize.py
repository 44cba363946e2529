"""Pictures: results beside their image, confusions, and the course of a run."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from .errors import InputError
from .logger import read_metrics
from .records import atomic_file, atomic_write

PHOTOGRAPH = {
    ".png": (  # at 2048x1024 three quarters of the time of OpenCV's own way, for the same size
        *(cv2.IMWRITE_PNG_COMPRESSION, 1),
        *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY),
        *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_SUB),
    ),
    ".jpg": (  # colours at the full resolution, so that thin classes keep theirs
        *(cv2.IMWRITE_JPEG_QUALITY, 95),
        *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
    ),
}


def side_by_side(
    image: np.ndarray, overlays: Sequence[np.ndarray], opacity: float = 0.65
) -> np.ndarray:
    """An image, then a copy of it under each of `overlays`, next to each other.

    Args:
        image: RGB uint8 H, W, 3.
        overlays: colour pictures of the same shape, such as truth and prediction.
        opacity: of the overlays, 0..1.
    """
    panels = [image, *(cv2.addWeighted(o, opacity, image, 1 - opacity, 0) for o in overlays)]
    gap = np.full((image.shape[0], 6, 3), 255, np.uint8)
    return np.hstack([part for panel in panels for part in (panel, gap)][:-1])


def error_map(prediction: np.ndarray, label: np.ndarray, ignore_label: int) -> np.ndarray:
    """Class indices (H, W) -> (H, W, 3) RGB: white where right, red where not, ignored black."""
    colors = np.array([(255, 255, 255), (220, 20, 20), (0, 0, 0)], np.uint8)
    return colors[np.where(label == ignore_label, 2, prediction != label)]


def plot_confusion(matrix: np.ndarray, names: Sequence[str], path: str | Path, scored: str) -> None:
    """Draw what each true class (a row) was taken for, in percent of its pixels.

    `scored` names the list. Cells have numbers where there is room for them.
    """
    matrix = np.asarray(matrix, np.float64)
    shares = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    count = len(names)
    side = min(24.0, 3 + 0.45 * count)
    with matplotlib.rc_context({"font.size": 9 if count <= 40 else 5}):
        figure = Figure(figsize=(side + 1, side), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
        axes.set_xticks(range(count), names, rotation=90)
        axes.set_yticks(range(count), names)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        axes.set_title(f"{scored}: of each true class, % of its pixels", loc="left")
        figure.colorbar(image, ax=axes, shrink=0.6)
        if count <= 40:
            for (row, column), share in np.ndenumerate(shares):
                color = "white" if share > 55 else "black"
                if share >= 0.5:
                    axes.text(column, row, f"{share:.0f}", ha="center", va="center", color=color)
        with atomic_file(path) as stream:
            figure.savefig(stream, format="png", dpi=110)


def write_png(path: str | Path, picture: np.ndarray) -> None:
    """Write an RGB or a single-channel uint8 picture as PNG, atomically."""
    _write(path, picture, ".png")


def write_photograph(path: str | Path, picture: np.ndarray) -> None:
    """Write an RGB picture that has few even areas, atomically, as its name ends: .jpg, or .png,
    which is six times the work."""
    suffix = Path(path).suffix
    _write(path, picture, suffix, PHOTOGRAPH[suffix])


def _write(path: str | Path, picture: np.ndarray, ending: str, how: Sequence[int] = ()) -> None:
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR) if picture.ndim == 3 else picture
    try:
        ok, data = cv2.imencode(ending, bgr, how)
    except cv2.error:
        ok = False
    if not ok:
        raise InputError(f"{path}: a picture of shape {picture.shape} cannot be written as such")
    atomic_write(path, data.tobytes())


def plot_curve(metrics_file: str | Path, path: str | Path, scored: str) -> None:
    """Draw loss and mIoU on the list `scored` over the epochs of a run's metrics.jsonl."""
    records = [r for r in read_metrics(metrics_file) if r["loss"] is not None]
    rated = [r for r in records if r.get("miou") is not None]
    with matplotlib.rc_context({"font.size": 10, "axes.spines.top": False}):
        figure = Figure(figsize=(7, 4), layout="constrained")
        left = figure.subplots()
        left.plot([r["epoch"] for r in records], [r["loss"] for r in records], color="tab:red")
        left.set_xlabel("epoch")
        left.set_ylabel("training loss", color="tab:red")
        left.set_ylim(bottom=0)
        left.xaxis.get_major_locator().set_params(integer=True)
        right = left.twinx()
        miou = [100 * r["miou"] for r in rated]
        right.plot([r["epoch"] for r in rated], miou, color="tab:blue", marker=".")
        right.set_ylabel(f"mIoU on {scored}, %", color="tab:blue")
        right.set_ylim(0, 100)
        if rated:
            best = max(rated, key=lambda r: r["miou"])
            title = f"best mIoU {100 * best['miou']:.2f} % after epoch {best['epoch']}"
            left.set_title(title, loc="left", fontsize=10)
        with atomic_file(path) as stream:
            figure.savefig(stream, format="png", dpi=120)
