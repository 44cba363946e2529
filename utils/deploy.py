"""The one door from a network to something that runs fast on the machine at hand.

Evaluation, the demo and the speed script go through it; they know nothing of layouts, precisions,
CUDA graphs or other runtimes.
"""

import contextlib
import copy
import time
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from . import runtimes
from .class_map import class_map
from .errors import InputError
from .failures import first_cause
from .inference import Network

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
OUTPUTS = ("logits", "resized", "classes")
RUNTIMES = ("torch", "eager", "graph", *runtimes.BUILDERS)
CPU_ONLY = ("onnxruntime", "openvino")
CALLS_BEFORE = 20  # of a size that nobody announced, before it is worth a recording
MOST_SIZES = 8  # recorded


@dataclass(frozen=True)
class Deployment:
    """What `prepare_for_inference` chose.

    Attributes:
        runtime: how images of `size` are computed: "eager", "graph", "compiled", "onnxruntime" or
            "openvino".
        device: "cpu", "cuda:0", ...
        precision: "fp32", "bf16" or "fp16", of weights and images.
        output: "logits", "resized" or "classes".
        size: (height, width) it is prepared for; None: those that come.
        first_call_seconds: that preparing `size` took, compiling or recording included; None: it
            is still to come.
        remarks: what could not be as asked for, and what was done beyond it.
    """

    runtime: str
    device: str
    precision: str
    output: str
    size: tuple[int, int] | None = None
    first_call_seconds: float | None = None
    remarks: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        parts = [self.runtime, self.precision, f"on {self.device}"]
        if self.first_call_seconds is not None:
            parts.append(f"first call {self.first_call_seconds:.1f} s")
        return ", ".join((*parts, *self.remarks))


class Prepared:
    """A network that is called with normalised images N, 3, H, W in float32; see
    `prepare_for_inference`. `check_size`, `size_divisor` and `upsample` are the network's."""

    def __init__(
        self, network: Network, output: str, runtime: str, device: torch.device, *, insists: bool
    ) -> None:
        self.network, self.output, self.runtime, self.device = network, output, runtime, device
        self.insists = insists  # or runs eagerly where the runtime fails
        self.dtype = next(p.dtype for p in network.parameters())
        self.size_divisor = network.size_divisor
        self.check_size, self.upsample = network.check_size, network.upsample
        self.remarks: tuple[str, ...] = ()
        self._runners: dict[torch.Size, tuple[runtimes.Runner, bool]] = {}
        self._calls: dict[torch.Size, int] = {}

    @torch.inference_mode()
    def __call__(self, image: Tensor) -> Tensor:
        """Logits (N, C, H / stride, W / stride, or N, C, H, W) in the precision of the network, or
        class ids (N, H, W, uint8)."""
        with self._on_device():
            layout = torch.channels_last
            image = image.to(self.device, self.dtype, memory_format=layout, non_blocking=True)
            run, finishes = self._runners.get(image.shape) or self._unannounced(image)
            result = run(image)
            return result if finishes else self._finish(result, image)

    def _on_device(self) -> contextlib.AbstractContextManager:
        """Streams, recordings and kernels are made for the current GPU."""
        cuda = self.device.type == "cuda"
        return torch.cuda.device(self.device) if cuda else contextlib.nullcontext()

    def giving(self, output: str) -> "Prepared":
        """The same for another of `OUTPUTS`; what is compiled serves both."""
        other = copy.copy(self)
        other.output = output
        if self.runtime == "graph":
            other._runners, other._calls = {}, {}
        return other

    @torch.inference_mode(False)
    @torch.no_grad()
    def prepare(self, shape: tuple[int, int, int, int]) -> None:
        """Compile or record for images of `shape`.

        Raises:
            ValueError: the runtime cannot, and was asked for by its name.
        """
        image = torch.zeros(shape, dtype=self.dtype, device=self.device)
        image = image.contiguous(memory_format=torch.channels_last)
        if self.runtime != "eager" and image.shape not in self._runners:
            with self._on_device():
                self._runners[image.shape] = self._build(image)
        self(image)

    def _build(self, image: Tensor) -> tuple[runtimes.Runner, bool]:
        """What computes images like this one, and whether all of it or the logits alone.

        A graph replays all. The others do not make a class map as fast as PyTorch does.
        """
        records = self.runtime == "graph"
        try:
            # Runtimes cast and freeze what they are given.
            network = copy.deepcopy(self.network)
            if records:
                run, remarks = runtimes.graph(network, image, lambda y: self._finish(y, image))
            else:
                run, remarks = runtimes.BUILDERS[self.runtime](network, image)
            with torch.inference_mode():
                run(image)
            self.remarks = tuple(dict.fromkeys((*self.remarks, *remarks)))
            return run, records
        except RuntimeError as error:  # of compilers, recorders, exporters; or out of memory
            reason = f"{self.runtime} is not possible: {first_cause(error)}"
            if self.insists:
                if "out of memory" in str(error):
                    raise
                raise InputError(f"runtime {reason}") from error
        # Here and not above, where the error still holds all that was computed.
        self.remarks = tuple(dict.fromkeys((*self.remarks, reason)))
        self.runtime = "eager"
        return self.network, False

    def _unannounced(self, image: Tensor) -> tuple[runtimes.Runner, bool]:
        """As `_build`, for a size that nothing has been prepared for, if that is worth it."""
        calls = self._calls[image.shape] = self._calls.get(image.shape, 0) + 1
        rare = calls <= CALLS_BEFORE or len(self._runners) >= MOST_SIZES
        if self.runtime == "eager" or (self.runtime == "graph" and rare):
            return self.network, False
        with torch.inference_mode(False), torch.no_grad():
            self._runners[image.shape] = self._build(image.clone())
        return self._runners[image.shape]

    def _finish(self, logits: Tensor, image: Tensor) -> Tensor:
        """Logits at the network's stride to what is asked for."""
        size = tuple(image.shape[2:])
        if self.output == "logits":
            return logits
        if self.output == "resized":
            return self.upsample(logits, size)
        return class_map(logits, size, align_corners=self.network.align_corners)


