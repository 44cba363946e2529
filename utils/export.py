"""A network as a file for a runtime: what is in its graph, what it says of itself, and the writers.

By default the graph takes a camera's frame and gives a class map; `FrameNetwork` states both.
`utils.gate` compares what the file computes with the network before it gets its name.
"""

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from .deploy import DTYPES
from .errors import InputError
from .inference import Network

FORMAT = "rtseg-export-1"
OUTPUTS = ("classes", "logits")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
MULTIPLE = 64  # of the sides of a dynamic input, in pixels
# Such a side stays in one of these: a network whose context is pooled to one number has another
# graph.
SPANS = ((320, 512), (576, 8192))
LEAST, MOST = SPANS[0][0], SPANS[-1][1]
MOST_CLASSES = 256  # that a class map of 8 bits tells apart


@dataclass(frozen=True)
class Kind:
    """A format: the endings of its files, and the precisions that it holds.

    package: what `runtimes.PACKAGES` calls the packages that write and run it; None = PyTorch.
    """

    endings: tuple[str, ...]
    precisions: tuple[str, ...]
    package: str | None = None


FORMATS = {
    "onnx": Kind((".onnx",), ("fp32", "fp16", "int8"), "onnxruntime"),
    "openvino": Kind((".xml", ".bin"), PRECISIONS, "openvino"),
    "torch": Kind((".pt2",), ("fp32", "fp16", "bf16")),
    "aoti": Kind((".aoti.pt2",), ("fp32", "bf16")),
    # ONNX has convolutions in bfloat16 from operator set 22 on, which devices do not read yet.
    "tensorrt": Kind((".tensorrt.onnx",), ("fp32", "fp16", "int8"), "onnxruntime"),
}


@dataclass(frozen=True)
class Description:
    """What an exported file says of itself.

    Attributes:
        architecture, dataset, class_names, palette: as in checkpoints; dataset "" = not known.
        mean, std: of the normalisation (value / 255 - mean) / std; within the graph where `output`
            is "classes", else before it.
        size: (height, width) of the input; of a dynamic one the usual.
        dynamic: {} or "multiple", "least" and "most" of (height, width); see `dynamic_sides`.
        scaling: "short_side", "long_side" and "size_divisor" to which pictures are to be brought,
            as the checkpoint says; those that say something.
        output: "classes" or "logits".
        stride: input pixels per pixel of the logits.
        precision: of the weights and, where the runtime can, of the arithmetic.
        weights: "file" and "sha256" of the checkpoint; {} = random weights.
    """

    architecture: str
    dataset: str
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int]
    precision: str
    output: str
    stride: int
    dynamic: Mapping[str, Any]
    weights: Mapping[str, str]
    scaling: Mapping[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the files are called, without ending."""
        parts = [self.architecture, f"{self.size[0]}x{self.size[1]}"]
        parts += ["dynamic"] if self.dynamic else []
        parts += [self.precision] if self.precision != "fp32" else []
        parts += [self.output] if self.output != "classes" else []
        return "_".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"format": FORMAT, **asdict(self)}

    def text(self) -> str:
        """As JSON in one line, under the key "rtseg" of a file's own metadata."""
        return json.dumps(self.to_dict())


def dynamic_sides(size: tuple[int, int]) -> dict[str, Any]:
    """`Description.dynamic` of a graph whose usual (height, width) is `size`, multiples of MULTIPLE
    from LEAST to MOST."""
    spans = [next(span for span in SPANS if side <= span[1]) for side in size]
    least, most = zip(*spans, strict=True)
    return {"multiple": MULTIPLE, "least": list(least), "most": list(most)}


class FrameNetwork(nn.Module):
    """From a frame, 1, H, W, 3, uint8, RGB, to its class map, 1, H, W, uint8.

    Normalised and resized in float32; in float16 the logits are resized in it, which halves what
    a GPU has to move.
    """

    def __init__(self, network: Network, description: Description) -> None:
        super().__init__()
        self.network = network
        mean, std = torch.tensor(description.mean), torch.tensor(description.std)
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("shift", -mean / std)
        self.dtype = next(p.dtype for p in network.parameters())

    def forward(self, frame: Tensor) -> Tensor:
        # TensorRT converts 8 bits at the very border of a graph alone, from and to float.
        image = (frame.float() * self.scale + self.shift).permute(0, 3, 1, 2)
        logits = self.network(image.to(self.dtype))
        if self.dtype == torch.bfloat16:
            logits = logits.float()
        logits = self.network.upsample(logits, tuple(frame.shape[1:3]))
        # Not argmax(): OpenVINO takes three times as long over it in float32.
        return logits.max(1)[1].float().to(torch.uint8)

    @staticmethod
    def example(size: tuple[int, int]) -> Tensor:
        """An input."""
        return torch.zeros(1, *size, 3, dtype=torch.uint8)

    axes = (1, 2)  # of height and width


class LogitsNetwork(nn.Module):
    """From a normalised image, 1, 3, H, W, to logits at the network's stride, both float32."""

    def __init__(self, network: Network, description: Description) -> None:
        super().__init__()
        self.network = network
        self.dtype = next(p.dtype for p in network.parameters())

    def forward(self, image: Tensor) -> Tensor:
        return self.network(image.to(self.dtype)).float()

    @staticmethod
    def example(size: tuple[int, int]) -> Tensor:
        """An input."""
        return torch.zeros(1, 3, *size)

    axes = (2, 3)


def capture(network: Network, description: Description, *, half: bool = True) -> ExportedProgram:
    """The graph of a network in eval mode and deployed form (`models.fuse`), which is copied.

    half: whether weights and arithmetic are in the precision of `description`; else in float32,
        for runtimes that choose the precision themselves, and for quantisation.

    Raises:
        ValueError: a size that the network cannot take, or a dynamic one where it takes fixed ones.
    """
    network.check_size(*description.size)
    dtype = DTYPES.get(description.precision, torch.float32) if half else torch.float32
    inner = copy.deepcopy(network).to(dtype)
    module = (FrameNetwork if description.output == "classes" else LogitsNetwork)(
        inner, description
    ).eval()
    example = module.example(description.size)
    if not description.dynamic:
        with torch.no_grad():
            return torch.export.export(module, (example,))
    return _capture_dynamic(module, description)


def further_sizes(description: Description) -> list[tuple[int, int]]:
    """Sizes towards both ends of a dynamic graph's, at which it is tried; [] of a fixed one."""
    if not description.dynamic:
        return []
    (top, left), most = description.dynamic["least"], description.dynamic["most"]
    bottom, right = (
        min(side + 8 * MULTIPLE, end) for side, end in zip((top, left), most, strict=True)
    )
    return [(top, left), (bottom, left), (top, right)]


def _capture_dynamic(module: nn.Module, description: Description) -> ExportedProgram:
    multiple = description.dynamic["multiple"]
    least, most = description.dynamic["least"], description.dynamic["most"]
    sides = {
        axis: multiple * Dim(name, min=low // multiple, max=high // multiple)
        for axis, name, low, high in zip(module.axes, ("rows", "columns"), least, most, strict=True)
    }
    example = module.example(description.size)
    others = [module.example(size) for size in further_sizes(description)]
    try:
        with torch.no_grad():
            program = torch.export.export(module, (example,), dynamic_shapes=(sides,))
            for other in others:
                program.module()(other)  # what was fixed on the way is checked in there
    except (RuntimeError, ValueError, AssertionError, torch._dynamo.exc.UserError) as error:
        raise InputError(
            f"{description.architecture} is not made for dynamic sizes, as its graph follows the "
            "size; leave --dynamic out"
        ) from error
    return program
