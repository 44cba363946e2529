"""Networks in 8 bits: what stays in float, and how the libraries are asked for the rest.

What stays is told by the graph and not by names: the arithmetic of attention (quotients, powers,
roots, sums over positions, softmax, products of two computed tensors, and products with the result
of these), which ranges over more orders of magnitude than 8 bits have values. In OpenVINO the first
convolution, too: NNCF gives its weights one bit less, as sums of 8-bit pixels overflow on older
processors, which cost more of the score than all other layers together, and it is a small layer.
"""

import importlib
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .errors import InputError
from .failures import first_cause
from .runtimes import onnxruntime_errors, quiet

FRAMES = 100  # of the calibration images, evenly spaced, that are used
CONVOLUTIONS = {"Conv", "Convolution", "GroupConvolution"}
PRODUCTS = CONVOLUTIONS | {"Einsum", "Gemm", "MatMul", "Mul", "Multiply"}
ARITHMETIC = set(
    "Clip Div Divide Max Maximum Min Minimum Pow Power Reciprocal ReduceL2 ReduceSum Softmax Sqrt "
    "SoftMax".split()
)
SHAPE = set(
    "Broadcast Cast Concat Convert Expand Gather Reshape Slice Split Squeeze Transpose Unsqueeze "
    "VariadicSplit".split()
)
# Of ONNX, what ONNX Runtime computes in 8 bits without a detour through float.
EIGHT_BITS = "Add AveragePool Concat Conv MatMul MaxPool Relu Resize".split()


class Operation(NamedTuple):
    """A node of a graph: its name, its operator, and the tensors that it takes and gives."""

    name: str
    kind: str
    takes: tuple[str, ...]
    gives: tuple[str, ...]


class Kept(NamedTuple):
    """names: of operations that stay in float. products: how many convolutions and matrix products
    the graph has; kept: how many of them stay."""

    names: list[str]
    products: int
    kept: int


def kept_in_float(operations: Iterable[Operation], entry: str, *, first: bool) -> Kept:
    """What must not be computed in 8 bits; see above.

    Args:
        operations: every one behind those that it takes tensors from.
        entry: the tensor that the graph is given.
        first: whether the first convolution stays, too.
    """
    operations = list(operations)
    wanted = defaultdict(set)  # kinds of the operations that take a tensor
    for op in operations:
        for name in op.takes:
            wanted[name].add(op.kind)
    computed, delicate = {entry}, set()  # tensors
    names, products, kept = [], 0, 0
    for op in operations:
        depends = [name in computed for name in op.takes]
        if not any(depends):
            continue
        computed.update(op.gives)
        behind = any(name in delicate for name in op.takes)
        before = set.union(*(wanted[name] for name in op.gives))
        of_two = op.kind in PRODUCTS and len(depends) > 1 and all(depends[:2])
        arithmetic = op.kind in ARITHMETIC or (op.kind == "ReduceMean" and behind)
        arithmetic |= op.kind == "Add" and bool(before) and before <= ARITHMETIC  # of a divisor
        stays = arithmetic or of_two or (op.kind in PRODUCTS and behind)
        if op.kind in CONVOLUTIONS and first:
            stays, first = True, False
        if arithmetic or (of_two and op.kind not in CONVOLUTIONS) or (op.kind in SHAPE and behind):
            delicate.update(op.gives)
        if op.kind in PRODUCTS - {"Mul", "Multiply"}:
            products, kept = products + 1, kept + stays
        if stays:
            names.append(op.name)
    return Kept(names, products, kept)


def quantise_openvino(model: Any, inputs: Sequence[np.ndarray]) -> tuple[Any, Kept]:
    """An openvino.Model in 8 bits by NNCF, with ranges seen on `inputs`; and what stayed in float.

    Raises:
        ValueError: NNCF cannot.
    """
    nncf = importlib.import_module("nncf")
    entry = model.input(0).get_node().get_friendly_name()
    kept = kept_in_float(_vino_operations(model), entry, first=True)
    with quiet("nncf"):
        try:
            quantised = nncf.quantize(
                model,
                nncf.Dataset(list(inputs)),
                subset_size=len(inputs),
                preset=nncf.QuantizationPreset.MIXED,  # activations need not be symmetric
                ignored_scope=nncf.IgnoredScope(names=kept.names, validate=False),
            )
        except (RuntimeError, nncf.ValidationError) as error:
            raise InputError(f"NNCF cannot quantise this network: {first_cause(error)}") from error
    return quantised, kept


def _vino_operations(model: Any) -> Iterator[Operation]:
    for op in model.get_ordered_ops():
        takes = tuple(i.get_source_output().get_node().get_friendly_name() for i in op.inputs())
        yield Operation(
            op.get_friendly_name(), op.get_type_name(), takes, (op.get_friendly_name(),)
        )


def quantise_onnx(
    model: Any, inputs: Sequence[np.ndarray], *, for_tensorrt: bool = False
) -> tuple[Any, Kept]:
    """An onnx.ModelProto in 8 bits by ONNX Runtime's static quantisation; and what stayed in float.

    for_tensorrt: zero is zero in 8 bits, too, and biases stay in float, as TensorRT asks.

    Raises:
        ValueError: ONNX Runtime cannot.
    """
    library = importlib.import_module("onnxruntime.quantization")
    prepare = importlib.import_module("onnxruntime.quantization.shape_inference")
    onnx = importlib.import_module("onnx")
    entry = model.graph.input[0].name

    class Reader(library.CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(inputs)

        def get_next(self) -> dict[str, np.ndarray] | None:
            array = next(self.left, None)
            return None if array is None else {entry: array}

    options: dict[str, Any] = {"WeightSymmetric": True}
    if for_tensorrt:
        pairs = {"AddQDQPairToWeight": True, "DedicatedQDQPair": True, "QuantizeBias": False}
        options |= {"ActivationSymmetric": True, **pairs}
    kind = library.QuantType.QInt8 if for_tensorrt else library.QuantType.QUInt8
    with tempfile.TemporaryDirectory() as folder, quiet():
        names = ("model.onnx", "prepared.onnx", "quantised.onnx")
        plain, prepared, quantised = (Path(folder) / name for name in names)
        onnx.save(model, plain)
        try:
            prepare.quant_pre_process(plain, prepared, skip_symbolic_shape=True)
            graph = onnx.load(prepared).graph
            kept = kept_in_float(
                (Operation(n.name, n.op_type, tuple(n.input), tuple(n.output)) for n in graph.node),
                entry,
                first=False,
            )
            library.quantize_static(
                prepared,
                quantised,
                Reader(),
                quant_format=library.QuantFormat.QDQ,
                op_types_to_quantize=EIGHT_BITS,
                nodes_to_exclude=kept.names,
                per_channel=True,
                activation_type=kind,
                weight_type=library.QuantType.QInt8,
                calibrate_method=library.CalibrationMethod.MinMax,
                extra_options=options,
            )
        except (RuntimeError, ValueError, *onnxruntime_errors()) as error:
            reason = first_cause(error)
            raise InputError(f"ONNX Runtime cannot quantise this network: {reason}") from error
        return onnx.load(quantised), kept
