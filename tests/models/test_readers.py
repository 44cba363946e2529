"""Every container in which weights are published gives the tensors that went in."""

import argparse
import datetime
import io
import json
import pickle
import sys
import types
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_files import (
    call,
    entry,
    equal,
    golden_keys,
    named,
    number,
    pdparams,
    small,
    tensor,
    text,
    torch_legacy,
    torch_zip,
)
from safetensors.torch import save_file
from torch import Tensor, nn

from models import build_model
from models.weights import load_weights, read_checkpoint


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


STATE = {"a.weight": numbers(2, 3), "a.bias": numbers(3, seed=1), "a.count": torch.tensor(7)}


def same(path: Path, expected: dict[str, Tensor] | None = None) -> dict[str, str]:
    """The file holds exactly these tensors. Returns what was ignored, and why."""
    expected = STATE if expected is None else expected
    found = read_checkpoint(path)
    assert list(found.tensors) == list(expected)
    for key, value in expected.items():
        ours = found.tensors[key]
        assert ours.dtype == value.dtype and ours.shape == value.shape and torch.equal(ours, value)
    return found.ignored


def refused(path: Path, match: str, error: type[Exception] = ValueError) -> None:
    with pytest.raises(error, match=match) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.fixture
def write(tmp_path):
    def write_bytes(content: bytes, name: str = "weights.pdparams") -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return write_bytes


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_torch_files_of_every_protocol(zipped, protocol, save):
    how = {"_use_new_zipfile_serialization": zipped, "pickle_protocol": protocol}
    assert same(save(STATE, **how)) == {}
    assert same(save(OrderedDict(STATE), **how)) == {}


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_lie_below_the_names_that_scripts_use(zipped, save):
    wrapped = (
        {"state_dict": STATE, "args": argparse.Namespace(lr=0.1)},
        {"model": {"state_dict": STATE}, "epoch": 3},
        {"checkpoint": 1, "model_state_dict": STATE, "when": datetime.datetime(2024, 1, 1)},
        {"ema": {"module": STATE}, "best": np.float64(0.5), "scores": [np.int64(1)]},
        {"state": {0: {"exp_avg": torch.ones(3)}}, "net": STATE},
        {"model": {"model": {"model": {"model": STATE}}}},
        {"params": defaultdict(None, STATE)},
    )
    for content in wrapped:
        same(save(content, _use_new_zipfile_serialization=zipped))
    both = {"ema": {"a": torch.zeros(1)}, "model": STATE}
    same(save(both, _use_new_zipfile_serialization=zipped))
    ignored = same(save({**STATE, "epoch": 3, "note": "x"}, _use_new_zipfile_serialization=zipped))
    assert ignored == {"epoch": "not a tensor", "note": "not a tensor"}


def test_wrapper_that_holds_itself(write, save):
    cycle = b"\x80\x02}q\x00(" + text("model") + b"h\x00" + text("w") + tensor((2,), (1,)) + b"u."
    path = write(torch_zip(cycle, {"0": np.arange(4, dtype=np.float32).tobytes()}))
    assert same(path, {"w": torch.tensor([0.0, 1.0])}) == {"model": "not a tensor"}
    content: dict = {"w": torch.ones(2)}
    content["state_dict"] = content["model"] = content
    same(save(content), {"w": torch.ones(2)})


def test_facts_of_our_own_checkpoints(save):
    content = {"model": STATE, "architecture": "x", "options": {"a": (1, 2)}, "dataset": 3}
    found = read_checkpoint(save(content))
    assert found.facts == {"architecture": "x", "options": {"a": (1, 2)}}


def test_entries_asked_for_are_plain_data(save):
    moment = numbers(2, 3)
    optimizer = {"state": {0: {"m": moment, "step": 3}}, "groups": [{"betas": (0.9, moment)}]}
    content = {"model": STATE, "optimizer": optimizer, "seen": [moment[0]], "lr": 0.1}
    path = save(content)
    assert read_checkpoint(path).facts == {}
    found = read_checkpoint(path, {"optimizer": dict, "seen": list, "lr": str, "gone": int}).facts
    assert found.keys() == {"optimizer", "seen"}  # the rest is absent or of another type
    assert found["optimizer"]["state"][0].keys() == {"m", "step"}
    assert torch.equal(found["optimizer"]["state"][0]["m"], moment)
    beta, same_moment = found["optimizer"]["groups"][0]["betas"]
    assert beta == 0.9 and torch.equal(same_moment, moment)
    assert torch.equal(found["seen"][0], moment[0])
    complex_numbers = {"model": STATE, "seen": [torch.ones(2, dtype=torch.complex64)]}
    same(save(complex_numbers))
    with pytest.raises(ValueError, match="seen is stored in a type that is not read"):
        read_checkpoint(save(complex_numbers), {"seen": list})


