"""Random brightness, contrast, saturation and hue of RTFormer's recipe: drawn, then applied."""

from typing import NamedTuple

import cv2
import numpy as np

COLOR_RANGE = 0.4  # brightness, contrast and saturation are multiplied by 1 +- this
HUE_RANGE = 18  # of 256 steps around the circle
OPERATIONS = ("brightness", "contrast", "saturation", "hue")


class ColorChange(NamedTuple):
    """One step of a colour change.

    operation: one of OPERATIONS.
    amount: -1..1, of COLOR_RANGE or HUE_RANGE.
    """

    operation: str
    amount: float

    @property
    def factor(self) -> float:
        """What brightness, contrast and saturation multiply by."""
        return 1 + COLOR_RANGE * self.amount

    @property
    def turn(self) -> int:
        """What hue adds, of 256 steps around the circle."""
        return round(HUE_RANGE * self.amount)


def draw_color(rng: np.random.Generator) -> tuple[ColorChange, ...]:
    """The four operations in random order, each with probability 0.5."""
    changes = []
    for position in rng.permutation(len(OPERATIONS)):
        amount = float(rng.uniform(-1, 1))
        if rng.random() < 0.5:
            changes.append(ColorChange(OPERATIONS[position], amount))
    return tuple(changes)


def recolor(image: np.ndarray, changes: tuple[ColorChange, ...]) -> np.ndarray:
    """Apply `changes` in their order to (H, W, 3) uint8 RGB; rounded to uint8 after each.

    Brightness scales towards black, contrast towards the mean gray, saturation towards each
    pixel's own gray; hue turns.
    """
    for change in changes:
        if change.operation == "brightness":
            image = _blend(image, 0.0, change.factor)
        elif change.operation == "contrast":
            mean = cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0]
            image = _blend(image, mean, change.factor)
        elif change.operation == "saturation":
            gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
            image = cv2.addWeighted(image, change.factor, gray, 1 - change.factor, 0)
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


def _blend(image: np.ndarray, center: float, factor: float) -> np.ndarray:
    values = center + factor * (np.arange(256) - center)
    return cv2.LUT(image, np.clip(np.rint(values), 0, 255).astype(np.uint8))
