"""Weights enter completely or not at all, from every dialect, and nothing in a file is executed."""

import argparse
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from models import SegModel, build_model, fuse
from models.weights import convert_state_dict, load_weights, rename_for
from models.weights.rules import Dialect, Rule, rename_keys, strip_wrappers

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
SMALL = {"base_channels": 4, "context_channels": 6, "head_channels": 8}
# golden file with the keys of a dialect: a small network that has the same keys
DIALECTS = {
    "pidnet_s": ("pidnet_s", {}),
    "pidnet_l": ("pidnet_l", {}),
    "mmseg_pidnet_s": ("pidnet_s", {}),
    "rtformer_slim": ("rtformer_slim", {}),
    "rtformer_tiny": ("rtformer_slim", {"injection": (True, False)}),
}


def small(name: str = "pidnet_s", classes: int = 3, seed: int = 0, **options) -> SegModel:
    """A tiny network of which no two tensors are equal."""
    model = build_model(name, classes, **SMALL, **options)
    generator = torch.Generator().manual_seed(seed)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.randn(value.shape, generator=generator).abs() + 0.1)
    return model


def foreign(golden: str) -> tuple[SegModel, dict[str, torch.Tensor]]:
    """A small network, and its tensors under the keys that a golden file lists."""
    name, options = DIALECTS[golden]
    model = small(name, **options)
    keys = [key for key, _ in json.loads((GOLDEN / f"{golden}.json").read_text())["state_dict"]]
    own = model.state_dict()
    sources = rename_for(model, keys).sources
    state = {source: own[target].clone() for target, source in sources.items()}
    assert len(state) == len(keys)
    return model, {key: state[key] for key in keys}


