"""How long a network would take on an H200, predicted from a list of its kernels.

For choosing between shapes of one network where no card is at hand; not a measurement. The kernels
that PyTorch would launch are listed on the meta device, without computation. Each takes a floor and
then the longer of its arithmetic and its traffic, at rates read off profiles of two networks
(fused, channels-last, one image of 1024x2048), so the rates are those of that size.
"""

import copy
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

MULTIPROCESSORS = 132
L2_BYTES = 45e6  # of what a convolution touches; more goes through the memory
GAPS = 1.035  # time of a graph over that of its kernels
FREE = {  # views and allocations
    "view", "_unsafe_view", "permute", "transpose", "t", "expand", "slice", "select", "unsqueeze",
    "squeeze", "split", "split_with_sizes", "chunk", "unbind", "alias", "detach", "as_strided",
    "reshape", "_reshape_alias", "lift_fresh", "unflatten", "empty", "empty_like",
}  # fmt: skip


@dataclass(frozen=True)
class Rates:
    """Microseconds and bytes or operations per microsecond of one precision."""

    peak: float  # of 1-group convolutions with at least 128 outputs
    narrow: float  # the share of it that 64 outputs reach
    floor: float
    depthwise: float  # bytes
    grouped: float  # operations
    bias: float  # bytes; PyTorch adds a convolution's bias by a slow kernel
    bias_large: float
    image: float  # the first convolution at 512x1024 outputs of 64 channels
    attention: float  # 32768 queries, 144 keys


HALF = Rates(690e6, 0.62, 3.6, 2.6e6, 60e6, 2.0e6, 1.5e6, 66.8, 13.6)
SINGLE = Rates(385e6, 0.62, 4.5, 3.0e6, 30e6, 2.85e6, 2.7e6, 121.5, 90.0)  # TF32
SINGLE_NORMS = {  # microseconds of cuDNN's channels-last inference norm, by channels and pixels
    (128, 32768): 94.4, (256, 32768): 114.7, (512, 2048): 59.6, (640, 2048): 60.0,
    (128, 2048): 17.0, (256, 8192): 58.7, (256, 2048): 30.0,
}  # fmt: skip


@dataclass
class Kernel:
    """One launch: its operator, the tensors that it reads and writes, and its other arguments."""

    op: str
    reads: list[Tensor]
    writes: list[Tensor]
    arguments: tuple[Any, ...] = ()
    extra: int = 0  # bytes of a residual that is read on the way

    @property
    def bytes(self) -> int:
        """Read and written."""
        return sum(t.nbytes for t in (*self.reads, *self.writes)) + self.extra


@dataclass
class Prediction:
    """Milliseconds per image, launches, bytes read and written."""

    milliseconds: float
    kernels: int
    bytes: int


