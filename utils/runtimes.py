"""Ways to run a network on images of one size; `utils.deploy` chooses among them."""

import contextlib
import importlib.metadata
import importlib.util
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from . import fused_convolutions
from .capture import record
from .errors import InputError
from .failures import first_cause
from .fused_convolutions import fuse_convolutions

Runner = Callable[[Tensor], Tensor]
ArrayRunner = Callable[[np.ndarray], np.ndarray]
EAGER_CALLS = 2  # before a recording, in which kernels are chosen
MOST_COMPILED = 250
PACKAGES = {
    "onnxruntime": ("onnxruntime", "onnx", "onnxscript"),
    "openvino": ("openvino",),
    "nncf": ("nncf",),
}
VINO_TYPES = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


def graph(network: nn.Module, image: Tensor, finish: Runner) -> tuple[Runner, list[str]]:
    """`network` recorded as a CUDA graph, convolutions fused with what follows; and remarks.

    finish: from its output to what is wanted, recorded with it.
    """
    remarks, refused = [], len(fused_convolutions.refused)
    try:
        network, merged = fuse_convolutions(network, image)
        remarks.append(f"{merged} ReLUs within their convolutions")
    except (RuntimeError, AttributeError) as error:
        remarks.append(f"convolutions run alone: {first_cause(error)}")
    kept = image.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(EAGER_CALLS):
            finish(network(kept))
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    if more := len(fused_convolutions.refused) - refused:
        remarks.append(f"cuDNN has no kernel for {more} kinds of convolution with ReLU")
    recorded, result = record(lambda: finish(network(kept)))

    def run(image: Tensor, _alive: nn.Module = network) -> Tensor:
        # The graph reads the network's weights where they lie; somebody must keep them there.
        kept.copy_(image, non_blocking=True)
        recorded.replay()
        return result.clone()  # the next call writes into `result`

    return run, remarks


def compiled(network: nn.Module, image: Tensor) -> tuple[Runner, list[str]]:
    """`network` compiled by PyTorch; in float32 with its weights as constants.

    In bfloat16 that gives wrong results on the CPU (torch 2.13): on photographs 6 to 8 % of the
    pixels of trained networks got another class, against 0.3 % without.
    """
    options = {"triton.cudagraphs": True} if image.is_cuda else {}
    run = torch.compile(network, options=options, dynamic=False)
    # All networks count as one function, of which PyTorch compiles but a few forms, and computes
    # further ones without a word as if they were not compiled.
    limits = {"recompile_limit": MOST_COMPILED, "fail_on_recompile_limit_hit": True}
    # Weights become constants by a setting that is read in many places, not by an option of one.
    frozen = torch._inductor.config.patch(freezing=image.dtype == torch.float32)
    try:
        with torch._dynamo.config.patch(limits), frozen, torch.inference_mode():
            run(image.clone())  # compiled for the mode and the kind of tensor that it will meet
    except torch._dynamo.exc.FailOnRecompileLimitHit as error:
        raise RuntimeError(f"more than {MOST_COMPILED} networks in one process") from error
    if image.is_cuda:  # results lie in the graph's memory, which the next call writes into
        return lambda image: run(image).clone(), []
    return run, []


def onnxruntime(network: nn.Module, image: Tensor) -> tuple[Runner, list[str]]:
    """`network` in ONNX Runtime on the CPU, float32."""
    require("onnxruntime")
    program = torch.export.export(network, (image.contiguous(),))
    run = start_onnxruntime(to_onnx(program, "image", "logits").SerializeToString())
    return lambda image: torch.from_numpy(run(image.contiguous().numpy())), []


def openvino(network: nn.Module, image: Tensor) -> tuple[Runner, list[str]]:
    """`network` in OpenVINO on the CPU; computes in bfloat16 where `image` is of that type."""
    require("openvino")
    precision = "bf16" if image.dtype == torch.bfloat16 else "fp32"
    program = torch.export.export(network.float(), (image.float().contiguous(),))
    run = start_openvino(to_openvino(program, "image", "logits"), precision)
    return lambda image: torch.from_numpy(run(image.float().contiguous().numpy())), []


