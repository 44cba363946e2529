"""A trained network as a function from a picture to a class map."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .class_map import class_map
from .deploy import Prepared, prepare_for_inference
from .distributed import choose_device, has_mps
from .errors import InputError
from .inference import Network, predict_logits

LEAST_SIDE = 64  # pixels that a network is given at least; smaller pictures are padded


class ImageTransform(Protocol):
    """What is needed of a transform; `datasets.EvalTransform` has it."""

    def image(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 RGB -> (3, h, w) float32, scaled and normalised."""

    def target_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) that a picture of `size` is scaled to."""


class Predictor:
    """Call it with a picture; see `__call__`.

    Attributes:
        names: of the classes, in the order of their ids.
        palette: their colours, (C, 3) uint8 RGB.
        deployment: where and how the network runs.
    """

    def __init__(
        self,
        network: Network,
        transform: ImageTransform,
        names: Sequence[str],
        palette: Sequence[tuple[int, int, int]],
        *,
        device: torch.device | str = "auto",
        precision: str = "fp32",
        runtime: str = "torch",
        size: tuple[int, int] | None = None,
        slide: tuple[int, int] | None = None,
    ) -> None:
        """
        Args:
            network: in eval mode, deployed form (`models.fuse`); it is copied.
            device: "auto" is the first CUDA device, else a Mac's GPU, else the CPU.
            precision, runtime: as in `prepare_for_inference`.
            size: (height, width) of the pictures to come, where all have one; it is prepared for
                here.
            slide: (height, width) of windows by which pictures are covered; None = whole pictures.

        Raises:
            ValueError: as `prepare_for_inference`.
        """
        if slide is not None and min(slide) < 1:
            raise InputError(f"slide is {slide}; accepted: height and width of a window, above 0")
        self.names, self.palette = tuple(names), np.array(palette, np.uint8)
        self.transform, self.slide = transform, slide
        if str(device) == "auto":
            device = choose_device(0, cuda=torch.cuda.is_available(), mps=has_mps())
        divisor = network.size_divisor
        if size is not None:
            size = padded_size(transform.target_size(size), divisor) if slide is None else slide
        self._classes, self.deployment = prepare_for_inference(
            network,
            device=device,
            precision=precision,
            runtime=runtime,
            size=size,
            output="classes" if slide is None else "logits",
        )
        self._logits = self._classes.giving("logits")

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Class ids (H, W) uint8 of a picture (H, W, 3) uint8 RGB, of any size.

        What the network cannot take is padded at the bottom and right with the mean colour.

        Raises:
            ValueError: not such a picture.
        """
        if getattr(image, "dtype", None) != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            found = f"{getattr(image, 'dtype', type(image).__name__)} {np.shape(image)}"
            raise InputError(f"the picture is {found}; accepted: RGB, (H, W, 3), uint8")
        if not image.size:
            raise InputError(f"the picture is {image.shape}; it has no pixel")
        size = image.shape[:2]
        scaled = torch.from_numpy(self.transform.image(image))[None]
        if self.slide is None and scaled.shape[2:] == size:
            classes = self._classes(padded(scaled, self._classes))
            return classes[0, : size[0], : size[1]].cpu().numpy()
        return self._by_logits(scaled, size).cpu().numpy()

    @torch.inference_mode()
    def _by_logits(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """As evaluation scores it: logits at the size of `image`, brought to `size` from there."""
        height, width = image.shape[2:]
        views = {"mode": "slide", "crop_size": self.slide} if self.slide else {}
        image = padded(image, self._logits)
        logits = predict_logits(self._logits, image, pad=True, **views)[..., :height, :width]
        return class_map(logits, size)[0]

    def colorize(self, classes: np.ndarray) -> np.ndarray:
        """Class ids (H, W) -> RGB picture (H, W, 3), uint8."""
        return self.palette[classes]

    def overlay(
        self, image: np.ndarray, classes: np.ndarray | None = None, opacity: float = 0.5
    ) -> np.ndarray:
        """The picture under the colours of its classes, RGB (H, W, 3) uint8.

        Args:
            classes: what this has given for `image`; None computes it.
            opacity: of the colours, 0..1.
        """
        classes = self(image) if classes is None else classes
        return cv2.addWeighted(self.colorize(classes), opacity, image, 1 - opacity, 0)

    def shares(self, classes: np.ndarray) -> Mapping[str, float]:
        """Each class's share of the pixels, 0..1; all of them, in their order."""
        counts = np.bincount(classes.ravel(), minlength=len(self.names))
        return {
            name: int(count) / classes.size for name, count in zip(self.names, counts, strict=True)
        }


def padded_size(size: tuple[int, int], divisor: int) -> tuple[int, int]:
    """The least (height, width) not below `size` that every network of this divisor can take."""
    height, width = (max(side, LEAST_SIDE) for side in size)
    return height + -height % divisor, width + -width % divisor


def padded(image: Tensor, network: Prepared) -> Tensor:
    """A normalised image with zeros, the mean colour, at the bottom and right."""
    height, width = image.shape[2:]
    rows, columns = padded_size((height, width), network.size_divisor)
    return F.pad(image, (0, columns - width, 0, rows - height))
