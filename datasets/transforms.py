"""Joint transforms of image, label and boundary: uint8 until normalisation, which comes last.

Randomness comes only from the numpy Generator that is handed in.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from .boundary import label_boundary
from .color import ColorChange, draw_color, recolor
from .errors import InputError
from .meta import DataError
from .mixing import Coarse, coarse_crop, largest_share
from .sampler import Draw

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
FLIPS = ("none", "random", "alternate")
COLORS = ("none", "jitter", "photometric")
CROP_REDRAWS = 10


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


class Augmentation(NamedTuple):
    """What happens to one sample: everything that is random about it, drawn beforehand.

    The CPU and the device path both apply one of these, so that they give the same pixels.

    window: (top, left, rows, columns) of the source.
    size: (rows, columns) that the window is scaled to; the rest of the crop is padding.
    mirrored: left becomes right.
    color: colour changes in their order.
    """

    window: tuple[int, int, int, int]
    size: tuple[int, int]
    mirrored: bool
    color: tuple[ColorChange, ...] = ()


class Normalize:
    """(H, W, 3) uint8 RGB -> (3, H, W) float32: (value / 255 - mean) / std."""

    def __init__(
        self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
    ) -> None:
        self.mean, self.std = tuple(mean), tuple(std)
        values = np.arange(256) / 255
        self.tables = [
            ((values - m) / s).astype(np.float32) for m, s in zip(mean, std, strict=True)
        ]

    def __call__(self, image: np.ndarray) -> np.ndarray:
        # One table per channel: 7 times as fast as float arithmetic on the interleaved image.
        out = np.empty((3, *image.shape[:2]), np.float32)
        for plane, table, target in zip(cv2.split(image), self.tables, out, strict=True):
            cv2.LUT(plane, table, target)
        return out


class TrainTransform:
    """Random scale, crop with padding, flip, colour, then normalisation.

    The crop is cut out of the source before it is scaled. Differs from the published loaders,
    which scale the whole image first: a window begins and ends at whole source pixels, so that
    the scale is met to within half a source pixel per side.

    Args:
        crop_size: (height, width) of every result.
        scale_range: lowest and highest factor; (1, 1) = none.
        scale_step: factors lowest, lowest + step, ... up to the highest; 0 = continuous.
            PIDNet: (0.5, 2.1) by 0.1; RTFormer: (0.5, 2.0) by 0.25.
        base_size: factor 1 brings the long side to this many pixels; 0 = leaves it as it is.
        short_side: factor 1 brings the short side to this many pixels, or to fewer where the long
            side would exceed base_size; 0 = only base_size counts.
        scale_log: draw the factor evenly in its logarithm; without scale_step.
        flip: "random" (or True) mirrors every second sample, "alternate" those whose draw says so:
            each image in every other epoch; "none" (or False).
        color: "jitter" (or True; RTFormer) or "photometric" (mmsegmentation), see `draw_color`;
            "none" (or False).
        cat_max_ratio: a crop of which one class takes this share of the labelled pixels or more is
            drawn again, up to CROP_REDRAWS times; 1 = never. Seen as `mixing` says.
        cutmix: probability that the crops of a batch are pasted into one another.
        pad_value: where a scaled image does not fill the crop (right and below), 0..255, rounded;
            PIDNet pads with 0, RTFormer with 127.5. The label is `ignore_label` there, the
            boundary 0.
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
        short_side: int = 0,
        scale_log: bool = False,
        flip: bool | str = True,
        color: bool | str = False,
        cat_max_ratio: float = 1.0,
        cutmix: float = 0.0,
        pad_value: float = 0,
        boundary: bool = False,
        ignore_label: int = 255,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        if len(crop_size) != 2 or min(crop_size) < 1:
            raise InputError(f"crop size is {crop_size}; accepted: height and width, both above 0")
        if len(scale_range) != 2 or not 0 < scale_range[0] <= scale_range[1]:
            raise InputError(f"scale range is {scale_range}; accepted: 0 < lowest <= highest")
        if min(scale_step, base_size, short_side) < 0:
            raise InputError(
                f"scale step {scale_step}, base size {base_size}, short side {short_side}; "
                "accepted: 0 and above"
            )
        if not 0 <= pad_value <= 255:
            raise InputError(f"pad value is {pad_value}; accepted: 0..255")
        flip = {True: "random", False: "none"}.get(flip, flip)
        color = {True: "jitter", False: "none"}.get(color, color)
        for name, value, kinds in (("flip", flip, FLIPS), ("color", color, COLORS)):
            if value not in kinds:
                raise InputError(f"{name} is {value!r}; accepted: {', '.join(kinds)}")
        if scale_log and scale_step:
            raise InputError(f"scale_log with scale step {scale_step}; one of them is accepted")
        self.crop_size = (int(crop_size[0]), int(crop_size[1]))
        self.scale_range, self.scale_step = tuple(scale_range), scale_step
        self.base_size, self.short_side = base_size, short_side
        self.scale_log, self.flip, self.color, self.boundary = scale_log, flip, color, boundary
        self.cat_max_ratio, self.cutmix = cat_max_ratio, cutmix
        self.pad_value, self.ignore_label = round(pad_value), ignore_label
        self.normalize = Normalize(mean, std)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Transform one sample; a boundary target that it brings along is not used."""
        return self.apply(sample, self.draw(sample.image.shape[:2], rng))

    def draw(
        self,
        size: tuple[int, int],
        rng: np.random.Generator,
        *,
        thumb: np.ndarray | None = None,
        mirror: bool = False,
        calm: bool = False,
    ) -> Augmentation:
        """Everything random about a sample of `size` (height, width).

        Args:
            thumb: `thumbnail` of its label, where the transform `looks_at_labels`.
            mirror: what flip "alternate" does.
            calm: `calm_factor` and no colour change.
        """
        factor = self.calm_factor(size) if calm else self.draw_factor(rng)
        scale = factor * self.base_scale(size)
        rows, out_rows = _span(size[0], self.crop_size[0], scale)
        columns, out_columns = _span(size[1], self.crop_size[1], scale)
        for _ in range(1 + CROP_REDRAWS):
            top = int(rng.integers(size[0] - rows + 1))
            left = int(rng.integers(size[1] - columns + 1))
            window = (top, left, rows, columns)
            if thumb is None or self.cat_max_ratio >= 1:
                break
            if largest_share(thumb, window, self.ignore_label) < self.cat_max_ratio:
                break
        mirrored = bool(rng.random() < 0.5) and self.flip == "random"
        changes = () if calm or self.color == "none" else draw_color(rng, self.color)
        mirrored = mirror if self.flip == "alternate" else mirrored
        return Augmentation(window, (out_rows, out_columns), mirrored, changes)

    @property
    def looks_at_labels(self) -> bool:
        """Whether drawing needs thumbnails of the labels."""
        return self.cat_max_ratio < 1 or self.cutmix > 0

    def draw_for(
        self, draw: Draw, size: tuple[int, int], thumb: np.ndarray | None
    ) -> tuple[Augmentation, Coarse | None]:
        """What happens to the sample `draw`, and what CutMix is to know of it, if it may come."""
        augmentation = self.draw(
            size,
            np.random.default_rng(draw.seed),
            thumb=thumb,
            mirror=draw.mirror,
            calm=draw.calm,
        )
        if not self.cutmix or draw.calm or thumb is None:
            return augmentation, None
        place = (*augmentation[:3], self.crop_size, self.ignore_label)
        return augmentation, Coarse(draw.seed, coarse_crop(thumb, *place))

    def apply(self, sample: Sample, augmentation: Augmentation) -> Sample:
        """Carry out what was drawn."""
        image, label, edge = cut(sample, augmentation.window, self.boundary)
        size = augmentation.size
        image = self._fit(image, size, cv2.INTER_LINEAR, self.pad_value)
        if label is not None:
            label = self._fit(label, size, cv2.INTER_NEAREST, self.ignore_label)
        if edge is not None:
            edge = self._fit(edge, size, cv2.INTER_NEAREST, 0)
        if augmentation.mirrored:
            image, label, edge = (_mirror(array) for array in (image, label, edge))
        return Sample(self.normalize(recolor(image, augmentation.color)), label, edge)

    def calm_factor(self, size: tuple[int, int]) -> float:
        """1 for an image of `size` (height, width) that fills the crop so, else the factor at which
        it does; or the nearest that is allowed."""
        base = self.base_scale(size)
        fills = max(crop / (side * base) for crop, side in zip(self.crop_size, size, strict=True))
        return float(min(max(1.0, fills, self.scale_range[0]), self._highest()))

    def draw_factor(self, rng: np.random.Generator) -> float:
        """A random scale factor."""
        low, high = self.scale_range
        if self.scale_log:
            return float(np.exp(rng.uniform(np.log(low), np.log(high))))
        if self.scale_step:
            return low + self.scale_step * int(rng.integers(self._steps() + 1))
        return float(rng.uniform(low, high))

    def base_scale(self, size: tuple[int, int]) -> float:
        """What factor 1 does to an image of `size` (height, width)."""
        return scale_to_sides(size, self.short_side, self.base_size)

    def largest_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) that an image of `size` has after the largest scale."""
        scale = self._highest() * self.base_scale(size)
        return scaled(size[0], scale), scaled(size[1], scale)

    def _highest(self) -> float:
        low, high = self.scale_range
        return low + self.scale_step * self._steps() if self.scale_step else high

    def _steps(self) -> int:
        low, high = self.scale_range
        return int((high - low) / self.scale_step + 1e-6)

    def _fit(
        self, part: np.ndarray, size: tuple[int, int], interpolation: int, fill: int
    ) -> np.ndarray:
        """Scale `part` to `size` and pad it to the crop."""
        if part.shape[:2] != size:
            part = resized(part, size, interpolation)
        below, right = self.crop_size[0] - size[0], self.crop_size[1] - size[1]
        if below or right:
            border = (fill, fill, fill)
            part = cv2.copyMakeBorder(part, 0, below, 0, right, cv2.BORDER_CONSTANT, value=border)
        return np.ascontiguousarray(part)


