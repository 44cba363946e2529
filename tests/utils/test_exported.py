"""What is in an exported graph, what its file says of itself, and what lies beside it."""

import dataclasses
import importlib
import json
import re

import numpy as np
import pytest
import torch
from torch import nn

from models import build_model, fuse
from models.rtformer import max_pool_in_turn
from utils import runtimes
from utils.errors import InputError
from utils.export import (
    FORMATS,
    LEAST,
    MULTIPLE,
    Description,
    FrameNetwork,
    capture,
    dynamic_sides,
    further_sizes,
)
from utils.exported import (
    lower_opset,
    open_file,
    read_description,
    write_file,
)
from utils.handout import FLAGS, page, write_handout

NAMES = ("sky", "größe", "道路")
MEAN, STD = (0.4, 0.5, 0.6), (0.3, 0.25, 0.2)
SMALL = {
    "pidnet_s": {"base_channels": 4, "context_channels": 6, "head_channels": 8},
    "rtlinearformer_slim": {
        "base_channels": 8, "attention_channels": 16, "head_channels": 16, "context_channels": 16,
    },
    "rtformer_slim": {"base_channels": 8, "context_channels": 8, "head_channels": 8},
    "lrformer_t": {
        "embed_dims": (8, 8, 8, 8), "num_heads": (1, 1, 1, 1), "depths": (1, 1, 1, 1),
        "head_channels": 8,
    },
}  # fmt: skip
DESCRIPTION = Description(
    "pidnet_s", "own", NAMES, ((1, 2, 3),) * 3, MEAN, STD, (70, 98), "fp32", "classes", 8, {}, {}
)
DYNAMIC = dynamic_sides((LEAST, LEAST + MULTIPLE))


def small(name: str = "pidnet_s") -> nn.Module:
    """A network of random weights that finds every class about as often."""
    torch.manual_seed(0)
    model = build_model(name, len(NAMES), **SMALL[name])
    with torch.no_grad():
        for _ in range(4):
            model.forward_train(torch.randn(2, 3, 64, 64))
        model.eval()
        last = [
            layer for path, layer in model.named_modules()
            if isinstance(layer, nn.Conv2d) and layer.out_channels == len(NAMES)
            and not path.startswith(model.training_only)
        ][-1]  # fmt: skip
        last.bias -= model(image_of(frame(70, 98))).mean((0, 2, 3))
    return model


def described(**changes) -> Description:
    return dataclasses.replace(DESCRIPTION, **changes)


def frame(*size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (1, *size, 3), np.uint8)


