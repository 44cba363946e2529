"""Joint transforms of image, label and boundary: uint8 until normalisation, which comes last.

Randomness comes only from the numpy Generator that is handed in.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from datasets.boundary import label_boundary

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

COLOR_RANGE = 0.4  # brightness, contrast and saturation are multiplied by 1 +- this
HUE_RANGE = 18  # of 256 steps around the circle


@dataclass
class Sample:
    """One scene.

    image: (H, W, 3) uint8 RGB; (3, H, W) float32 once normalised.
    label: (H, W) uint8 class indices, or None.
    boundary: (H, W) uint8 0/1, or None.
    """

    image: np.ndarray
    label: np.ndarray | None = None
    boundary: np.ndarray | None = None


class Normalize:
    """(H, W, 3) uint8 RGB -> (3, H, W) float32: (value / 255 - mean) / std."""

    def __init__(
        self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
    ) -> None:
        values = np.arange(256) / 255
        self.tables = [
            ((values - m) / s).astype(np.float32) for m, s in zip(mean, std, strict=True)
        ]

    def __call__(self, image: np.ndarray) -> np.ndarray:
        out = np.empty((3, *image.shape[:2]), np.float32)
        for plane, table, target in zip(cv2.split(image), self.tables, out, strict=True):
            cv2.LUT(plane, table, target)
        return out


class TrainTransform:
    """Random scale, crop with padding, flip, colour, then normalisation.

    The crop is cut out of the source before scaling. Differs from the published loaders: they
    scale the whole image first; here window positions are whole source pixels, and the scale is
    met to within half a pixel of the crop. Label and boundary are scaled by nearest neighbour.

    Args:
        crop_size: (height, width) of every result.
        scale_range: lowest and highest factor; (1, 1) = none.
        scale_step: factors in steps of this, both ends included; 0 = continuous. PIDNet: (0.5, 2.1)
            with step 0.1; RTFormer: (0.5, 2.0) with step 0.25.
        base_size: factor 1 brings the long side to this many pixels; 0 = to its own length.
        flip: mirror every second sample.
        color: brightness, contrast, saturation (factors in [0.6, 1.4]) and hue (+-18 of 256),
            each with probability 0.5, in random order, as in the RTFormer recipe.
        pad_value: where a scaled image does not fill the crop (right and below), 0..255, rounded;
            PIDNet pads with 0, RTFormer with 127.5. The label is `ignore_label` there.
        boundary: also make the boundary target, from the unscaled label.
        ignore_label: of the padding.
        mean, std: of the normalisation.
    """

    def __init__(
        self,
        crop_size: tuple[int, int],
        *,
        scale_range: tuple[float, float] = (0.5, 2.0),
        scale_step: float = 0.0,
        base_size: int = 0,
        flip: bool = True,
        color: bool = False,
        pad_value: float = 0,
        boundary: bool = False,
        ignore_label: int = 255,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        low, high = scale_range
        if len(crop_size) != 2 or min(crop_size) < 1:
            raise ValueError(f"crop size is {crop_size}; accepted: (height, width), both above 0")
        if not 0 < low <= high:
            raise ValueError(f"scale range is {scale_range}; accepted: 0 < lowest <= highest")
        if scale_step < 0 or base_size < 0:
            raise ValueError(
                f"scale step {scale_step} and base size {base_size} must not be below 0"
            )
        if not 0 <= pad_value <= 255:
            raise ValueError(f"pad value is {pad_value}; accepted: 0..255")
        self.crop_size = (int(crop_size[0]), int(crop_size[1]))
        self.scale_range, self.scale_step, self.base_size = (low, high), scale_step, base_size
        self.flip, self.color, self.boundary = flip, color, boundary
        self.pad_value, self.ignore_label = round(pad_value), ignore_label
        self.normalize = Normalize(mean, std)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        height, width = sample.image.shape[:2]
        scale = self.draw_factor(rng) * self.base_scale((height, width))
        rows, out_rows = _span(height, self.crop_size[0], scale)
        columns, out_columns = _span(width, self.crop_size[1], scale)
        top = int(rng.integers(height - rows + 1))
        left = int(rng.integers(width - columns + 1))
        mirrored = bool(rng.random() < 0.5) and self.flip
        size = (out_rows, out_columns)

        def cut(array: np.ndarray, interpolation: int, fill: int) -> np.ndarray:
            return self._fit(
                array[top : top + rows, left : left + columns], size, interpolation, fill
            )

        image = cut(sample.image, cv2.INTER_LINEAR, self.pad_value)
        label, boundary = sample.label, sample.boundary
        if label is not None:
            if self.boundary:
                boundary = label_boundary(label, (top, left, rows, columns))
                boundary = self._fit(boundary, size, cv2.INTER_NEAREST, 0)
            label = cut(label, cv2.INTER_NEAREST, self.ignore_label)
        if mirrored:
            image, label, boundary = (_mirror(array) for array in (image, label, boundary))
        if self.color:
            image = distort_color(image, rng)
        return Sample(self.normalize(image), label, boundary)

    def draw_factor(self, rng: np.random.Generator) -> float:
        """A random scale factor, before `base_size`."""
        low, high = self.scale_range
        if self.scale_step:
            steps = int((high - low) / self.scale_step + 1e-6)
            return low + self.scale_step * int(rng.integers(steps + 1))
        return float(rng.uniform(low, high))

    def base_scale(self, size: tuple[int, int]) -> float:
        """What factor 1 does to an image of `size`."""
        return self.base_size / max(size) if self.base_size else 1.0

    def _fit(
        self, part: np.ndarray, size: tuple[int, int], interpolation: int, fill: int
    ) -> np.ndarray:
        if part.shape[:2] != size:
            part = cv2.resize(part, size[::-1], interpolation=interpolation)
        below, right = self.crop_size[0] - size[0], self.crop_size[1] - size[1]
        if below or right:
            border = (fill,) * 3
            part = cv2.copyMakeBorder(part, 0, below, 0, right, cv2.BORDER_CONSTANT, value=border)
        return np.ascontiguousarray(part)


class EvalTransform:
    """The whole image, normalised; the label as it is.

    Args:
        size: (height, width) to scale the image to, or the length of its long side (the ratio is
            kept, never enlarged beyond need of rounding); None = as it is. Labels keep their size.
        mean, std: of the normalisation.
    """

    def __init__(
        self,
        size: tuple[int, int] | int | None = None,
        *,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        sides = (size,) if isinstance(size, int) else size or (1,)
        if min(sides) < 1:
            raise ValueError(
                f"evaluation size is {size}; accepted: (height, width) above 0, or None"
            )
        self.size = size
        self.normalize = Normalize(mean, std)

    def __call__(self, sample: Sample, rng: np.random.Generator | None = None) -> Sample:
        image = sample.image
        size = self.size or image.shape[:2]
        if isinstance(size, int):
            factor = size / max(image.shape[:2])
            size = (round(image.shape[0] * factor), round(image.shape[1] * factor))
        if image.shape[:2] != tuple(size):
            image = cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
        return Sample(self.normalize(image), sample.label, sample.boundary)


def distort_color(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brightness, contrast, saturation and hue, each with probability 0.5, in random order."""
    operations = (_brightness, _contrast, _saturation, _hue)
    for position in rng.permutation(len(operations)):
        amount = rng.uniform(-1, 1)
        if rng.random() < 0.5:
            image = operations[position](image, amount)
    return image


