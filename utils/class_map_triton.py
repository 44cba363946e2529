"""`class_map` as one GPU kernel: every pixel reads four logits per class and writes one byte."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 256  # pixels of a row


@triton.jit
def _resize_and_choose(
    logits,
    chosen,
    classes,
    low_height,
    low_width,
    width,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    scale_y,
    scale_x,
    ALIGNED: tl.constexpr,
    SIZE: tl.constexpr,
):
    row, image, height = tl.program_id(1), tl.program_id(2), tl.num_programs(1)
    column = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    inside = column < width
    if ALIGNED:
        y, x = row * scale_y, column * scale_x
    else:
        y = tl.maximum((row + 0.5) * scale_y - 0.5, 0.0)
        x = tl.maximum((column + 0.5) * scale_x - 0.5, 0.0)
    top = tl.minimum(y.to(tl.int32), low_height - 1)
    left = tl.minimum(x.to(tl.int32), low_width - 1)
    down = tl.minimum(top + 1, low_height - 1) - top
    right = tl.minimum(left + 1, low_width - 1) - left
    y, x = y - top, x - left
    at = logits + image.to(tl.int64) * stride_n + top.to(tl.int64) * stride_h + left * stride_w
    below, beside = down * stride_h, right * stride_w
    best = tl.full((SIZE,), float("-inf"), tl.float32)
    choice = tl.zeros((SIZE,), tl.int32)
    for index in range(classes):
        a = tl.load(at, inside, 0.0).to(tl.float32)
        b = tl.load(at + beside, inside, 0.0).to(tl.float32)
        c = tl.load(at + below, inside, 0.0).to(tl.float32)
        d = tl.load(at + below + beside, inside, 0.0).to(tl.float32)
        value = (1 - y) * ((1 - x) * a + x * b) + y * ((1 - x) * c + x * d)
        better = value > best
        best = tl.where(better, value, best)
        choice = tl.where(better, index, choice)
        at += stride_c
    place = (image.to(tl.int64) * height + row) * width + column
    tl.store(chosen + place, choice.to(tl.uint8), inside)


def class_map_triton(logits: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """N, C, h, w in any layout to N, height, width, uint8; see `utils.class_map.class_map`."""
    images, classes, low_height, low_width = logits.shape
    height, width = size
    chosen = torch.empty(images, height, width, dtype=torch.uint8, device=logits.device)
    if align_corners:
        scale_y = (low_height - 1) / max(1, height - 1)
        scale_x = (low_width - 1) / max(1, width - 1)
    else:
        scale_y, scale_x = low_height / height, low_width / width
    grid = (triton.cdiv(width, BLOCK), height, images)
    _resize_and_choose[grid](
        logits,
        chosen,
        classes,
        low_height,
        low_width,
        width,
        *logits.stride(),
        scale_y,
        scale_x,
        ALIGNED=align_corners,
        SIZE=BLOCK,
    )
    return chosen
