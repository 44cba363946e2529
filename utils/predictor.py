"""A trained network as a function from a picture to a class map."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .class_map import class_map
from .deploy import Prepared, prepare_for_inference
from .devices import named_device
from .errors import InputError
from .inference import Network, predict_logits

LEAST_SIDE = 64  # pixels that a network is given at least; smaller pictures are padded


class ImageTransform(Protocol):
    """What is needed of a transform; `datasets.EvalTransform` has it."""

    def image(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 RGB -> (3, h, w) float32, scaled and normalised."""

    def target_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) that a picture of `size` is scaled to."""


class Fed(NamedTuple):
    """A picture on its way into the network.

    pixels: 1, 3, h, w, float32, scaled and normalised.
    size: (height, width) of the picture.
    """

    pixels: Tensor
    size: tuple[int, int]


class Predictor:
    """Call it with a picture; see `__call__`. `prepare` and `run` are its two halves, for programs
    that prepare the next picture in another thread.

    Attributes:
        names: of the classes, in the order of their ids.
        palette: their colours, (C, 3) uint8 RGB.
        device: where the network runs.
        deployment: where and how it does.
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
            device: as in `named_device`.
            precision, runtime: as in `prepare_for_inference`.
            size: (height, width) of the pictures to come, where all have one; it is prepared for
                here.
            slide: (height, width) of windows by which pictures are covered; None = whole pictures.

        Raises:
            ValueError: as `named_device` and `prepare_for_inference`.
        """
        if slide is not None and min(slide) < 1:
            raise InputError(f"slide is {slide}; accepted: height and width of a window, above 0")
        self.names, self.palette = tuple(names), np.array(palette, np.uint8)
        self._colors = np.zeros((256, 1, 3), np.uint8)
        self._colors[: len(self.palette), 0] = self.palette
        self.transform, self.slide = transform, slide
        self.device = device if isinstance(device, torch.device) else named_device(device)
        divisor = network.size_divisor
        if size is not None:
            size = padded_size(transform.target_size(size), divisor) if slide is None else slide
        self._classes, self.deployment = prepare_for_inference(
            network,
            device=self.device,
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
        return self.run(self.prepare(image)).cpu().numpy()

    def prepare(self, image: np.ndarray) -> Fed:
        """What `run` takes, made on the CPU; any number of threads may do so at once.

        Raises:
            ValueError: as `__call__`.
        """
        if getattr(image, "dtype", None) != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            found = f"{getattr(image, 'dtype', type(image).__name__)} {np.shape(image)}"
            raise InputError(f"the picture is {found}; accepted: RGB, (H, W, 3), uint8")
        if not image.size:
            raise InputError(f"the picture is {image.shape}; it has no pixel")
        # No more of PyTorch than this: its threads beside those of the network are more than there
        # are cores, and OpenMP then lets all of them sleep between operations.
        pixels = torch.from_numpy(self.transform.image(image))[None]
        if self.device.type == "cuda":
            pixels = pixels.pin_memory()
        return Fed(pixels, image.shape[:2])

    @torch.inference_mode()
    def run(self, fed: Fed) -> Tensor:
        """Class ids (H, W) uint8 of a prepared picture, where the network is.

        A GPU may still be at them; `.cpu()` waits.
        """
        pixels = fed.pixels.to(self.device, non_blocking=self.device.type == "cuda")
        scaled, pixels = tuple(pixels.shape[2:]), padded(pixels, self._classes)
        if self.slide is None and scaled == fed.size:
            height, width = fed.size
            return self._classes(pixels)[0, :height, :width].contiguous()
        # As evaluation scores it: logits at the size of the image, brought to `size` from there.
        views = {"mode": "slide", "crop_size": self.slide} if self.slide else {}
        height, width = scaled
        logits = predict_logits(self._logits, pixels, pad=True, **views)[..., :height, :width]
        return class_map(logits, fed.size)[0]

    def colorize(self, classes: np.ndarray) -> np.ndarray:
        """Class ids (H, W) -> RGB picture (H, W, 3), uint8."""
        return cv2.applyColorMap(classes, self._colors)  # 9 times as fast as NumPy

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
