"""From logits at a network's stride to class ids at the image's size, without full-size logits."""

import functools
import importlib.util
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import InputError

STRIP = 2**21  # logits of an image that are in memory at once; they stay in a core's cache
MOST_ROWS = 65535  # of a grid of CUDA blocks


def class_map(logits: Tensor, size: tuple[int, int], *, align_corners: bool = False) -> Tensor:
    """The strongest class of every pixel after a bilinear resize to `size` (height, width).

    Equal to `interpolate(logits, size).argmax(1)` but where classes are as strong as rounding can
    tell. Of equally strong classes the first one wins.

    Args:
        logits: N, C, h, w, at most 256 classes.

    Returns:
        N, height, width, uint8.

    Raises:
        ValueError: more classes than a byte holds.
    """
    if logits.shape[1] > 256:
        raise InputError(f"{logits.shape[1]} classes; class maps of 8 bits hold 256")
    if logits.is_cuda and size[0] <= MOST_ROWS and has_triton(logits.device):
        from .class_map_triton import class_map_triton

        with torch.cuda.device(logits.device):
            return class_map_triton(logits, size, align_corners)
    return class_map_in_strips(logits, size, align_corners)


@functools.cache
def has_triton(device: torch.device) -> bool:
    """Whether kernels can be compiled for a GPU, as they can with PyTorch for CUDA on Linux.

    Tried once: it needs Triton, a C compiler and a card that is not too old.
    """
    if importlib.util.find_spec("triton") is None:
        return False
    from .class_map_triton import class_map_triton

    try:
        with torch.cuda.device(device):
            class_map_triton(torch.zeros(1, 2, 2, 2, device=device), (4, 4), False)
    except Exception:  # noqa: BLE001  (whatever it is that is missing)
        return False
    return True


def class_map_in_strips(logits: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """`class_map` for any device: rows are interpolated at the logits' width, some at a time."""
    logits = logits.float().contiguous(memory_format=torch.channels_last)  # faster than bfloat16
    classes = logits.new_empty(logits.shape[0], *size, dtype=torch.uint8)
    for top, above, below, weight in _strips(logits, size, align_corners):
        rows = logits[:, :, above]
        rows = rows + (logits[:, :, below] - rows) * weight
        rows = rows.contiguous(memory_format=torch.channels_last)
        wide = (rows.shape[2], size[1])
        strip = F.interpolate(rows, size=wide, mode="bilinear", align_corners=align_corners)
        classes[:, top : top + wide[0]] = strip.max(1)[1]
    return classes


def _strips(
    logits: Tensor, size: tuple[int, int], align_corners: bool
) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """First row of a strip of the result; for its rows those above and below, and the weight of
    the latter (rows, 1)."""
    (height, width), low = size, logits.shape[2]
    place = torch.arange(height, dtype=torch.float32, device=logits.device)
    if align_corners:
        place = place * ((low - 1) / max(1, height - 1))
    else:
        place = ((place + 0.5) * (low / height) - 0.5).clamp_(min=0)
    above = place.long().clamp_(max=low - 1)
    below = (above + 1).clamp_(max=low - 1)
    weight = (place - above)[:, None]
    rows = max(1, STRIP // (logits.shape[0] * logits.shape[1] * width * logits.element_size()))
    for top in range(0, height, rows):
        part = slice(top, top + rows)
        yield top, above[part], below[part], weight[part]
