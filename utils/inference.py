"""From an image to logits at the image's size: whole or by windows, at one or several views."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import InputError
from .resize import resize

MODES = ("whole", "slide")


class Network(Protocol):
    """What is needed of a network; `models.SegModel` has it."""

    size_divisor: int

    def __call__(self, x: Tensor) -> Tensor:
        """Logits at the network's own resolution."""

    def upsample(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits resized to (height, width)."""

    def check_size(self, height: int, width: int) -> None:
        """Raise ValueError for a size that the network cannot take."""


@torch.no_grad()
def predict_logits(
    model: Network,
    image: Tensor,
    *,
    flip: bool = False,
    scales: Sequence[float] = (1.0,),
    mode: str = "whole",
    crop_size: tuple[int, int] | None = None,
    stride: tuple[int, int] | None = None,
    pad: bool = False,
    window_batch: int = 4,
) -> Tensor:
    """Logits N, C, H, W in float32 at the size of `image`.

    One view gives the network's logits as they are. Several views (flip, scales) are combined as
    the mean of their softmax probabilities, which no logit can overflow, and returned as the
    logarithm of that mean: argmax, and softmax, of the result are those of the mean.

    Args:
        model: in eval mode, on the device and in the precision of `image`.
        image: normalised batch N, 3, H, W.
        flip: add the mirrored image of every scale.
        scales: factors of height and width; sizes are rounded to whole pixels.
        mode: "whole", or "slide": windows of `crop_size` at every `stride`, the last ones moved
            back to end at the border; logits of overlapping windows are averaged.
        crop_size: (height, width) of a window, cut to the image where that is smaller.
        stride: (down, right) steps between windows, two thirds of the window if not given.
        pad: extend what the network cannot take, at the bottom and right with the mean colour
            (0 after normalisation), and cut the logits back; without it `model.check_size` raises.
        window_batch: windows per forward pass, each of N images.

    Raises:
        ValueError: a bad setting, or a size that the network cannot take without padding.
    """
    window = _window(mode, crop_size, stride)
    if not scales or min(scales) <= 0:
        raise InputError(f"scales are {tuple(scales)}; at least one, all positive, are needed")
    size = image.shape[-2:]
    views = []
    for scale in scales:
        view = resize(image, tuple(max(1, round(side * scale)) for side in size))
        views += [(view, False), (view, True)] if flip else [(view, False)]

    total = None
    for view, mirrored in views:
        logits = _view_logits(model, view.flip(-1) if mirrored else view, window, pad, window_batch)
        logits = model.upsample(logits.flip(-1) if mirrored else logits, size)
        if len(views) == 1:
            return logits
        probability = logits.softmax(1)
        total = probability if total is None else total.add_(probability)
    return (total / len(views)).clamp_min_(torch.finfo(torch.float32).tiny).log_()


Window = tuple[tuple[int, int], tuple[int, int]]  # size, stride


def _window(mode: str, crop: Sequence[int] | None, stride: Sequence[int] | None) -> Window | None:
    if mode not in MODES:
        raise InputError(f"inference mode is {mode!r}; it must be one of {', '.join(MODES)}")
    if mode == "whole":
        return None
    if crop is None or min(crop) < 1:
        raise InputError(f"crop_size is {crop}; sliding windows need (height, width)")
    stride = tuple(stride) if stride else tuple(max(1, 2 * side // 3) for side in crop)
    if any(not 0 < step <= side for step, side in zip(stride, crop, strict=True)):
        raise InputError(
            f"stride {stride} must lie between 1 and the crop size {tuple(crop)}; "
            "larger steps would leave pixels out"
        )
    return tuple(crop), stride


def _view_logits(
    model: Network, image: Tensor, window: Window | None, pad: bool, batch: int
) -> Tensor:
    if window is None:
        return _whole(model, image, pad)
    return _slide(model, image, window, pad, batch)


def _whole(model: Network, image: Tensor, pad: bool) -> Tensor:
    """Logits at the size of `image`, float32."""
    height, width = image.shape[-2:]
    if pad:
        divisor = model.size_divisor
        image = F.pad(image, (0, -width % divisor, 0, -height % divisor))
    model.check_size(*image.shape[-2:])
    logits = model.upsample(model(image).float(), tuple(image.shape[-2:]))
    return logits[..., :height, :width]


def _slide(model: Network, image: Tensor, window: Window, pad: bool, batch: int) -> Tensor:
    """Logits at the size of `image`, averaged over the windows that see a pixel."""
    height, width = image.shape[-2:]
    (crop_h, crop_w), (step_h, step_w) = window
    crop_h, crop_w = min(crop_h, height), min(crop_w, width)
    corners = [
        (top, left)
        for top in _starts(height, crop_h, step_h)
        for left in _starts(width, crop_w, step_w)
    ]
    total, seen = None, image.new_zeros(1, 1, height, width, dtype=torch.float32)
    for chunk in _chunks(corners, batch):
        windows = [image[..., y : y + crop_h, x : x + crop_w] for y, x in chunk]
        logits = _whole(model, torch.cat(windows), pad)
        if total is None:
            total = logits.new_zeros(len(image), logits.shape[1], height, width)
        for (top, left), part in zip(chunk, logits.split(len(image)), strict=True):
            total[..., top : top + crop_h, left : left + crop_w] += part
            seen[..., top : top + crop_h, left : left + crop_w] += 1
    return total / seen


def _starts(length: int, crop: int, step: int) -> list[int]:
    """First pixels of the windows along one side; the last window ends at the border."""
    return [*range(0, length - crop, step), length - crop]


def _chunks(items: list, size: int) -> Iterator[list]:
    for first in range(0, len(items), size):
        yield items[first : first + size]