def prepare_for_inference(
    network: Network,
    *,
    device: torch.device | str,
    precision: str = "fp32",
    size: tuple[int, int] | None = None,
    batch: int = 1,
    output: str = "logits",
    runtime: str = "torch",
) -> tuple[Prepared, Deployment]:
    """A network made fast on `device`, and what was chosen for it.

    Args:
        network: in eval mode, deployed form (`models.fuse`); it is copied.
        precision: "fp32", "bf16" or "fp16" of weights and images.
        size: (height, width) of the images to come, for which everything is prepared here; None
            prepares for each size as it comes.
        batch: images per call at `size`.
        output: "logits" at the network's stride, "resized" to the image, or "classes": class ids
            at the image's size, for which logits of that size are never in memory.
        runtime: "torch" is a CUDA graph on a GPU; on the CPU compiled where a size is given and a
            C++ compiler is at hand, else eager. Others only by name: "eager", "graph", "compiled",
            "onnxruntime", "openvino".

    Raises:
        ValueError: a value that is not accepted, a size that the network cannot take, a runtime
            that is not installed or cannot do this.
    """
    device = torch.device(device)
    for name, value, accepted in (
        ("precision", precision, DTYPES),
        ("output", output, OUTPUTS),
        ("runtime", runtime, RUNTIMES),
    ):
        if value not in accepted:
            raise InputError(f"{name} is {value!r}; accepted: {', '.join(accepted)}")
    if size is not None:
        network.check_size(*size)
    chosen = choose_runtime(runtime, device, precision, announced=size is not None)
    network = copy.deepcopy(network).eval()
    network = network.to(device, DTYPES[precision], memory_format=torch.channels_last)
    prepared = Prepared(network, output, chosen, device, insists=runtime != "torch")
    deployment = Deployment(chosen, str(device), precision, output, size)
    if size is None:
        return prepared, deployment
    began = time.perf_counter()
    prepared.prepare((batch, 3, *size))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return prepared, replace(
        deployment,
        runtime=prepared.runtime,
        first_call_seconds=time.perf_counter() - began,
        remarks=prepared.remarks,
    )


def choose_runtime(runtime: str, device: torch.device, precision: str, *, announced: bool) -> str:
    """What "torch" stands for on `device`; any other runtime if it can run there.

    Raises:
        ValueError: it cannot.
    """
    if precision == "fp16" and device.type == "cpu":
        raise InputError("precision fp16 needs CUDA; on the CPU: fp32 or bf16")
    if runtime == "torch":
        if device.type == "cuda":
            return "graph"
        return "compiled" if announced and runtimes.can_compile(device) else "eager"
    if runtime == "graph" and device.type != "cuda":
        raise InputError(f"runtime graph needs a CUDA device; this is {device.type}")
    if runtime in CPU_ONLY and device.type != "cpu":
        raise InputError(f"runtime {runtime} runs on the CPU; the device is {device.type}")
    if runtime == "compiled" and not runtimes.can_compile(device):
        raise InputError("runtime compiled needs a C++ compiler; there is none in PATH")
    if runtime == "onnxruntime" and precision != "fp32":
        raise InputError(f"runtime onnxruntime computes in fp32; precision is {precision}")
    runtimes.require(runtime)
    return runtime
