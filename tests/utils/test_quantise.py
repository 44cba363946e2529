"""What stays in float is told by the graph."""

import numpy as np
import pytest
import torch

from models import build_model, fuse
from utils import runtimes
from utils.export import Description, capture
from utils.exported import onnx_model
from utils.quantise import Operation, kept_in_float, quantise_onnx, quantise_openvino

# As in RTLinearFormer: a convolution, attention by a summary and a quotient, and one more.
GRAPH = """
stem: Convolution image w0 -> a
relu: Relu a -> b
query: Convolution b w1 -> q
key: Convolution b w2 -> k
flat: Reshape k s -> kf
total: ReduceSum kf axes -> t
state: MatMul kf kf -> m
sums: Convolution q t -> u
plus: Add u eps -> v
inverse: Power v minus -> r
spread: Convolution r w3 -> z
scaled: Multiply z q -> y
shaped: Reshape m s -> ms
mix: Convolution y ms -> x
add: Add x b -> c
norm: Multiply c w4 -> d
mean: ReduceMean d axes -> e
last: Convolution e w5 -> f
constant: Divide w6 w7 -> w8
"""
FLOAT = {"total", "state", "sums", "plus", "inverse", "spread", "scaled", "mix"}


def operations():
    for line in GRAPH.strip().splitlines():
        name, rest = line.split(": ")
        (kind, *takes), gives = (part.split() for part in rest.split(" -> "))
        yield Operation(name, kind, tuple(takes), tuple(gives))


def test_attention_stays_in_float():
    kept = kept_in_float(operations(), "image", first=False)
    assert set(kept.names) == FLOAT
    assert (kept.products, kept.kept) == (8, 4)
    kept = kept_in_float(operations(), "image", first=True)
    assert set(kept.names) == FLOAT | {"stem"} and kept.kept == 5


@pytest.fixture(scope="module")
def attention():
    """A small RTLinearFormer as a float32 graph, and frames."""
    torch.manual_seed(0)
    options = {"base_channels": 8, "attention_channels": 16, "head_channels": 16}
    network = build_model("rtlinearformer_slim", 4, context_channels=16, **options)
    with torch.no_grad():
        for _ in range(4):
            network.forward_train(torch.randn(2, 3, 64, 64))
    description = Description(
        "rtlinearformer_slim", "", tuple("abcd"), ((0, 0, 0),) * 4, (0.5,) * 3, (0.25,) * 3,
        (64, 96), "int8", "classes", 8, {}, {},
    )  # fmt: skip
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (1, 64, 96, 3), np.uint8) for _ in range(4)]
    return capture(fuse(network), description, half=False), description, frames


@pytest.mark.medium
@pytest.mark.parametrize("for_tensorrt", [False, True])
def test_onnx(attention, for_tensorrt):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra: export)")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra: export)")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed (extra: export)")
    program, description, frames = attention
    model = onnx_model(program, description)
    plain = runtimes.start_onnxruntime(model.SerializeToString())
    quantised, kept = quantise_onnx(model, frames, for_tensorrt=for_tensorrt)
    run = runtimes.start_onnxruntime(quantised.SerializeToString())
    equal = np.mean([(run(frame) == plain(frame)).mean() for frame in frames])
    assert 0.8 < equal < 1
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in quantised.graph.initializer}
    stored = {
        node.output[0] for node in quantised.graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] in tensors
    } | tensors.keys()  # fmt: skip
    weights = {
        node.output[0] for node in quantised.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in stored
    }  # fmt: skip
    eight = {
        node.name for node in quantised.graph.node
        if node.op_type in ("Conv", "MatMul") and node.input[1] in weights
    }  # fmt: skip
    assert kept.kept > 4 and not eight & set(kept.names) and len(eight) > kept.products / 2
    zeros = [node.input[2] for node in quantised.graph.node if node.op_type == "QuantizeLinear"]
    centred = all(not tensors[name].any() for name in zeros)
    assert centred == for_tensorrt
    assert for_tensorrt != any(t.dtype == np.int32 and t.ndim == 1 for t in tensors.values())


@pytest.mark.medium
def test_openvino(attention):
    pytest.importorskip("openvino", reason="openvino is not installed (extra: openvino)")
    pytest.importorskip("nncf", reason="nncf is not installed (extra: openvino)")
    program, _, frames = attention
    model = runtimes.to_openvino(program, "frame", "classes")
    plain = runtimes.start_openvino(model.clone(), "fp32")
    quantised, kept = quantise_openvino(model, frames)
    run = runtimes.start_openvino(quantised, "fp32")
    equal = np.mean([(run(frame) == plain(frame)).mean() for frame in frames])
    assert 0.8 < equal < 1
    sources = {
        op.get_friendly_name(): [
            entry.get_source_output().get_node().get_type_name() for entry in op.inputs()
        ]
        for op in quantised.get_ordered_ops()
    }
    assert kept.kept > 4 and sum("FakeQuantize" in kinds for kinds in sources.values()) > 20
    assert not any("FakeQuantize" in sources[name] for name in kept.names)
