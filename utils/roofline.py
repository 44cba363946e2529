"""The least time that a network can take on a card, from what it computes and moves.

`trace` lists what a network does without computing anything; `floor_ms` is a bound, `expected_ms`
an estimate. Both rest on the published rates in `CARDS`, of which programs reach a part.
"""

import copy
import difflib
import functools
import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from .errors import InputError

PRECISIONS = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
FREE = {"empty", "empty_like", "empty_strided", "new_empty", "_unsafe_view"}  # besides views
# What a layer that waits for another takes at least, whatever it does. A trip to the L2 cache takes
# some 200 cycles from V100 to H100 (doi 10.1016/j.ultsonch.2023.106546, table 3); two, to read and
# to make the result known, are 0.2 us at 1.98 GHz. The shortest kernel in profiles of two of these
# networks on an H200 takes 1.4 us. This is a choice between the two, not a published number. In
# fp16 it matters to the order of small networks: without it their floors are mostly operations.
LEAST_SECONDS = 5e-7
KERNEL_SECONDS = 2e-6  # from one kernel of a CUDA graph to the next, for `expected_ms`


@dataclass(frozen=True)
class Card:
    """Published rates of a device, dense; a card that boosts higher than published may beat them.

    bandwidth: of the memory, bytes/s. l2_bytes: size of the L2 cache. l2_bandwidth: from the L2
    cache to all multiprocessors, bytes/s, each way. fp32: operations/s without tensor cores. tf32,
    fp16: operations/s of the tensor cores that accumulate in float32; bfloat16 equals float16.
    """

    name: str
    bandwidth: float
    l2_bytes: int
    l2_bandwidth: float
    fp32: float
    tf32: float
    fp16: float

    def peak(self, precision: str) -> float:
        """Operations/s in one of `PRECISIONS`."""
        return self.fp16 if precision == "bf16" else getattr(self, precision)


# L2 bandwidth: NVIDIA publishes 5120 bytes per clock for the A100 (Ampere whitepaper). The same is
# taken for Hopper at 1.98 GHz, its highest clock: 10.1 TB/s; the table named above, with the same
# width at the clock of the PCIe card, has 9.0. For the others nothing is published: 64 bytes per
# clock are assumed for each multiprocessor, meant to be generous.
CARDS = {
    card.name: card
    for card in (
        # NVIDIA Ampere GA102 whitepaper v2, appendix A: 82 SMs, 1.695 GHz.
        Card("rtx3090", 936e9, 6 * 2**20, 82 * 64 * 1.695e9, 35.6e12, 35.6e12, 71e12),
        # NVIDIA Ada whitepaper v2, appendix A: 128 SMs, 2.52 GHz.
        Card("rtx4090", 1008e9, 72 * 2**20, 128 * 64 * 2.52e9, 82.6e12, 82.6e12, 165.2e12),
        # NVIDIA A100 80GB SXM datasheet; Ampere A100 whitepaper: 1.41 GHz.
        Card("a100", 2039e9, 40 * 2**20, 5120 * 1.41e9, 19.5e12, 156e12, 312e12),
        # NVIDIA H100 SXM datasheet, where tensor rates are with sparsity: halved; 1.98 GHz.
        Card("h100", 3350e9, 50 * 2**20, 5120 * 1.98e9, 67e12, 494.7e12, 989.4e12),
        # NVIDIA H200 SXM datasheet, likewise halved.
        Card("h200", 4800e9, 50 * 2**20, 5120 * 1.98e9, 67e12, 494.7e12, 989.4e12),
        # NVIDIA Jetson AGX Orin technical brief, 64 GB: 16 SMs, 1.3 GHz, INT8 170 TOPS with
        # sparsity, hence fp16 a quarter of that and TF32 half of fp16.
        Card("orin64", 204.8e9, 4 * 2**20, 16 * 64 * 1.3e9, 5.3e12, 21.25e12, 42.5e12),
    )
}


