"""The door to inference: every way gives what the plain network gives."""

import dataclasses
import os
import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import build_model, fuse
from utils import runtimes
from utils.class_map import class_map
from utils.deploy import Deployment, prepare_for_inference
from utils.fused_convolutions import convolution_relu, fuse_convolutions
from utils.resize import resize

SMALL = {"base_channels": 8, "context_channels": 8, "head_channels": 8}


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A small fused network that has learnt nothing but whose norms do something."""
    torch.manual_seed(0)
    model = build_model("pidnet_s", 5, **SMALL)
    for _ in range(2):
        model.train()(torch.randn(2, 3, 64, 64))
    return fuse(model)


def plain(network: nn.Module, image: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return network(image)


@pytest.mark.parametrize("size", [None, (64, 96)])
@pytest.mark.parametrize("output", ["logits", "resized", "classes"])
def test_eager_is_the_network_itself(network, size, output):
    prepared, told = prepare_for_inference(
        network, device="cpu", size=size, output=output, runtime="eager"
    )
    assert told == dataclasses.replace(
        Deployment("eager", "cpu", "fp32", output, size),
        first_call_seconds=told.first_call_seconds,
    )
    assert (told.first_call_seconds is None) == (size is None)
    for shape in [(1, 3, 64, 96), (2, 3, 72, 40)]:  # also sizes that were not announced
        image = torch.randn(shape)
        logits = plain(network, image)
        result = prepared(image)
        if output == "logits":
            torch.testing.assert_close(result, logits, rtol=1e-4, atol=1e-4)
        elif output == "resized":
            resized = network.upsample(logits, tuple(shape[2:]))
            torch.testing.assert_close(result, resized, rtol=1e-4, atol=1e-4)
        else:
            assert result.dtype == torch.uint8
            expected = network.upsample(logits, tuple(shape[2:])).argmax(1)
            assert (result != expected).float().mean() < 1e-3
    assert next(network.parameters()).dtype == torch.float32  # the source is as it was


def test_bfloat16_computes_in_it_and_leaves_the_source(network, monkeypatch):
    prepared, told = prepare_for_inference(network, device="cpu", precision="bf16")
    image = torch.randn(1, 3, 64, 64)
    logits = prepared(image)
    assert told.precision == "bf16" and told.runtime == "eager" and logits.dtype == torch.bfloat16
    exact = plain(network, image)
    assert (logits.float() - exact).abs().max() < 0.1 * exact.abs().max()
    monkeypatch.setattr(type(network), "size_divisor", 8)
    with pytest.raises(ValueError, match="is not a multiple of 8"):
        prepare_for_inference(network, device="cpu", size=(60, 64))


@pytest.mark.slow
@pytest.mark.parametrize("output", ["logits", "classes"])
def test_compiled_is_the_choice_on_the_cpu_for_a_known_size(network, output):
    if not runtimes.can_compile(torch.device("cpu")):
        pytest.skip("there is no C++ compiler")
    prepared, told = prepare_for_inference(network, device="cpu", size=(64, 64), output=output)
    assert told.runtime == "compiled" and told.first_call_seconds > 0
    image = torch.randn(1, 3, 64, 64)
    logits, result = plain(network, image), prepared(image)
    if output == "logits":
        torch.testing.assert_close(result, logits, rtol=1e-3, atol=1e-4)
    else:
        classes = network.upsample(logits, (64, 64)).argmax(1)
        assert result.dtype == torch.uint8 and (result != classes).float().mean() < 1e-3


@pytest.mark.slow
@torch.no_grad()
def test_what_is_compiled_holds_its_weights_as_constants():
    if not runtimes.can_compile(torch.device("cpu")):
        pytest.skip("there is no C++ compiler")
    for _ in range(10):  # PyTorch by itself would compile eight of them
        layer = nn.Conv2d(3, 4, 3).eval()
        image = torch.randn(1, 3, 8, 8)
        expected = layer(image)
        run, _ = runtimes.compiled(layer, image)
        nn.init.zeros_(layer.weight)
        with torch.inference_mode():
            torch.testing.assert_close(run(image.clone()), expected)


def test_without_a_compiler_it_is_eager(network, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert shutil.which("g++") is None and "PATH" in os.environ
    told = prepare_for_inference(network, device="cpu", size=(64, 64))[1]
    assert told.runtime == "eager"
    with pytest.raises(ValueError, match="needs a C\\+\\+ compiler"):
        prepare_for_inference(network, device="cpu", size=(64, 64), runtime="compiled")


def test_what_fails_to_compile_is_told(network, monkeypatch):
    def broken(network, image):
        raise RuntimeError("no header\nlong story")

    monkeypatch.setitem(runtimes.BUILDERS, "compiled", broken)
    monkeypatch.setattr(runtimes, "can_compile", lambda device: True)
    prepared, told = prepare_for_inference(network, device="cpu", size=(64, 64))
    assert told.runtime == "eager" and told.remarks == ("compiled is not possible: no header",)
    assert "no header" in str(told)
    image = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(prepared(image), plain(network, image), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="runtime compiled is not possible: no header"):
        prepare_for_inference(network, device="cpu", size=(64, 64), runtime="compiled")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int4"}, "precision is 'int4'; accepted: fp32, bf16, fp16"),
        ({"output": "masks"}, "output is 'masks'; accepted: logits, resized, classes"),
        ({"runtime": "tvm"}, "runtime is 'tvm'; accepted: torch, eager, graph"),
        ({"runtime": "graph"}, "runtime graph needs a CUDA device; this is cpu"),
        ({"precision": "fp16"}, "precision fp16 needs CUDA"),
        ({"runtime": "onnxruntime", "precision": "bf16"}, "onnxruntime computes in fp32"),
        ({"runtime": "openvino", "device": "cuda"}, "runtime openvino runs on the CPU"),
    ],
)
def test_what_cannot_be_is_said(network, options, message):
    with pytest.raises(ValueError, match=message):
        prepare_for_inference(network, **{"device": "cpu", **options})


def test_a_runtime_that_is_not_installed_is_named(network, monkeypatch):
    monkeypatch.setattr(runtimes.importlib.util, "find_spec", lambda name: None)
    for runtime in ("openvino", "onnxruntime"):
        with pytest.raises(ValueError, match=f"pip install {runtime}"):
            prepare_for_inference(network, device="cpu", size=(64, 64), runtime=runtime)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((2, 5, 7, 9), (56, 72)),
        ((1, 19, 6, 4), (13, 300)),
        ((1, 3, 9, 9), (9, 9)),
        ((1, 3, 9, 9), (4, 5)),
        ((1, 2, 1, 1), (5, 6)),
    ],
)
def test_class_map_is_the_argmax_of_resized_logits(shape, size, aligned, layout, monkeypatch):
    monkeypatch.setattr("utils.class_map.STRIP", 4096)  # several strips
    logits = torch.randn(shape).to(memory_format=layout)
    resized = resize(logits, size, align_corners=aligned)
    found = class_map(logits, size, align_corners=aligned)
    assert found.dtype == torch.uint8 and found.shape == (shape[0], *size)
    first, second = resized.topk(2, 1)[0].unbind(1)
    different = found != resized.argmax(1)
    assert not (different & (first - second > 1e-5)).any()


def test_class_map_of_equals_takes_the_first():
    assert class_map(torch.ones(1, 4, 2, 2), (8, 8)).max() == 0
    with pytest.raises(ValueError, match="257 classes; class maps of 8 bits hold 256"):
        class_map(torch.ones(1, 257, 2, 2), (8, 8))


class Chain(nn.Module):
    """Convolutions whose ReLUs can go, cannot go, and may not go."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.grouped, self.last = nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.first(x), inplace=True)  # goes
        y = self.second(x)
        y = F.relu(y.add_(x))  # goes, with the sum
        y = F.relu(self.grouped(y))  # stays: grouped
        z = self.last(y)
        return F.relu(z) + z  # stays: z is needed


def test_convolutions_take_what_follows_them():
    torch.manual_seed(0)
    network, image = Chain().eval(), torch.randn(2, 3, 8, 10)
    traced, merged = fuse_convolutions(network, image)
    assert merged == 2
    calls = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert calls.count(convolution_relu) == 2
    assert calls.count(torch.ops.aten.relu.default) == 2
    for other in (image, torch.randn(2, 3, 8, 10)):
        assert torch.equal(traced(other), plain(network, other))


@pytest.mark.medium
@pytest.mark.parametrize("name", ["pidnet_s", "rtlinearformer_slim", "rdrnet_s", "lrformer_t"])
def test_traced_networks_compute_the_same(name):
    torch.manual_seed(0)
    network = fuse(build_model(name, 4)).to(memory_format=torch.channels_last)
    image = torch.randn(1, 3, 64, 96).contiguous(memory_format=torch.channels_last)
    traced, merged = fuse_convolutions(network, torch.zeros_like(image))
    assert merged > 1
    torch.testing.assert_close(traced(image), plain(network, image), rtol=1e-5, atol=1e-6)