def scale_to_sides(size: tuple[int, int], short_side: int, long_side: int) -> float:
    """The factor that brings `size` to these sides, the smaller of two; 0 = does not count."""
    factors = [
        target / side
        for target, side in zip((short_side, long_side), sorted(size), strict=True)
        if target
    ]
    return min(factors, default=1.0)


def check_crop(transform: TrainTransform, sizes: Iterable[tuple[int, int]]) -> None:
    """Refuse a crop that no image of `sizes` (height, width) fills, even at the largest scale.

    Every sample would then be partly padding. A single image that is too small is fine.

    Raises ValueError that names the largest crop that would be accepted.
    """
    reach = {size: transform.largest_size(size) for size in sizes}
    height, width = transform.crop_size
    if not reach or any(high >= height and wide >= width for high, wide in reach.values()):
        return
    (rows, columns), (high, wide) = max(reach.items(), key=lambda item: item[1][0] * item[1][1])
    raise InputError(
        f"crop {height}x{width} is larger than the images ({rows}x{columns}) even at the largest "
        f"scale ({high}x{wide}); accepted: at most {high}x{wide} (height x width)"
    )


def cut(
    sample: Sample, window: tuple[int, int, int, int], boundary: bool
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Image, label and, where asked for, boundary target of a window (top, left, rows, columns).

    Image and label are views of the source; the boundary target is made from the whole label's
    part around the window, and equals the same part of the whole label's target.
    """
    top, left, rows, columns = window
    part = (slice(top, top + rows), slice(left, left + columns))
    if sample.label is None:
        return sample.image[part], None, None
    edge = label_boundary(sample.label, window) if boundary else None
    return sample.image[part], sample.label[part], edge


def resized(part: np.ndarray, size: tuple[int, int], interpolation: int) -> np.ndarray:
    """`part` scaled to `size` (height, width). Raises DataError where that cannot be."""
    try:
        return cv2.resize(part, size[::-1], interpolation=interpolation)
    except (cv2.error, MemoryError, OverflowError) as error:
        (high, wide), reason = part.shape[:2], getattr(error, "err", None) or error
        raise DataError(
            f"a picture of {high}x{wide} cannot be scaled to {size[0]}x{size[1]} (height x width): "
            f"{' '.join(str(reason).split()) or 'out of memory'}"
        ) from None


def _mirror(array: np.ndarray | None) -> np.ndarray | None:
    return None if array is None else cv2.flip(array, 1)


def _span(length: int, crop: int, scale: float) -> tuple[int, int]:
    """(source pixels, result pixels) along one axis: the crop, or less where the image ends."""
    result = scaled(length, scale)
    if result <= crop:
        return length, result
    return min(length, max(1, round(crop / scale))), crop


def scaled(length: int, scale: float) -> int:
    return max(1, int(length * scale + 0.5))