def get_card(name: str) -> Card:
    """The entry of `CARDS`. Raises InputError, with the accepted names, on a miss."""
    if name in CARDS:
        return CARDS[name]
    near = difflib.get_close_matches(name, CARDS, n=1)
    hint = f"; did you mean {near[0]}?" if near else "."
    raise InputError(f"unknown card {name!r}{hint} Known: {', '.join(CARDS)}")


def this_card(device: torch.device) -> Card | None:
    """The entry of `CARDS` that `device` is by its name, if it is one."""
    if device.type != "cuda":
        return None
    words = re.findall("[a-z0-9]+", torch.cuda.get_device_name(device).lower())
    words += map("".join, itertools.pairwise(words))  # "rtx 3090"
    return next((card for card in CARDS.values() if card.name.removesuffix("64") in words), None)


@dataclass(frozen=True)
class Layer:
    """One operation that moves data.

    name: path of the innermost module that runs it ("" for the network itself).
    op: its ATen name, such as "convolution".
    dtype: of its first input, or of its output if it has none.
    macs: multiply-accumulates of a convolution or matrix product, else 0.
    bytes_read, bytes_written: its whole inputs, weights included, and outputs, if it runs alone.
    constant: whether its result is the same for every image.
    weighted: whether it multiplies by weights something that is not constant; if so:
    least_read, least_written: bytes of it that must pass the L2 cache if all that has no weights
        is done on the fly where it is read or written: what feeds a resize is read before it
        grows, what is pooled is written after it has shrunk. 0 for a layer without weights.
    """

    name: str
    op: str
    dtype: torch.dtype
    macs: int
    bytes_read: int
    bytes_written: int
    constant: bool = False
    weighted: bool = False
    least_read: int = 0
    least_written: int = 0

    @property
    def is_fused(self) -> bool:
        """Whether an ideal implementation moves no bytes for this one."""
        return not self.weighted


def trace(
    model: nn.Module,
    size: tuple[int, int],
    batch: int = 1,
    dtype: torch.dtype = torch.float16,
) -> list[Layer]:
    """What `model` does with `batch` 3-channel images of `size` (height, width), in order.

    The model, folded by `fuse` if that is how it runs, is copied to the meta device in eval mode
    and in `dtype`: no computation, any size. Views are left out, as they move nothing. What CUDA
    runs as one kernel, such as attention, is listed by its parts.

    Raises:
        InputError: a batch or size below 1.
    """
    if min(batch, *size) < 1:
        raise InputError(f"batch {batch} of {size[0]}x{size[1]} images; each must be at least 1")
    shadow = copy.deepcopy(model).to("meta", dtype).eval()
    image = torch.empty(batch, 3, *size, dtype=dtype, device="meta")
    tracer = _Tracer(image)
    for name, module in shadow.named_modules():
        if hasattr(module, "is_pooling"):
            module.register_forward_pre_hook(tracer.pool)
            module.register_forward_hook(tracer.pooled)
        module.register_forward_pre_hook(functools.partial(tracer.enter, name))
        module.register_forward_hook(tracer.leave)
    with torch.no_grad(), tracer:
        output = shadow(image)
    return tracer.layers(output)


def floor_ms(layers: Iterable[Layer], card: Card, precision: str) -> float:
    """Milliseconds that no implementation beats that runs layers with weights one after another.

    Everything without weights costs no bytes: it can be done where its input is written or its
    output is read. A layer with weights takes as long as its operations at `card`'s peak or its
    bytes, whichever is longer, and `LEAST_SECONDS`. Its input and output pass the L2 cache, at that
    cache's bandwidth (reads and writes at once); only what exceeds the size of the cache must come
    from or go to memory, since the layer before may have left the rest there. Products of two
    activations count by their operations alone, for fused attention keeps them on the chip;
    products of weights with weights count nothing, for they can be made beforehand.

    It does not bound what lies outside this picture: layers with weights fused with each other or
    run side by side, other algorithms (Winograd), float16 accumulation (twice as fast on GeForce
    cards).

    Args:
        layers: from `trace`, in the dtype of `precision`.
        precision: one of `PRECISIONS`. A product that the network makes in float32 all the same
            counts in it too, since PyTorch's fused attention does not follow that detour.

    Raises:
        InputError: `precision` is unknown, or `layers` are of another dtype.
    """
    seconds = 0.0
    for layer in _checked(layers, precision):
        if layer.weighted:
            seconds += LEAST_SECONDS
        operations = 0 if layer.constant else 2 * layer.macs / card.peak(precision)
        seconds += max(operations, _memory_seconds(layer.least_read, layer.least_written, card))
    return seconds * 1e3