def _brightness(image: np.ndarray, amount: float) -> np.ndarray:
    return _blend(image, 0.0, 1 + COLOR_RANGE * amount)


def _contrast(image: np.ndarray, amount: float) -> np.ndarray:
    mean = cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0]
    return _blend(image, mean, 1 + COLOR_RANGE * amount)


def _saturation(image: np.ndarray, amount: float) -> np.ndarray:
    factor = 1 + COLOR_RANGE * amount
    gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(image, factor, gray, 1 - factor, 0)


def _hue(image: np.ndarray, amount: float) -> np.ndarray:
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    shift = round(HUE_RANGE * amount)
    turned = ((np.arange(256) + shift) % 256).astype(np.uint8)
    hsv[..., 0] = cv2.LUT(np.ascontiguousarray(hsv[..., 0]), turned)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def _blend(image: np.ndarray, center: float, factor: float) -> np.ndarray:
    values = center + factor * (np.arange(256) - center)
    return cv2.LUT(image, np.clip(np.rint(values), 0, 255).astype(np.uint8))


def _mirror(array: np.ndarray | None) -> np.ndarray | None:
    return None if array is None else cv2.flip(array, 1)


def _span(length: int, crop: int, scale: float) -> tuple[int, int]:
    """(source pixels, result pixels) along one axis: the crop, or less where the image ends."""
    scaled = max(1, int(length * scale + 0.5))
    if scaled <= crop:
        return length, scaled
    return min(length, max(1, round(crop / scale))), crop
