"""Labels that were smoothed on their way, so that their outlines are ignored."""

import cv2
import numpy as np

from ..meta import ColorEncoding, LabelEncoding
from ..outlines import BLENDS, SQUARE, flat_pixels, smoothed_values

MANY_COLORS = 32  # beside the palette, of one label; CamVid has 21
TOLERANCE = 4  # of a blend, per channel: rounding
MANY_VALUES = 8  # without a class, of one label, on outlines alone; fewer if they are blends
PART = 0.001  # share of all pixels that they take
BETWEEN = 0.75  # share of a blend's pixels that lie between a smaller and a larger neighbour


def smoothing(label: np.ndarray, ignored: np.ndarray, encoding: LabelEncoding) -> str | None:
    """What is wrong with a label that was smoothed, as the end of a sentence; else None.

    Args:
        label: (H, W) values or (H, W, 3) RGB, uint8.
        ignored: (H, W) bool, where there is no class.
    """
    if isinstance(encoding, ColorEncoding):
        return smooth_colors(label, ignored, encoding)
    if not ignored.any():
        return None
    thin = smoothed_values(label, [value for value in range(256) if value not in encoding.ids])
    if not thin or (len(thin) < MANY_VALUES and _blends(label, thin) < BLENDS):
        return None
    share = np.isin(label, thin).mean()
    if share <= PART:
        return None
    return (
        f"has {len(thin)} values beside those of the classes, on {share:.1%} of its pixels, all on "
        "outlines and ignored, as anti-aliasing or interpolation leave them; draw and resize "
        "labels without smoothing"
    )


def _blends(label: np.ndarray, values: list[int]) -> int:
    """How many of `values` stand nearly always between a smaller and a larger neighbour."""
    between = (cv2.erode(label, SQUARE) < label) & (label < cv2.dilate(label, SQUARE))
    return sum(between[label == value].mean() >= BETWEEN for value in values)


def smooth_colors(label: np.ndarray, ignored: np.ndarray, encoding: ColorEncoding) -> str | None:
    """As `smoothing`, for colours.

    Drawn with anti-aliasing, resized with interpolation, or once a JPEG, a label has colours that
    its palette lacks: many, or few that lie between two of its colours and stand on outlines only.

    Args:
        label: (H, W, 3) uint8 RGB.
        ignored: (H, W) bool, where it has a colour that the encoding lacks.
    """
    if not ignored.any():
        return None
    packed = cv2.cvtColor(label, cv2.COLOR_RGB2RGBA).view("<u4")[..., 0] & 0xFFFFFF
    colors = np.unique(packed[ignored])
    if len(colors) <= MANY_COLORS:
        thin = np.setdiff1d(colors, packed[ignored & flat_pixels(label)])
        palette = np.array(list(encoding.colors), np.float32)
        if np.count_nonzero(_lie_between(thin, palette)) < BLENDS:
            return None
    return (
        f"has {len(colors)} colours beside those of the classes, on {ignored.mean():.1%} of its "
        "pixels, as anti-aliasing, interpolation or JPEG leave them; draw and resize labels "
        "without smoothing"
    )


def _lie_between(packed: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Whether each colour is a blend of two colours of the palette."""
    colors = np.stack([packed & 255, packed >> 8 & 255, packed >> 16], -1).astype(np.float32)
    found = np.zeros(len(colors), bool)
    for first in range(len(palette)):
        ends = palette[first + 1 :] - palette[first]  # P, 3
        offsets = colors - palette[first]  # K, 3
        length = np.maximum((ends**2).sum(1), 1)
        share = np.clip(offsets @ ends.T / length, 0, 1)  # K, P
        apart = np.abs(offsets[:, None] - share[..., None] * ends).max(2)
        found |= (apart <= TOLERANCE).any(1)
    return found