def expected_ms(layers: Iterable[Layer], card: Card, precision: str) -> float:
    """An estimate, no bound, of the milliseconds when each layer is a kernel of a CUDA graph.

    Every layer reads and writes all its bytes at the bandwidth of the memory while it computes at
    `card`'s peak, and takes `KERNEL_SECONDS` besides. It ranks networks well; PyTorch's
    graphs took 1.9 to 3.4 times as long on an H200, one with a slow pooling kernel 12 times.
    Arguments and errors as `floor_ms`.
    """
    seconds = 0.0
    for layer in _checked(layers, precision):
        operations = 2 * layer.macs / card.peak(precision)
        moved = (layer.bytes_read + layer.bytes_written) / card.bandwidth
        seconds += max(operations, moved) + KERNEL_SECONDS
    return seconds * 1e3


def summary(layers: Iterable[Layer]) -> dict[str, Any]:
    """Totals, and the part of each kind of operation in them.

    Returns:
        macs, bytes_read, bytes_written, least_bytes (`floor_ms`'s reads and writes), layers (their
        number), and ops: by name, the most bytes first, layers, macs, bytes (read and written),
        and macs_share and bytes_share of the totals, 0 to 1.
    """
    layers = list(layers)
    kinds: dict[str, list[Layer]] = {}
    for layer in layers:
        kinds.setdefault(layer.op, []).append(layer)
    totals = _totals(layers)
    ops = {}
    for op, group in kinds.items():
        part = _totals(group)
        ops[op] = part | {
            f"{key}_share": part[key] / max(totals[key], 1) for key in ("macs", "bytes")
        }
    return {
        "macs": totals["macs"],
        "bytes_read": sum(layer.bytes_read for layer in layers),
        "bytes_written": sum(layer.bytes_written for layer in layers),
        "least_bytes": sum(layer.least_read + layer.least_written for layer in layers),
        "layers": totals["layers"],
        "ops": dict(sorted(ops.items(), key=lambda item: -item[1]["bytes"])),
    }


def _totals(layers: list[Layer]) -> dict[str, Any]:
    return {
        "layers": len(layers),
        "macs": sum(layer.macs for layer in layers),
        "bytes": sum(layer.bytes_read + layer.bytes_written for layer in layers),
    }


def _checked(layers: Iterable[Layer], precision: str) -> list[Layer]:
    layers = list(layers)
    if precision not in PRECISIONS:
        raise InputError(f"unknown precision {precision!r}. Known: {', '.join(PRECISIONS)}")
    wanted = PRECISIONS[precision]
    traced = next((layer.dtype for layer in layers if layer.macs), wanted)
    if traced != wanted:
        raise InputError(
            f"the layers were traced in {traced}; precision {precision} needs a trace in {wanted}"
        )
    return layers


def _memory_seconds(read: int, written: int, card: Card) -> float:
    beyond = max(0, read - card.l2_bytes) + max(0, written - card.l2_bytes)
    return max(beyond / card.bandwidth, max(read, written) / card.l2_bandwidth)


@dataclass(eq=False)
class _Value:
    """A tensor at one point of the trace.

    bytes: its distinct elements. cost: bytes to read, at least, for a kernel that needs it and
    computes on the fly what has no weights. need: bytes to write, at least, for the kernel that
    makes it. constant: it does not depend on the image.
    """

    bytes: int
    cost: int
    constant: bool
    need: int = 0