def equal(a: nn.Module, b: nn.Module, but: tuple[str, ...] = ()) -> bool:
    pairs = zip(a.state_dict().items(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for (name, x), y in pairs if not name.endswith(but))


@pytest.fixture
def save(tmp_path):
    def save_as(content: object, name: str = "weights.pt", **how) -> Path:
        torch.save(content, tmp_path / name, **how)
        return tmp_path / name

    return save_as


@pytest.mark.parametrize("golden", DIALECTS)
def test_published_keys_fill_every_tensor(golden, save):
    model, state = foreign(golden)
    other = build_model(model.architecture, 3, **SMALL, **DIALECTS[golden][1])
    report = load_weights(other, save(state))
    assert report.startswith(f"{len(state)} loaded, 0 dropped, 0 missing")
    if golden.startswith("mmseg"):
        assert "2 set to 0 (mmsegmentation's stem has no biases)" in report
        assert not other.stem.conv1.conv.bias.any() and not other.stem.conv2.conv.bias.any()
        assert equal(model, other, ("stem.conv1.conv.bias", "stem.conv2.conv.bias"))
    else:
        assert equal(model, other)


def test_training_wrapper_and_its_loss_buffers(save):
    model, state = foreign("pidnet_s")
    wrapped = {f"module.model.{key}": value for key, value in state.items()}
    wrapped |= {f"module.{k}.criterion.weight": torch.ones(3) for k in ("sem_loss", "bd_loss")}
    other = build_model("pidnet_s", 3, **SMALL)
    content = {"epoch": 5, "best_mIoU": np.float64(0.8), "state_dict": wrapped, "optimizer": {}}
    report = load_weights(other, save(content))
    assert report.startswith("479 loaded, 2 dropped (loss buffers of the training wrapper), 0 miss")
    assert equal(model, other)


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod.", ""])
def test_wrappers_of_this_project_come_off(wrapper, save):
    model = small()
    path = save({"model": {wrapper + key: value for key, value in model.state_dict().items()}})
    other = build_model("pidnet_s", 3, **SMALL)
    load_weights(other, path)
    assert equal(model, other)
    assert strip_wrappers(["module.a", "b"]) == strip_wrappers([]) == ""


def test_containers_with_other_things_beside_the_weights(save):
    model = small()
    state = model.state_dict()
    settings = argparse.Namespace(lr=0.1)
    for content in (
        {"state_dict": state, "args": settings, "scores": [np.float32(1), np.int64(2)]},
        {"checkpoint_of": "x", "model": {"state_dict": state}},
        {**state, "epoch": 3},
        {"ema": state},
    ):
        for zipped in (True, False):
            other = build_model("pidnet_s", 3, **SMALL)
            load_weights(other, save(content, _use_new_zipfile_serialization=zipped))
            assert equal(model, other)
    half = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    load_weights(other, save(half))
    assert other.stem.conv1.conv.weight.dtype == torch.float32


def test_reset_keeps_present_values(save):
    path, fresh = save(small(classes=19).state_dict()), small(classes=5, seed=1)
    expected = fresh.head.classify.weight.clone()
    report = load_weights(fresh, path, reset=("head", "aux_head"))
    assert report.startswith("453 loaded, 26 dropped (reset), 0 missing, 26 left fresh (reset)")
    assert torch.equal(fresh.head.classify.weight, expected)
    trained = small(classes=19).boundary_head.classify.weight
    assert torch.equal(fresh.boundary_head.classify.weight, trained)


def refuse(model: nn.Module, path: Path, match: str, reset=(), error=ValueError) -> None:
    """load_weights raises one sentence that names the file, and changes nothing."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(error, match=match) as caught:
        load_weights(model, path, reset)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_class_counts_are_named(save):
    path = save({"model": small(classes=19).state_dict(), "architecture": "pidnet_s"})
    sentence = r"has 19 classes, pidnet_s here has 3.*MODEL.RESET \"\('head', 'aux_head'\)\""
    refuse(small(), path, sentence)
    refuse(small(), path, sentence, reset=("head",))
    model, _ = foreign("rtformer_slim")
    refuse(small("rtformer_slim", 7), save(model.state_dict()), "has 3 classes, rtformer_slim .* 7")


def test_other_architectures_are_recognised(save):
    published = build_model("pidnet_s", 19).state_dict()
    for target in ("pidnet_m", "rtformer_slim"):
        model = build_model(target, 19)
        refuse(model, save(published), f"holds pidnet_s, the model is {target}$")
    refuse(small(), save(fuse(small()).state_dict()), "holds fused PIDNet weights")
    refuse(small(), save(small("rtformer_slim").state_dict()), "holds RTFormer weights of other s")
    stated = {"model": small().state_dict(), "architecture": "pidnet_l"}
    refuse(small(), save(stated), "holds pidnet_l, the model is pidnet_s$")


def test_every_key_is_accounted_for(save):
    _, state = foreign("pidnet_s")
    for key in ("conv1.0.bias", "spp.scale_process.2.weight", "seghead_d.bn1.num_batches_tracked"):
        rest = {k: v for k, v in state.items() if k != key}
        target = rename_for(small(), [key]).sources
        refuse(small(), save(rest), f"lacks {next(iter(target))} of pidnet_s")
    refuse(
        small(), save({**state, "layer9.weight": torch.ones(1)}), "has layer9.weight, which pidne"
    )
    wrong = {**state, "conv1.0.weight": torch.ones(4, 3, 5, 5)}
    refuse(small(), save(wrong), "conv1.0.weight is 4x3x5x5, stem.conv1.conv.weight needs 4x3x3x3")
    wrong = {**state, "conv1.0.weight": torch.ones(4, 3, 3, 3, dtype=torch.int64)}
    refuse(small(), save(wrong), "conv1.0.weight is 4x3x3x3 of integers")
    without = {k: v for k, v in state.items() if not k.startswith(("seghead_p", "seghead_d"))}
    refuse(
        small(), save(without), r"lacks aux_head.* and 23 more .*\('aux_head', 'boundary_head'\)"
    )
    load_weights(small(), save(without), reset=("aux_head", "boundary_head"))
    refuse(
        small(), save({"foo": torch.ones(1)}), "none of the tensors of pidnet_s .first of 1: foo"
    )


def test_reset_must_name_a_submodule(save):
    with pytest.raises(ValueError, match=r"reset names 'haed'.* it has stem, .*, head, aux_head"):
        load_weights(small(), save(small().state_dict()), reset=("haed",))


def test_files_that_are_no_checkpoints(tmp_path, save):
    model = small()
    refuse(model, tmp_path / "no.pt", "does not exist; expected a torch", error=FileNotFoundError)
    refuse(model, tmp_path, "is a directory; expected")
    path = tmp_path / "file.pt"
    for content, sentence in (
        (b"", r"is empty \(0 bytes\)"),
        (b"version https://git-lfs", r"\(23 bytes\) is not a checkpoint"),
        (b"\x80\x04garbage", "is damaged or cut off"),
        (pickle.dumps([1, 2]), "pickled list; expected a dict of named arrays"),
    ):
        path.write_bytes(content)
        refuse(model, path, sentence)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    refuse(model, path, "is damaged or cut off")
    for content, sentence in (
        ({}, "holds no weights .found: nothing"),
        ({"epoch": 1}, "holds no weights .found: epoch"),
        ([torch.ones(1)], "holds a list, not a state dict"),
        ({3: torch.ones(1)}, "not a state dict of named tensors"),
        (small(), "object of models.pidnet.PIDNet, which is not loaded because"),
    ):
        refuse(model, save(content, "file.pt"), sentence)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.001, 0.5, 0.99])
def test_truncated_torch_files(zipped, share, tmp_path, save):
    path = save(small().state_dict(), _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: max(20, int(len(content) * share))])
    refuse(small(), path, "damaged or cut off|not a checkpoint")


class Evil:
    def __init__(self, *call: object) -> None:
        self.call = call

    def __reduce__(self):
        function, *arguments = self.call
        return function, tuple(arguments)


@pytest.mark.parametrize("kind", ["zip", "legacy", "protocol 2", "protocol 4"])
def test_nothing_in_a_file_is_executed(kind, tmp_path, save):
    mark = tmp_path / "executed"
    attacks = [
        Evil(os.system, f"touch {mark}"),
        Evil(eval, f"open({str(mark)!r}, 'w')"),
        Evil(exec, f"open({str(mark)!r}, 'w')"),
        Evil(getattr, Path(mark), "touch"),
    ]
    for attack in attacks:
        content = {"state_dict": small().state_dict(), "extra": attack}
        if kind.startswith("protocol"):
            path = tmp_path / "x.pdparams"
            path.write_bytes(pickle.dumps({"a": attack}, int(kind[-1])))
        else:
            path = save(content, _use_new_zipfile_serialization=kind == "zip")
        refuse(small(), path, "not loaded because reading it would run code")
    assert not mark.exists()


def pdparams(state: dict[str, torch.Tensor], protocol: int, numpy1: bool) -> bytes:
    """What paddle.save writes: one pickle of numpy arrays and a table of names."""
    arrays: dict[str, object] = {key: value.numpy() for key, value in state.items()}
    arrays["StructuredToParameterName@@"] = {key: f"p_{i}" for i, key in enumerate(state)}
    data = pickle.dumps(arrays, protocol)
    new, old = b"numpy._core.multiarray", b"numpy.core.multiarray"
    if numpy1 and protocol >= 4:  # strings carry their length, and frames theirs
        frame = int.from_bytes(data[3:11], "little") - 1
        assert data.count(b"\x95") and data.count(bytes([len(new)]) + new) == 1
        data = data.replace(bytes([len(new)]) + new, bytes([len(old)]) + old)
        data = data[:3] + frame.to_bytes(8, "little") + data[11:]
    elif numpy1:
        data = data.replace(new, old)
    return data


@pytest.mark.parametrize("numpy1", [True, False])
@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_paddle_files(protocol, numpy1, tmp_path):
    model, state = foreign("rtformer_slim")
    path = tmp_path / "model.pdparams"
    path.write_bytes(pdparams(state, protocol, numpy1))
    other = build_model("rtformer_slim", 3, **SMALL)
    report = load_weights(other, path)
    assert report.startswith("271 loaded, 1 dropped (Paddle's internal names), 0 missing")
    assert "51 set to 0 (Paddle counts no batches)" in report
    assert equal(model, other)
    for share in (0.1, 0.6, 0.999):
        content = pdparams(state, protocol, numpy1)
        path.write_bytes(content[: int(share * len(content))])
        refuse(small("rtformer_slim"), path, "is damaged or cut off")


def test_paddle_reader_admits_plain_numbers_only(tmp_path):
    path = tmp_path / "x.pdparams"
    for value, sentence in (
        (np.array([{}], dtype=object), "damaged or cut off"),
        (np.array(["a"]), "damaged or cut off"),
        (torch.ones(2), "pickle that calls torch"),
        (argparse.Namespace(), "pickle that calls argparse.Namespace"),
    ):
        path.write_bytes(pickle.dumps({"conv1.0.weight": value}, 4))
        refuse(small("rtformer_slim"), path, sentence)
    text = pickle.dumps(b"\xff\xfe", 2).replace(b"latin1", b"utf-16")
    path.write_bytes(text.replace(b"X\x06\x00\x00\x00latin1", b"X\x06\x00\x00\x00utf-16"))
    refuse(small("rtformer_slim"), path, "damaged or cut off")
    split = {"a": np.ones(2, np.float32), "UnpackBigParamInfor@@": {}}
    path.write_bytes(pickle.dumps(split, 4))
    refuse(small("rtformer_slim"), path, "split over several entries")


def test_array_layouts_of_paddle_files(tmp_path):
    model, state = foreign("rtformer_slim")
    arrays = {key: value.numpy() for key, value in state.items()}
    key = "conv1.0.weight"
    for layout in (np.asfortranarray(arrays[key]), arrays[key].astype(">f4")):
        path = tmp_path / "model.pdparams"
        path.write_bytes(pickle.dumps({**arrays, key: layout}, 4))
        other = build_model("rtformer_slim", 3, **SMALL)
        load_weights(other, path)
        assert equal(model, other)


def test_real_paddle_files(shared):
    options = {"base_channels": 4, "context_channels": 8, "head_channels": 8, "cross_size": 6}
    loaded = []
    for path in sorted((shared / "parity").glob("*.pdparams")):
        model = build_model("rtformer_slim", 5, **options, injection=(True, False))
        assert load_weights(model, path).startswith("261 loaded, 1 dropped")
        loaded.append(model)
    assert len(loaded) == 3 and all(equal(loaded[0], model) for model in loaded)


def test_conversion_in_memory_leaves_the_model_alone():
    model, state = foreign("mmseg_pidnet_s")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    result = convert_state_dict(model, state)
    assert result.tensors.keys() == before.keys()
    assert result.dialect == "mmsegmentation PIDNet" and result.loaded == len(state)
    assert sorted(result.zeroed) == ["stem.conv1.conv.bias", "stem.conv2.conv.bias"]
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_rules():
    rule = Rule(r"layer(\d)\.(\d+)", r"stage\1.\2", {"conv1": "conv1.conv", "k": "keys.weight"})
    dialect = Dialect("toy", (rule,), prefix="net.", drops={r"loss\..*": "a buffer"})
    assert dialect.rename("net.layer2.0.conv1.weight") == "stage2.0.conv1.conv.weight"
    assert dialect.rename("net.layer2.0.k") == "stage2.0.keys.weight"
    for key in ("layer2.0.conv1.weight", "net.layer2.0.conv3.weight", "net.layer2.conv1.weight"):
        assert dialect.rename(key) is None
    result = rename_keys(dialect, ["net.layer1.0.k", "loss.weight", "net.other"])
    assert result.sources == {"stage1.0.keys.weight": "net.layer1.0.k"}
    assert result.dropped == {"loss.weight": "a buffer"} and result.unknown == ["net.other"]
    twice = Dialect("toy", (Rule("a|b", "x", {"c": "c"}),))
    assert rename_keys(twice, ["a.c.weight", "b.c.weight"]).unknown == ["b.c.weight"]
