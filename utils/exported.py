"""The files of every format of `utils.export`: how each is written, and how it is run here."""

import errno
import importlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.export import ExportedProgram

from . import runtimes
from .errors import InputError
from .export import FORMATS, Description, capture
from .failures import first_cause
from .inference import Network
from .quantise import Kept, quantise_onnx, quantise_openvino
from .records import atomic_write, storage_error
from .runtimes import ArrayRunner

KEY = "rtseg"  # of the description in a file's own metadata
EXTRA_FILE = "rtseg.json"  # the same in a program of PyTorch
IR_VERSION = 8  # of ONNX, that of operator set 17


def names_of(description: Description) -> tuple[str, str]:
    """Names of a graph's input and output."""
    return ("frame" if description.output == "classes" else "image"), description.output


def onnx_model(program: ExportedProgram, description: Description) -> Any:
    """The onnx.ModelProto in operator set 17, which TensorRT 8.5 reads (JetPack 5.1)."""
    model = runtimes.to_onnx(program, *names_of(description))
    lower_opset(model)
    return model


def lower_opset(model: Any) -> None:
    """Turn the operators of set 18 in an onnx.ModelProto to those of set 17.

    ONNX's own converter does not know the way back for reductions.

    Raises:
        ValueError: an operator has no earlier form.
    """
    onnx = importlib.import_module("onnx")
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        later = {"ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin"}  # others: 13 and before
        if node.op_type in later:
            if len(node.input) > 1 and node.input[1] not in constants:
                raise InputError(f"{node.name} reduces over axes that are computed")
            axes = [onnx.numpy_helper.to_array(constants[name]) for name in node.input[1:]]
            del node.input[1:]
            _drop(node, "noop_with_empty_axes")
            if axes:
                node.attribute.append(onnx.helper.make_attribute("axes", axes[0].tolist()))
        elif node.op_type == "Split":
            _drop(node, "num_outputs")
        elif node.op_type == "Resize":
            _drop(node, "antialias", "axes", "keep_aspect_ratio_policy")
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for name, tensor in constants.items() if name not in used]:
        graph.initializer.remove(tensor)
    for imported in model.opset_import:
        if imported.domain in ("", "ai.onnx"):
            imported.version = 17
    model.ir_version = IR_VERSION
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = first_cause(error)
        raise InputError(f"the graph has no form in ONNX operator set 17: {reason}") from error


def _drop(node: Any, *names: str) -> None:
    for attribute in [a for a in node.attribute if a.name in names]:
        node.attribute.remove(attribute)


def write_onnx(model: Any, description: Description, path: Path) -> None:
    """Write an onnx.ModelProto with its description."""
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, description.text()
    atomic_write(path, model.SerializeToString())


def write_openvino(model: Any, description: Description, path: Path) -> None:
    """Write an openvino.Model with its description: `path` (.xml) and a .bin beside it."""
    vino = importlib.import_module("openvino")
    model.set_rt_info(description.text(), KEY)
    try:
        vino.save_model(model, path, compress_to_fp16=description.precision == "fp16")
    except RuntimeError as error:  # which does not say why
        told = OSError(errno.EFBIG, "OpenVINO could not write the whole file")
        raise storage_error(path, told, None, "nothing was written") from error


def write_torch(program: ExportedProgram, description: Description, path: Path) -> None:
    """Write a program of torch.export with its description."""
    held = io.BytesIO()  # PyTorch's own writer ends the process where the disk is full
    with runtimes.quiet("torch"):
        torch.export.save(program, held, extra_files={EXTRA_FILE: description.text()})
    atomic_write(path, held.getvalue())


def write_aoti(program: ExportedProgram, description: Description, path: Path) -> None:
    """Compile for this machine's CPU and write the package, with its description.

    Raises:
        ValueError: the compiler fails.
    """
    settings = {"aot_inductor.metadata": {KEY: description.text()}}
    try:
        with runtimes.quiet("torch"):
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(path), inductor_configs=settings
            )
    except RuntimeError as error:
        raise InputError(f"format aoti is not possible: {first_cause(error)}") from error