@pytest.fixture
def foreign_module():
    """A module that is there while a file is written and gone when it is read."""
    module = types.ModuleType("gone_project.core")
    sys.modules["gone_project"] = sys.modules["gone_project.core"] = module
    yield module
    sys.modules.pop("gone_project", None), sys.modules.pop("gone_project.core", None)


def define(module: types.ModuleType, base: type, name: str, **members) -> type:
    cls = type(name, (base,), {"__module__": module.__name__, **members})
    setattr(module, name, cls)
    return cls


@pytest.mark.parametrize("zipped", [True, False])
def test_unknown_classes_beside_the_weights_are_inert(zipped, foreign_module, save):
    config = define(foreign_module, object, "Config")()
    config.secret = [config, {"lr": 0.1}]
    buffer_class = define(foreign_module, object, "HistoryBuffer")
    getter = Reduced(getattr, buffer_class, "mean")  # as mmengine's message hub has it
    history = buffer_class()
    history.methods, history.log = {"mean": getter}, np.ones(3)
    bag = define(foreign_module, dict, "Bag")(STATE)
    bag.note = "attributes do not matter"
    mixed = define(foreign_module, dict, "Mixed")(STATE, hidden=config)
    items = define(foreign_module, list, "Items")([1, 2])
    choices = define(foreign_module, set, "Choices")(["a"])
    contents = (
        {"state_dict": STATE, "config": config, "hub": {"h": history}, "more": (items, choices)},
        {"state_dict": STATE, "hub": getter, "optimizer": {"state": {0: {"m": config}}}},
        {"state_dict": bag},
        bag,
        mixed,
    )
    paths = [
        save(content, f"{i}.pt", _use_new_zipfile_serialization=zipped)
        for i, content in enumerate(contents)
    ]
    del sys.modules["gone_project"], sys.modules["gone_project.core"]
    modules = set(sys.modules)
    for path, content in zip(paths, contents, strict=True):
        assert same(path) == ({"hidden": "not a tensor"} if content is mixed else {})
    assert set(sys.modules) - modules <= {"encodings.cp437"}  # zip's own