@dataclass(eq=False)
class _Node:
    name: str
    op: str
    dtype: torch.dtype
    macs: int
    inputs: list[_Value]
    outputs: list[_Value]
    constant: bool
    weighted: bool
    free: bool


class _Tracer(TorchDispatchMode):
    """Notes every operation, and what its inputs and outputs are to it and to its neighbours."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self._path: list[str] = []
        self._pooling = False
        self._nodes: list[_Node] = []
        self._values: dict[int, _Value] = {}
        self._alive: list[Tensor] = []  # or ids would be given out again
        self._note(image, _bytes(image), constant=False)

    def pool(self, *_: Any) -> None:
        """Before a module whose products are a pooling, which counts as none (`is_pooling`)."""
        self._pooling = True

    def pooled(self, *_: Any) -> None:
        """After it."""
        self._pooling = False

    def enter(self, name: str, *_: Any) -> None:
        """Before the module `name` runs."""
        self._path.append(name)

    def leave(self, *_: Any) -> None:
        """After the innermost module has run."""
        self._path.pop()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = _tensors((args, kwargs))
        inputs = list(dict.fromkeys(map(self._value, tensors)))
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        formula = flop_registry.get(packet)
        counts = formula is not None and not self._pooling
        macs = formula(*args, **kwargs, out_val=out) // 2 if counts else 0
        # A bias, of one dimension, makes no product one with weights.
        weights = any(t.dim() > 1 and self._value(t).constant for t in tensors)
        constant = all(value.constant for value in inputs)
        weighted = bool(macs) and weights and not constant
        results = _tensors(out)
        on_the_fly = max((value.cost for value in inputs), default=0)
        outputs = []
        for tensor in results:
            size = _bytes(tensor)
            cost = size if weighted else min(size, on_the_fly)
            outputs.append(self._note(tensor, cost, constant))
        self._nodes.append(
            _Node(
                self._path[-1],
                packet.__name__,
                (tensors or results)[0].dtype,
                macs,
                inputs,
                outputs,
                constant,
                weighted,
                free=func.is_view or packet.__name__ in FREE,
            )
        )
        return out

    def layers(self, output: Any) -> list[Layer]:
        """The trace, once `output` is known to be what has to be written at the end."""
        for tensor in _tensors(output):
            value = self._value(tensor)
            value.need = value.bytes
        for node in reversed(self._nodes):
            wanted = max((value.need for value in node.outputs), default=0)
            for value in node.inputs:
                bound = value.bytes if node.weighted else min(value.bytes, wanted)
                value.need = max(value.need, bound)
        return [_layer(node) for node in self._nodes if not node.free]

    def _value(self, tensor: Tensor) -> _Value:
        known = self._values.get(id(tensor))
        return known or self._note(tensor, _bytes(tensor), constant=True)  # weights, buffers

    def _note(self, tensor: Tensor, cost: int, constant: bool) -> _Value:
        value = _Value(_bytes(tensor), cost, constant)
        self._values[id(tensor)] = value  # what is changed in place is another value from now on
        self._alive.append(tensor)
        return value


def _layer(node: _Node) -> Layer:
    return Layer(
        node.name,
        node.op,
        node.dtype,
        node.macs,
        bytes_read=sum(value.bytes for value in node.inputs),
        bytes_written=sum(value.bytes for value in node.outputs),
        constant=node.constant,
        weighted=node.weighted,
        least_read=sum(value.cost for value in node.inputs) if node.weighted else 0,
        least_written=sum(value.need for value in node.outputs) if node.weighted else 0,
    )


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _bytes(tensor: Tensor) -> int:
    """Bytes of the elements of `tensor`; those that `expand` repeats count once."""
    count = tensor.element_size() if tensor.numel() else 0
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= length if stride else 1
    return count