def image_of(frame: np.ndarray) -> torch.Tensor:
    scaled = (torch.from_numpy(frame).double() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    return scaled.permute(0, 3, 1, 2).float()


def test_names_say_how_files_differ():
    assert described().name == "pidnet_s_70x98"
    other = described(precision="int8", output="logits", dynamic=DYNAMIC, size=(320, 384))
    assert other.name == "pidnet_s_320x384_dynamic_int8_logits"
    facts = json.loads(other.text())
    assert facts["format"] == "rtseg-export-1" and facts["class_names"] == list(NAMES)
    assert facts == json.loads(json.dumps(other.to_dict()))


@pytest.mark.parametrize("name", ["pidnet_s", "rtlinearformer_slim", "rtformer_slim"])
def test_a_program_of_pytorch_computes_the_class_map(name, tmp_path):
    model, taken = small(name), frame(70, 98)
    description = described(architecture=name)
    written = write_file("torch", fuse(model), description, tmp_path)
    (path,) = written.files
    assert path.name == f"{name}_70x98.pt2" and path.is_file()
    assert read_description("torch", path) == json.loads(description.text())
    classes = open_file("torch", path, "fp32")(taken)
    with torch.inference_mode():
        expected = model.upsample(model(image_of(taken)), (70, 98)).argmax(1).numpy()
    assert classes.dtype == np.uint8 and (classes == expected).mean() > 0.9999
    assert len(np.unique(expected)) > 1


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_logits_are_float32_at_the_stride(precision, tmp_path):
    model, image = small(), image_of(frame(70, 98))
    description = described(precision=precision, output="logits")
    (path,) = write_file("torch", fuse(model), description, tmp_path).files
    logits = open_file("torch", path, precision)(image.numpy())
    with torch.inference_mode():
        expected = model(image).numpy()
    assert logits.dtype == np.float32 and logits.shape == expected.shape == (1, 3, 9, 13)
    difference = np.abs(logits - expected).max() / np.abs(expected).max()
    assert difference < {"fp32": 1e-5, "fp16": 2e-2, "bf16": 0.15}[precision]
    assert (difference > 1e-5) == (precision != "fp32")


def test_half_precision_is_in_the_weights_and_the_source_is_as_it_was():
    model = fuse(small())
    program = capture(model, described(precision="fp16"))
    kinds = {t.dtype for t in program.state_dict.values() if t.is_floating_point()}
    assert torch.float16 in kinds and next(model.parameters()).dtype == torch.float32
    plain = capture(model, described(precision="fp16"), half=False)
    assert all(t.dtype != torch.float16 for t in plain.state_dict.values())


@pytest.mark.medium
@pytest.mark.parametrize("size", [(320, 384), (384, 576), (576, 512), (576, 640)], ids=str)
def test_dynamic_sizes(size, tmp_path):
    """At all sizes that the description names, whether the context there is one number or more."""
    model = small()
    description = described(size=size, dynamic=dynamic_sides(size))
    (path,) = write_file("torch", fuse(model), description, tmp_path).files
    run, module = open_file("torch", path, "fp32"), FrameNetwork(fuse(model), description)
    tried = further_sizes(description)
    assert len(set(tried)) == 3 and all(side % MULTIPLE == 0 for pair in tried for side in pair)
    for other in [size, *tried]:
        taken = frame(*other)
        with torch.inference_mode():
            expected = module(torch.from_numpy(taken)).numpy()
        assert (run(taken) == expected).mean() > 0.9999


def test_sides_of_a_dynamic_graph_stay_where_its_form_is_the_same():
    found = dynamic_sides((448, 640))
    assert found == {"multiple": 64, "least": [320, 576], "most": [512, 8192]}
    description = described(size=(448, 640), dynamic=found)
    assert further_sizes(description) == [(320, 576), (512, 576), (320, 1088)]
    assert further_sizes(described()) == []


@pytest.mark.medium
@pytest.mark.parametrize("name", ["rtformer_slim", "lrformer_t"])
def test_a_network_of_fixed_sizes_says_so(name):
    description = described(architecture=name, size=(LEAST, LEAST + MULTIPLE), dynamic=DYNAMIC)
    with pytest.raises(InputError, match=f"{name} is not made for dynamic sizes.*leave --dynamic"):
        capture(fuse(small(name)), description)


def test_a_size_that_the_network_cannot_take(monkeypatch):
    model = fuse(small())
    monkeypatch.setattr(type(model), "size_divisor", 8)
    with pytest.raises(ValueError, match="not a multiple of 8"):
        capture(model, described())


@pytest.mark.parametrize("shape", [(24, 48), (12, 12), (5, 7), (33, 64), (8, 11)])
@pytest.mark.parametrize("size", [12, 8, 1])
def test_maximum_pooling_in_turn_is_that_of_pytorch(shape, size):
    x = torch.randn(2, 3, *shape)
    expected = torch.nn.functional.adaptive_max_pool2d(x, size)
    assert torch.equal(max_pool_in_turn(x, size), expected)


def test_every_format_is_written_and_opened():
    for kind in FORMATS.values():
        assert kind.endings and set(kind.precisions) <= {"fp32", "fp16", "bf16", "int8"}
        assert kind.package is None or kind.package in runtimes.PACKAGES


def test_operators_of_an_older_set():
    onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra: export)")
    evaluate = importlib.import_module("onnx.reference").ReferenceEvaluator
    helper, numbers = onnx.helper, onnx.numpy_helper
    axes = numbers.from_array(np.array([2, 3]), "axes")
    sizes = numbers.from_array(np.array([1, 4, 6, 8]), "sizes")
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["mean"], noop_with_empty_axes=0),
        helper.make_node("Add", ["x", "mean"], ["sum"]),
        helper.make_node("Split", ["sum"], ["a", "b"], axis=1, num_outputs=2),
        helper.make_node("Concat", ["b", "a"], ["c"], axis=1),
        helper.make_node("Resize", ["c", "", "", "sizes"], ["y"], mode="linear", antialias=0),
    ]
    value = helper.make_tensor_value_info
    x, y = (
        value(n, onnx.TensorProto.FLOAT, s) for n, s in (("x", [1, 4, 3, 4]), ("y", [1, 4, 6, 8]))
    )
    graph = helper.make_graph(nodes, "g", [x], [y], [axes, sizes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    given = {"x": np.random.default_rng(0).random((1, 4, 3, 4), np.float32)}
    expected = evaluate(model).run(None, given)[0]
    lower_opset(model)  # checks the model
    assert model.opset_import[0].version == 17 and model.ir_version == 8
    assert [tensor.name for tensor in model.graph.initializer] == ["sizes"]
    np.testing.assert_allclose(evaluate(model).run(None, given)[0], expected, rtol=1e-6)
    model.graph.node.append(helper.make_node("BitwiseNot", ["y"], ["z"]))
    with pytest.raises(InputError, match="no form in ONNX operator set 17"):
        lower_opset(model)


def reported(folder, description, *files, status="passed"):
    """Exported files with their reports."""
    for file in files:
        (folder / file).write_text("")
        report = {"file": file, "status": status, "description": description.to_dict()}
        (folder / f"{file}.gate.json").write_text(json.dumps(report), encoding="utf-8")


@pytest.mark.parametrize("output", ["classes", "logits"])
@pytest.mark.parametrize("dynamic", [{}, DYNAMIC])
@pytest.mark.parametrize("precision", FLAGS)
def test_the_page_beside_the_files(precision, dynamic, output, tmp_path):
    description = described(precision=precision, dynamic=dynamic, output=output, size=(320, 384))
    name = description.name
    files = [f"{name}.onnx", f"{name}.xml", f"{name}.tensorrt.onnx"]
    reported(tmp_path, description, *files)
    write_handout(tmp_path, description)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert all(f"`{file}`" in text for file in files) and "{" not in text
    (line,) = re.findall(r"^trtexec .*$", text, re.MULTILINE)
    assert f"--onnx={name}.tensorrt.onnx" in line
    assert ("--int8" in line) == (precision == "int8")
    assert ("--optShapes" in line and "320x384" in line) == bool(dynamic)
    assert ("--maxShapes" in line and "512x512" in line) == bool(dynamic)
    of_frames = output == "classes"
    assert ("python run.py" in text) == of_frames == (tmp_path / "run.py").is_file()
    assert ("uint8, RGB" in text) == of_frames
    facts = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
    assert facts == json.loads(description.text())
    assert ("`run.py` takes the engine" in text) == of_frames
    plain = page(description, files[:1])
    assert ("trtexec" in plain) == (precision != "int8")  # its zeros are elsewhere


def test_the_page_tells_of_all_that_lies_in_the_folder(tmp_path):
    one, other = described(), described(architecture="rdrnet_s", precision="bf16")
    reported(tmp_path, one, f"{one.name}.onnx")
    reported(tmp_path, one, f"{one.name}.xml", status="failed")
    write_handout(tmp_path, one)
    (tmp_path / "somebody's.gate.json").write_text("[]")
    reported(tmp_path, other, f"{other.name}.pt2", f"{other.name}.aoti.pt2")
    reported(tmp_path, other, f"{other.name}.xml")
    (tmp_path / f"{other.name}.xml").unlink()  # somebody has moved it
    write_handout(tmp_path, other)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert f"# {one.name}\n" in text and f"# {other.name}\n" in text
    assert f"`{one.name}.onnx`" in text and ".xml`" not in text
    assert {f"{d.name}.json" for d in (one, other)} < {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("output", ["classes", "logits"])
def test_the_page_runs_a_program_of_pytorch(output, tmp_path, monkeypatch):
    description = described(output=output)
    write_file("torch", fuse(small()), description, tmp_path)
    file = f"{description.name}.pt2"
    (code,) = re.findall(r"```python\n(.*?)```", page(description, [file]), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    shape = (1, 70, 98) if output == "classes" else (1, 3, 9, 13)
    assert names[output].shape == shape
    assert "aoti_load_package" in page(description, [f"{description.name}.aoti.pt2"])