class Reduced:
    """Pickles as a call."""

    def __init__(self, *parts: object) -> None:
        self.parts = parts

    def __reduce__(self):
        function, *arguments = self.parts
        return function, tuple(arguments)


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_of_every_kind(zipped, save):
    base = numbers(4, 5)
    annotated, parameter = numbers(2), nn.Parameter(numbers(3))
    annotated.note = parameter.note = "attributes do not matter"
    state = {
        "tied": base,
        "tied.too": base,
        "row": base[1],
        "columns": base[:, 1:3],
        "turned": base.t(),
        "steps": base[::2, ::2],
        "expanded": base[:1].expand(3, 5),
        "channels_last": numbers(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0),
        "empty.matrix": torch.empty(0, 3),
        "parameter": nn.Parameter(numbers(2, 2)),
        "parameter.note": parameter,
        "note": annotated,
        "grad": numbers(2).requires_grad_(),
        "flag": torch.tensor([True, False]),
        **{
            str(dtype): numbers(3, dtype=dtype)
            for dtype in (torch.float16, torch.bfloat16, torch.float64)
        },
        **{
            str(dtype): torch.tensor([1, 2], dtype=dtype)
            for dtype in (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
        },
    }
    path = save(state, _use_new_zipfile_serialization=zipped)
    same(path, {key: value.detach() for key, value in state.items()})
    tied = read_checkpoint(path).tensors
    assert tied["tied"].data_ptr() == tied["tied.too"].data_ptr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
def test_untyped_storages(dtype, save):
    value = numbers(3, 4).mul(9).to(dtype)
    rebuild = torch._utils._rebuild_tensor_v3
    arguments = (value.untyped_storage(), 4, (2, 4), (4, 1), False, OrderedDict(), dtype)
    same(save({"w": Reduced(rebuild, *arguments)}), {"w": value[1:]})


def test_types_that_no_network_has_are_named(save):
    refused(save({"w": torch.ones(2, dtype=torch.complex64)}), "w is stored in a type that is not")
    path = save({"w": torch.ones(2, dtype=torch.uint16)})
    refused(path, "w is stored as torch.uint16, which is not read")
    beside = {"state_dict": STATE, "seen": torch.ones(2, dtype=torch.uint16)}
    same(save(beside))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_safetensors(dtype, tmp_path):
    state = {"b.weight": numbers(2, 3, dtype=dtype), "a": torch.tensor(3), "e": torch.empty(0, 2)}
    path = tmp_path / "model.safetensors"
    save_file(state, path, metadata={"format": "pt", "note": "x"})
    found = read_checkpoint(path)
    assert found.tensors.keys() == state.keys() and not found.ignored
    assert all(torch.equal(found.tensors[k], v) for k, v in state.items())
    assert all(found.tensors[k].dtype == v.dtype for k, v in state.items())
    model, other = small(), small(seed=1)
    save_file(model.state_dict(), path)
    load_weights(other, path)
    assert equal(model, other)


@pytest.mark.parametrize("numpy1", [True, False])
@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_paddle_files_of_every_protocol(protocol, numpy1, write):
    state = STATE | {"half": numbers(2, dtype=torch.float16), "flag": torch.tensor([True])}
    ignored = same(write(pdparams(state, protocol, numpy1)), state)
    assert ignored == {"StructuredToParameterName@@": "Paddle's internal names"}
    ordered = pickle.dumps(OrderedDict({k: v.numpy() for k, v in state.items()}), protocol)
    same(write(ordered), state)


def test_array_layouts(write):
    value = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    fortran = np.asfortranarray(value)
    assert fortran.flags.f_contiguous and not fortran.flags.c_contiguous
    for protocol in range(6):
        arrays = {
            "plain": value,
            "again": value,
            "fortran": fortran,
            "big": value.astype(">f4"),
            "strided": value[:, ::2],
            "scalar": np.array(1.5),
            "empty": np.empty((0, 3), np.float32),
            "double": value.astype(np.float64),
        }
        expected = {
            k: torch.from_numpy(v.astype(v.dtype.newbyteorder("="))) for k, v in arrays.items()
        }
        same(write(pickle.dumps(arrays, protocol)), expected)


def test_arrays_written_by_python_2(write):
    raw = np.array([0.5, -1.5, 3e9], np.float32).tobytes()
    assert max(raw) >= 0x80  # so that latin-1 and UTF-8 differ
    dtype = call("numpy.dtype", text("f4"), number(0), number(1))
    dtype += b"(" + number(3) + text("<") + b"NNN" + number(-1) * 2 + number(0) + b"tb"
    array = call(
        "numpy.core.multiarray._reconstruct", b"cnumpy\nndarray\n", number(0) + b"\x85U\x01b"
    )
    array += (
        b"(" + number(1) + number(3) + b"\x85" + dtype + b"\x89U" + bytes([len(raw)]) + raw + b"tb"
    )
    same(write(entry(array)), {"w": torch.tensor([0.5, -1.5, 3e9])})
    pairs = b"](](" + text("w") + array + b"ee"
    same(
        write(b"\x80\x02ccollections\nOrderedDict\n" + pairs + b"\x85R."),
        {"w": torch.tensor([0.5, -1.5, 3e9])},
    )


def test_paddle_networks(tmp_path):
    model = small("rtformer_slim")
    state = named(model, golden_keys("rtformer_slim"))
    path = tmp_path / "model.pdparams"
    for protocol, numpy1 in ((2, True), (4, True), (4, False), (5, False)):
        content = pdparams(state, protocol, numpy1)
        path.write_bytes(content)
        other = small("rtformer_slim", seed=1)
        report = load_weights(other, path)
        assert report.startswith(
            "271 tensors loaded, 1 dropped (Paddle's internal names), none missing"
        )
        assert "51 constant (Paddle counts no batches)" in report
        assert equal(model, other, ("num_batches_tracked",))
        for share in (0.1, 0.6, 0.999):
            path.write_bytes(content[: int(share * len(content))])
            refused(path, "is damaged or cut off")


def test_pickles_hold_arrays_of_numbers_only(write):
    for value, sentence in (
        (np.array([{}], dtype=object), "w is an array without raw bytes"),
        (np.array(["a"]), "w is an array of U1, which are not numbers"),
        (np.ones(2, np.complex64), "w is an array of c8, which are not numbers"),
        (np.zeros(2, "f4,f4"), "w is an array of V8, which are not numbers"),
        (torch.ones(2), "pickle that calls torch"),
        (argparse.Namespace(), r"holds no weights \(found: w\)"),
    ):
        refused(write(pickle.dumps({"w": value}, 4)), sentence)
    split = {"a": np.ones(2, np.float32), "UnpackBigParamInfor@@": {}}
    refused(write(pickle.dumps(split, 4)), "split over several entries")
    encoded = pickle.dumps({"w": np.ones(2, np.float32)}, 2)
    assert encoded.count(text("latin1")) == 1
    refused(write(encoded.replace(text("latin1"), text("utf-16"))), "damaged or cut off")


def test_files_that_are_no_checkpoints(tmp_path, save, write):
    refused(tmp_path / "no.pt", "does not exist; expected a torch", FileNotFoundError)
    refused(tmp_path, "is a directory; expected")
    for content, sentence in (
        (b"", r"is empty \(0 bytes\)"),
        (b"version https://git-lfs", r"\(23 bytes\) is not a checkpoint"),
        (b"\x80\x04garbage", "is damaged or cut off"),
        (pickle.dumps([1, 2]), "holds a pickled list, not a state dict of named tensors"),
        (pickle.dumps({"a": 1}), "holds no weights .found: a"),
    ):
        refused(write(content), sentence)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(write(stream.getvalue()), "is a zip without the weights of torch.save")
    for content, sentence in (
        ({}, "holds no weights .found: nothing"),
        ({"epoch": 1}, "holds no weights .found: epoch"),
        ({"optimizer": {"state": STATE}}, "holds no weights .found: optimizer"),
        ([torch.ones(1)], "holds a pickled list, not a state dict"),
        (torch.ones(1), "holds an object of torch.Tensor, not a state dict"),
        ({3: torch.ones(1)}, "expected a state dict of named tensors"),
        (small(), "holds an object of models.pidnet.PIDNet, not a state dict of named tensors"),
    ):
        for zipped in (True, False):
            refused(save(content, _use_new_zipfile_serialization=zipped), sentence)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.001, 0.5, 0.99])