class _Listing(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[Kernel] = []
        self.alive: list[Any] = []  # so that no two tensors share an address

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.alive.append((args, out))
        op = func._schema.name.split("::")[1]
        if op not in FREE:
            self.kernels.append(Kernel(op, _tensors(args), _tensors(out), args))
        return out


@dataclass
class _Patches:
    """What the meta device does otherwise than a card: attention in parts, resizes in NCHW."""

    listing: _Listing
    interpolate: Any = field(default=F.interpolate)

    def resize(self, *args, **kwargs) -> Tensor:
        y = self.interpolate(*args, **kwargs)
        y = torch.empty_like(y, memory_format=torch.channels_last)
        self.listing.kernels[-1].writes = [y]
        return y

    def attention(self, q: Tensor, k: Tensor, v: Tensor, **_) -> Tensor:
        y = torch.empty_like(q)
        self.listing.kernels.append(Kernel("attention", [q, k, v], [y]))
        self.listing.alive.append((q, k, v, y))
        return y


def predict(
    model: nn.Module,
    dtype: torch.dtype,
    *,
    joined: bool = False,
    size: tuple[int, int] = (1024, 2048),
) -> Prediction:
    """Time of the fused `model` on one image.

    Args:
        dtype: float16, or float32 with TF32 in convolutions.
        joined: bias, residual sum and ReLU behind a 1-group convolution run within its kernel.
    """
    kernels = list_kernels(model, dtype, size)
    if joined:
        kernels = join(kernels)
    else:
        kernels = [k for kernel in kernels for k in _with_bias(kernel)]
    half = dtype == torch.float16
    total = sum(_microseconds(kernel, HALF if half else SINGLE, half) for kernel in kernels)
    return Prediction(total * GAPS / 1e3, len(kernels), sum(k.bytes for k in kernels))


def list_kernels(model: nn.Module, dtype: torch.dtype, size: tuple[int, int]) -> list[Kernel]:
    """What `model` launches on one image; a convolution's bias is not listed by itself."""
    layout = {"memory_format": torch.channels_last}
    shadow = copy.deepcopy(model).to("meta", dtype).to(**layout)
    image = torch.empty(1, 3, *size, device="meta", dtype=dtype).contiguous(**layout)
    listing = _Listing()
    patches = _Patches(listing)
    with (
        torch.no_grad(),
        mock.patch.object(F, "interpolate", patches.resize),
        mock.patch.object(F, "scaled_dot_product_attention", patches.attention),
        listing,
    ):
        shadow(image)
    return listing.kernels


def join(kernels: list[Kernel]) -> list[Kernel]:
    """The same with convolution, bias, residual sum and ReLU as one kernel where they follow."""
    readers: dict[int, list[int]] = {}
    for index, kernel in enumerate(kernels):
        for t in kernel.reads:
            readers.setdefault(_storage(t), []).append(index)

    def next_reader(index: int) -> tuple[int, Kernel] | None:
        later = [i for i in readers.get(_storage(kernels[index].writes[0]), []) if i > index]
        if not later or (len(later) > 1 and not kernels[later[0]].op.endswith("_")):
            return None  # the value is needed as it is
        return later[0], kernels[later[0]]

    gone, joined = set(), []
    for index, kernel in enumerate(kernels):
        if index in gone:
            continue
        if kernel.op == "convolution" and kernel.arguments[2] is not None:
            found, residual = next_reader(index), 0
            passed = set()
            if found and kernel.arguments[8] == 1:
                position, after = found
                same = [t for t in after.reads if t.shape == kernel.writes[0].shape]
                if after.op in ("add", "add_") and len(same) == 2:
                    passed, residual = {position}, same[0].nbytes
                    found = next_reader(position)
                if found and found[1].op in ("relu", "relu_"):
                    gone |= passed | {found[0]}
                    kernel.extra = residual
                    joined.append(kernel)
                    continue
        joined += _with_bias(kernel)
    return joined


def _with_bias(kernel: Kernel) -> list[Kernel]:
    if kernel.op != "convolution" or kernel.arguments[2] is None:
        return [kernel]
    return [kernel, Kernel("bias", kernel.writes, kernel.writes)]


def _microseconds(kernel: Kernel, rates: Rates, half: bool) -> float:
    op, traffic, y = kernel.op, kernel.bytes, kernel.writes[0]
    if op == "convolution":
        return _convolution(kernel, rates) + kernel.extra / 6.4e6
    if op == "bias":
        is_large = traffic > (80e6 if half else 150e6)
        return 2 + traffic / (rates.bias_large if is_large else rates.bias)
    if "batch_norm" in op:
        x = kernel.reads[0]
        if half:
            return 8.2 + x.nbytes / 8e6
        pixels = x.shape[2] * x.shape[3]
        return SINGLE_NORMS.get((x.shape[1], pixels), 10 + x.nbytes / 0.2e6 * (pixels > 1))
    if op == "upsample_bilinear2d":
        return 3.2 + 38 * y.numel() / (128 * 32768)
    if "pool2d" in op:
        return 12.3 if op == "avg_pool2d" else 6.0
    if op in ("bmm", "mm", "addmm", "baddbmm"):
        a, b = kernel.reads[-2:]
        wide, batch = a.dtype == torch.float32, a.shape[0] if a.ndim == 3 else 1
        step = (0.018 if batch < 12 else 0.006) if wide else 0.002  # one tile after the other
        work = 2 * a.numel() * b.shape[-1] / (30e6 if wide else 200e6)
        return 3.2 + max(work, a.shape[-1] * step, traffic / 4e6)
    if op == "attention":
        return rates.attention
    floor, rate = {
        "cat": (2.0, 1.6e6),
        "_softmax": (2.5, 3e6),
        "mean": (2.8, 3e6),
        "sum": (2.8, 3e6),
        "amax": (2.8, 3e6),
        "linalg_vector_norm": (2.8, 3e6),
        "clone": (1.8, 3.5e6),
        "copy_": (1.8, 3.5e6),
        "_to_copy": (1.8, 3.5e6),
    }.get(op, (1.6, 6.4e6 if traffic < 100e6 else 4.2e6))
    return floor + traffic / rate


def _convolution(kernel: Kernel, rates: Rates) -> float:
    x, weight = kernel.reads[:2]
    y, groups = kernel.writes[0], kernel.arguments[8]
    outputs, inputs = weight.shape[:2]
    pixels = y.shape[0] * y.shape[2] * y.shape[3]
    traffic = x.nbytes + y.nbytes + weight.nbytes
    work = 2 * pixels * weight.numel()
    through = traffic / (5.5e6 if traffic < L2_BYTES else 3e6)
    if groups > 1 and inputs == 1:
        return 2 + traffic / rates.depthwise + (4 if pixels < 3000 else 0)
    if groups > 1:
        return 6 + max(through, work / rates.grouped)
    if x.shape[1] == 3:
        return rates.image * y.numel() / (64 * 512 * 1024)
    tiles = -(-pixels // 128) * -(-outputs // 128)
    waves = -(-tiles // MULTIPROCESSORS)
    busy = max(tiles / (MULTIPROCESSORS * waves), 0.26)  # few tiles: cuDNN takes smaller ones
    width = 1.0 if outputs >= 128 else rates.narrow if outputs >= 64 else 0.35
    return rates.floor + max(work / (rates.peak * busy * width), through)


def _storage(t: Tensor) -> int:
    return t.untyped_storage()._cdata


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for v in value for t in _tensors(v)] if isinstance(value, (list, tuple)) else []