class Written(NamedTuple):
    """What there is to say of a file that has been written.

    files: all of it. kept: what stayed in float in 8 bits. floating: the same network in the
    fastest precision but 8 bits that its runtime has here, by that precision.
    """

    files: tuple[Path, ...]
    kept: Kept | None = None
    floating: Mapping[str, ArrayRunner] = MappingProxyType({})


def write_file(
    kind: str,
    network: Network,
    description: Description,
    folder: Path,
    inputs: Sequence[np.ndarray] = (),
) -> Written:
    """Write a network in a format of `FORMATS` into `folder`.

    Args:
        network: in eval mode and deployed form; it is copied.
        inputs: arrays as the graph takes them, whose ranges 8 bits are to hold.

    Raises:
        ValueError: the network has no such form, see `capture`.
    """
    stem, in_8_bits = folder / description.name, description.precision == "int8"
    files = tuple(Path(f"{stem}{ending}") for ending in FORMATS[kind].endings)
    # OpenVINO chooses the precision of its arithmetic itself; quantisation starts from float32.
    program = capture(network, description, half=kind != "openvino" and not in_8_bits)
    if kind in ("torch", "aoti"):
        (write_torch if kind == "torch" else write_aoti)(program, description, files[0])
        return Written(files)
    kept, floating = None, {}
    if kind == "openvino":
        model = runtimes.to_openvino(program, *names_of(description))
        if in_8_bits:
            floating["bf16"] = runtimes.start_openvino(model.clone(), "bf16")
            model, kept = quantise_openvino(model, inputs)
        write_openvino(model, description, files[0])
        return Written(files, kept, floating)
    model = onnx_model(program, description)
    if in_8_bits:
        if kind == "onnx":  # ONNX Runtime has no half precision on the CPU
            floating["fp32"] = runtimes.start_onnxruntime(model.SerializeToString())
        model, kept = quantise_onnx(model, inputs, for_tensorrt=kind == "tensorrt")
    write_onnx(model, description, files[0])
    return Written(files, kept, floating)


def read_description(kind: str, path: Path) -> dict[str, Any]:
    """What a file says of itself."""
    if kind in ("onnx", "tensorrt"):
        model = importlib.import_module("onnx").load(path)
        text = next(entry.value for entry in model.metadata_props if entry.key == KEY)
    elif kind == "openvino":
        text = importlib.import_module("openvino").Core().read_model(path).get_rt_info(KEY).value
    elif kind == "torch":
        extra = {EXTRA_FILE: ""}
        torch.export.load(path, extra_files=extra)
        text = extra[EXTRA_FILE]
    else:
        text = torch._inductor.aoti_load_package(str(path)).get_metadata()[KEY]
    return json.loads(text)


def open_file(kind: str, path: Path, precision: str) -> ArrayRunner:
    """A file as a function from an input array to the output's array, on this machine's CPU.

    precision: that of the description.

    Raises:
        RuntimeError: its runtime cannot run it here.
    """
    return OPENERS[kind](path, precision)


def _open_program(load: Callable[[Path], Any]) -> Callable[[Path, str], ArrayRunner]:
    def start(path: Path, precision: str) -> ArrayRunner:
        run = load(path)

        def call(array: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                return run(torch.from_numpy(array)).numpy()

        return call

    return start


OPENERS: dict[str, Callable[[Path, str], ArrayRunner]] = {
    "onnx": lambda path, precision: runtimes.start_onnxruntime(path),
    "tensorrt": lambda path, precision: runtimes.start_onnxruntime(path),
    "openvino": runtimes.start_openvino,
    "torch": _open_program(lambda path: torch.export.load(path).module()),
    "aoti": _open_program(lambda path: torch._inductor.aoti_load_package(str(path))),
}
assert OPENERS.keys() == FORMATS.keys()