def test_truncated_torch_files(zipped, share, save):
    path = save(small().state_dict(), _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: max(20, int(len(content) * share))])
    refused(path, "damaged or cut off|not a checkpoint")


def test_damaged_storages_are_noticed(write):
    path = write(torch_zip(entry(tensor((4,), (1,))), {"0": bytes(12)}))
    refused(path, "damaged or cut off")
    path = write(torch_zip(entry(tensor((4,), (1,)))))
    refused(path, "damaged or cut off")
    listed = b"\x80\x02]" + text("0") + b"a." + (4).to_bytes(8, "little")
    same(write(torch_legacy(entry(tensor((4,), (1,))), listed + bytes(16))), {"w": torch.zeros(4)})
    refused(
        write(torch_legacy(entry(tensor((4,), (1,))), listed + bytes(15))), "damaged or cut off"
    )
    swapped = torch_zip(entry(tensor((4,), (1,))), {"0": bytes(16)}, byteorder=b"big")
    refused(write(swapped), "written on a big-endian machine")


def test_real_paddle_files(shared):
    options = {"base_channels": 4, "context_channels": 8, "head_channels": 8, "cross_size": 6}
    loaded = []
    for path in sorted((shared / "parity").glob("*.pdparams")):
        model = build_model("rtformer_slim", 5, **options, injection=(True, False))
        assert load_weights(model, path).startswith("261 tensors loaded, 1 dropped")
        loaded.append(model)
    assert len(loaded) == 3 and all(equal(loaded[0], model) for model in loaded)


def test_real_mmengine_file(shared):
    fixture = json.loads((shared / "parity/mmengine_checkpoint_tiny_rdrnet.json").read_text())
    path = shared / "parity" / fixture["checkpoint"]["file"]
    found = read_checkpoint(path)
    shapes = {key: tuple(shape) for key, shape in fixture["state_dict"]}
    assert {key: tuple(value.shape) for key, value in found.tensors.items()} == shapes
    blocks = (2, 1, (2, 1), (1, 2), (1, 1))
    options = {"base_channels": 6, "context_channels": 16, "head_channels": 16}
    model = build_model("rdrnet_s_simple", 19, **options, blocks_per_stage=blocks)
    report = load_weights(model, path)
    assert (
        report
        == f"{len(shapes)} tensors loaded, none dropped, none missing; its keys have RDRNet names"
    )
    trained = model.state_dict()["stem.0.conv3x3.norm.num_batches_tracked"]
    assert trained == fixture["checkpoint"]["iter"] == 40
    assert not any("mmengine" in name for name in sys.modules)
