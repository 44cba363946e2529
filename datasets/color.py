"""Random colour changes of two recipes, RTFormer's and mmsegmentation's: drawn, then applied."""

from typing import NamedTuple

import cv2
import numpy as np

from .errors import InputError

# What an amount of 1 means: a share (factor 1 +- it), grey levels, or steps of HUE_STEPS.
RANGES = {
    "brightness": 0.4,  # towards black
    "contrast": 0.4,  # about the mean grey
    "saturation": 0.4,  # about each pixel's own grey
    "hue": 18.0,
    "shift": 32.0,  # grey levels added
    "gain": 0.5,  # towards black
    "purity": 0.5,  # saturation as HSV has it
    "tint": 18 * 256 / 180,
}
OPERATIONS = tuple(RANGES)
JITTER, PHOTOMETRIC = OPERATIONS[:4], OPERATIONS[4:]
HUE_STEPS = 256  # around the circle


class ColorChange(NamedTuple):
    """One step of a colour change.

    operation: one of OPERATIONS.
    amount: -1..1, of its range.
    """

    operation: str
    amount: float

    @property
    def factor(self) -> float:
        """What operations other than hue, tint and shift multiply by."""
        return 1 + RANGES[self.operation] * self.amount

    @property
    def turn(self) -> int:
        """What hue and tint add, of HUE_STEPS around the circle."""
        return round(RANGES[self.operation] * self.amount)

    @property
    def levels(self) -> float:
        """What shift adds."""
        return RANGES[self.operation] * self.amount


def draw_color(rng: np.random.Generator, kind: str = "jitter") -> tuple[ColorChange, ...]:
    """A random change, each operation of it with probability 0.5.

    "jitter" (RTFormer) draws the order of its four too. "photometric" (mmsegmentation's
    PhotoMetricDistortion) has brightness first, then saturation and hue, and contrast before or
    after these two. Differs from it: rounds to whole grey levels, which it cuts off.
    """
    if kind == "jitter":
        order = [JITTER[position] for position in rng.permutation(len(JITTER))]
    elif kind == "photometric":
        shift, gain, *rest = PHOTOMETRIC
        order = [shift, gain, *rest] if rng.random() < 0.5 else [shift, *rest, gain]
    else:
        raise InputError(f"colour change {kind!r} is unknown; accepted: jitter, photometric")
    changes = []
    for operation in order:
        amount = float(rng.uniform(-1, 1))
        if rng.random() < 0.5:
            changes.append(ColorChange(operation, amount))
    return tuple(changes)


def recolor(image: np.ndarray, changes: tuple[ColorChange, ...]) -> np.ndarray:
    """Apply `changes` in their order to (H, W, 3) uint8 RGB; rounded to uint8 after each."""
    for change in changes:
        name = change.operation
        if name in ("brightness", "gain"):
            image = _blend(image, 0.0, change.factor)
        elif name == "shift":
            image = _table(image, np.arange(256) + change.levels)
        elif name == "contrast":
            mean = cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0]
            image = _blend(image, mean, change.factor)
        elif name == "saturation":
            gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
            image = cv2.addWeighted(image, change.factor, gray, 1 - change.factor, 0)
        elif name == "purity":
            image = _purify(image, change.factor)
        else:
            image = _turn_hue(image, change.turn)
    return image


def distort_color(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a change and apply it."""
    return recolor(image, draw_color(rng))


def _turn_hue(image: np.ndarray, steps: int) -> np.ndarray:
    hue, saturation, value = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL))
    turned = ((np.arange(256) + steps) % 256).astype(np.uint8)
    hsv = cv2.merge([cv2.LUT(hue, turned), saturation, value])
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def _purify(image: np.ndarray, factor: float) -> np.ndarray:
    hue, saturation, value = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL))
    hsv = cv2.merge([hue, _table(saturation, factor * np.arange(256)), value])
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def _blend(image: np.ndarray, center: float, factor: float) -> np.ndarray:
    return _table(image, center + factor * (np.arange(256) - center))


def _table(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    """`image` with every grey level replaced by its of `values`, rounded to uint8."""
    return cv2.LUT(image, np.clip(np.rint(values), 0, 255).astype(np.uint8))
