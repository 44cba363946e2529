"""What every segmentation network of this project looks like from outside."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor, nn

from .errors import InputError
from .layers.resize import resize


class TrainOutputs(NamedTuple):
    """What `forward_train` gives to the loss, all at the network's own resolutions.

    logits: N, num_classes, h, w, equal to what `forward` returns.
    aux: logits of the auxiliary heads, each N, num_classes, h_i, w_i.
    boundary: boundary logit, N, 1, h, w, for families that have one.
    """

    logits: Tensor
    aux: tuple[Tensor, ...] = ()
    boundary: Tensor | None = None


class SegModel(nn.Module):
    """Base class. `forward` is the deployed graph; `forward_train` adds the training heads.

    Class attributes a family states:
        num_aux: number of auxiliary outputs of `forward_train`.
        has_boundary: whether `forward_train` gives a boundary logit, which needs its target.
        output_stride: input pixels per logit pixel.
        size_divisor: height and width must be multiples of this (1: any size), which is also what
            images are padded to; a network that takes others replaces `check_size`.
        align_corners: convention of `upsample`, the last resize to the image.
        training_only: names of submodules that inference does not use; `fuse` drops them.
        lr_multipliers: learning-rate factor of the parameters below a submodule (others: 1).
        no_decay: names of parameters, or of what holds them, that weight decay leaves alone.
        learns_by: what the loss compares with the label: "pixels", class scores of every pixel
            (`TrainOutputs`), or "queries", the classes and masks that queries predict.
    """

    num_aux = 0
    has_boundary = False
    output_stride = 8
    size_divisor = 1
    align_corners = False
    training_only: tuple[str, ...] = ()
    lr_multipliers: Mapping[str, float] = MappingProxyType({})
    no_decay: tuple[str, ...] = ()
    learns_by = "pixels"
    architecture = ""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_outputs = num_classes  # rows of the last layer of the main head
        self.options: dict = {}

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes, H / output_stride, W / output_stride) of images N, 3, H, W."""
        raise NotImplementedError(f"{type(self).__name__} defines no forward")

    def forward_train(self, x: Tensor) -> TrainOutputs:
        """Logits and the outputs of the training heads."""
        raise NotImplementedError(f"{type(self).__name__} defines no forward_train")

    def upsample(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits resized bilinearly to `size` (height, width)."""
        return resize(logits, size, align_corners=self.align_corners)

    def check_size(self, height: int, width: int) -> None:
        """Raise ValueError, naming the size to pad to, if the network cannot take this one."""
        d = self.size_divisor
        if height % d or width % d:
            raise InputError(
                f"input {height}x{width} is not a multiple of {d}, required by "
                f"{self.architecture or type(self).__name__}; pad to "
                f"{-(-height // d) * d}x{-(-width // d) * d}"
            )