def to_onnx(program: ExportedProgram, taken: str, given: str) -> Any:
    """The onnx.ModelProto of a graph with one input and one output, which get these names.

    Operator set 18, the first that PyTorch writes.
    """
    with quiet("torch.onnx", "onnxscript"):
        return torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            opset_version=18,
            input_names=[taken],
            output_names=[given],
        ).model_proto


def to_openvino(program: ExportedProgram, taken: str, given: str) -> Any:
    """The openvino.Model of a graph with one input and one output, which get these names."""
    vino = importlib.import_module("openvino")
    (entry,) = (n for n in program.graph.nodes if n.name == program.graph_signature.user_inputs[0])
    shape = [d if isinstance(d, int) else -1 for d in entry.meta["val"].shape]
    failure = importlib.import_module("openvino.frontend").OpConversionFailure
    with quiet("openvino"):
        try:
            converted = vino.convert_model(program)
        except failure as error:
            raise RuntimeError(
                f"OpenVINO has no form of it: {str(error).strip().splitlines()[-1]}"
            ) from error
    converted.reshape(shape)  # the converter takes every size for dynamic
    converted.input(0).set_names({taken})
    converted.output(0).set_names({given})
    return converted


def onnxruntime_errors() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises; its exceptions have no base in common."""
    state = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    kinds = (value for value in vars(state).values() if isinstance(value, type))
    return tuple(kind for kind in kinds if issubclass(kind, Exception))


def start_onnxruntime(model: str | Path | bytes) -> ArrayRunner:
    """An ONNX file, or its bytes, on the CPU. Raises RuntimeError where it cannot run."""
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # no advice
    try:
        session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except onnxruntime_errors() as error:
        raise RuntimeError(f"ONNX Runtime: {first_cause(error)}") from error
    name = session.get_inputs()[0].name
    return lambda array: session.run(None, {name: array})[0]


def start_openvino(model: Any, precision: str = "") -> ArrayRunner:
    """An openvino.Model, or the path of its .xml, on the CPU.

    precision: "fp32", "bf16" or "fp16" of the arithmetic; else what OpenVINO prefers here.
    """
    vino = importlib.import_module("openvino")
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    if precision in VINO_TYPES:
        settings["INFERENCE_PRECISION_HINT"] = VINO_TYPES[precision]
    request = vino.compile_model(model, "CPU", settings).create_infer_request()
    return lambda array: request.infer([array], share_inputs=True)[0].copy()


BUILDERS = {
    "compiled": compiled,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
}


def can_compile(device: torch.device) -> bool:
    """Whether PyTorch can compile for `device`: on the CPU it needs a C++ compiler."""
    compilers = (os.environ.get("CXX", "g++"), "g++", "clang++", "cl")
    return device.type == "cuda" or (device.type == "cpu" and any(map(shutil.which, compilers)))


def versions() -> dict[str, str]:
    """Of the packages of other runtimes that are installed."""
    names = sorted({name for group in PACKAGES.values() for name in group})
    found = (name for name in names if importlib.util.find_spec(name) is not None)
    return {name: importlib.metadata.version(name) for name in found}


def require(runtime: str) -> None:
    """Raise ValueError where packages that `runtime` needs are not installed."""
    missing = [n for n in PACKAGES.get(runtime, ()) if importlib.util.find_spec(n) is None]
    if missing:
        are = "is" if len(missing) == 1 else "are"
        raise InputError(
            f"{', '.join(missing)} {are} not installed; `pip install {' '.join(missing)}` brings "
            f"{'it' if len(missing) == 1 else 'them'}"
        )


@contextlib.contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Without what exporters and their `loggers` say beside errors; none named = the root's."""
    logs = [logging.getLogger(name) for name in loggers or (None,)]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(None), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of what they call in PyTorch
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
