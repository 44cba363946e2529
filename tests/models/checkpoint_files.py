"""Small networks of every family, and their tensors under the names of published files."""

import io
import itertools
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models import SegModel, build_model
from models.weights import load_weights, rename_for
from utils.parity import read_fixture

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
# Options that make a family's networks small without changing the names of their tensors.
SMALL = {
    "pidnet": {"base_channels": 4, "context_channels": 6, "head_channels": 8},
    "ddrnet": {"base_channels": 4, "context_channels": 6, "head_channels": 8},
    "rdrnet": {"base_channels": 4, "context_channels": 6, "head_channels": 8},
    "gcnet": {"base_channels": 4, "context_channels": 6, "head_channels": 8},
    "bisenetv1": {"base_channels": 4, "head_channels": 8, "aux_channels": 6},
    "bisenetv2": {"base_channels": 8, "head_channels": 8},
    "lrformer": {"embed_dims": (8, 8, 8, 8), "num_heads": (1, 1, 1, 1), "head_channels": 8},
    "rtformer": {"base_channels": 4, "context_channels": 6, "head_channels": 8, "cross_size": 4},
}
STEM_BIASES = ("stem.conv1.conv.bias", "stem.conv2.conv.bias")
# golden file with the keys of a dialect: network, options that change the keys, dialect, what the
# source does not store
DIALECTS = {
    "pidnet_s": ("pidnet_s", {}, "official PIDNet", ""),
    "pidnet_m_11": ("pidnet_m", {}, "official PIDNet", ""),
    "pidnet_l": ("pidnet_l", {}, "official PIDNet", ""),
    "mmseg_pidnet_s": ("pidnet_s", {}, "mmsegmentation PIDNet", "2 constant (mmsegmentation's"),
    "ddrnet_23_slim": ("ddrnet_23_slim", {}, "official DDRNet", ""),
    "ddrnet_23": ("ddrnet_23", {}, "official DDRNet", ""),
    "ddrnet_39": ("ddrnet_39", {}, "official DDRNet", ""),
    "mmseg_ddrnet_23_slim": (
        "ddrnet_23_slim", {}, "mmsegmentation DDRNet", "2 constant (mmsegmentation's",
    ),
    "rdrnet_s_simple": ("rdrnet_s_simple", {}, "RDRNet", ""),
    "rdrnet_s": ("rdrnet_s", {}, "RDRNet", ""),
    "rdrnet_m": ("rdrnet_m", {}, "RDRNet", ""),
    "rdrnet_l": ("rdrnet_l", {}, "RDRNet", ""),
    "gcnet_s": ("gcnet_s", {}, "GCNet", ""),
    "bisenetv1_r18": ("bisenetv1_r18", {}, "mmsegmentation BiSeNetV1", ""),
    "bisenetv2": ("bisenetv2", {}, "mmsegmentation BiSeNetV2", ""),
    "lrformer_t": ("lrformer_t", {}, "LRFormer", ""),
    "lrformer_s": ("lrformer_s", {}, "LRFormer", ""),
    "lrformer_b": ("lrformer_b", {}, "LRFormer", ""),
    "lrformer_l": ("lrformer_l", {}, "LRFormer", ""),
    "rtformer_slim": ("rtformer_slim", {}, "PaddleSeg RTFormer", "51 constant (Paddle counts"),
    "rtformer_tiny": (
        "rtformer_slim", {"injection": (True, False)}, "PaddleSeg RTFormer", "49 constant (Paddle",
    ),
}  # fmt: skip


def small(name: str = "pidnet_s", classes: int = 3, seed: int = 0, **options) -> SegModel:
    """A tiny network of which no two tensors are equal."""
    options = SMALL[name.partition("_")[0]] | options
    return fill(build_model(name, classes, **options), seed)


def fill(model: nn.Module, seed: int = 0) -> nn.Module:
    """`model` with positive random numbers in every tensor, also in the counters."""
    generator = torch.Generator().manual_seed(seed)
    for index, value in enumerate(model.state_dict().values()):
        if value.is_floating_point():
            value.copy_(torch.randn(value.shape, generator=generator).abs() + 0.1)
        else:
            value.fill_(index + 1)
    return model


def golden_keys(name: str) -> list[str]:
    """Keys of the official network of a golden file, in its order."""
    return [key for key, _ in read_fixture(GOLDEN / f"{name}.json").tensors()]


def named(model: nn.Module, keys: Iterable[str]) -> dict[str, Tensor]:
    """The tensors of `model` under foreign keys, none of which may be unknown or dropped."""
    keys = list(keys)
    own, renaming = model.state_dict(), rename_for(model, keys)
    state = {source: own[target].clone() for target, source in renaming.sources.items()}
    assert not renaming.unknown and not renaming.dropped and len(state) == len(keys)
    return {key: state[key] for key in keys}


def equal(a: nn.Module, b: nn.Module, but: tuple[str, ...] = ()) -> bool:
    """Whether all tensors agree, those whose names end in one of `but` left out."""
    pairs = zip(a.state_dict().items(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for (name, x), y in pairs if not name.endswith(but))


def foreign(golden: str) -> tuple[SegModel, dict[str, Tensor], SegModel]:
    """A small network, its tensors under the keys of a golden file, and another such network."""
    name, options, *_ = DIALECTS[golden]
    model = small(name, **options)
    return model, named(model, golden_keys(golden)), small(name, seed=1, **options)


def refuse(model: nn.Module, path: Path, match: str, reset=(), error=ValueError, **how) -> None:
    """load_weights raises one sentence that names the file, and changes nothing."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(error, match=match) as caught:
        load_weights(model, path, reset, **how)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def pdparams(state: dict[str, Tensor], protocol: int, numpy1: bool = False) -> bytes:
    """What paddle.save writes: one pickle of numpy arrays and a table of names.

    numpy1: under the module names of numpy 1, in which most published files were written.
    """
    arrays: dict[str, object] = {key: value.numpy() for key, value in state.items()}
    arrays["StructuredToParameterName@@"] = {key: f"p_{i}" for i, key in enumerate(state)}
    data = pickle.dumps(arrays, protocol)
    if not numpy1:
        return data
    if protocol >= 4:  # frames state their length, which changes: leave them out
        places = [(o.name, at) for o, _, at in pickletools.genops(data)] + [("", len(data))]
        pairs = itertools.pairwise(places)
        data = b"".join(data[a:b] for (name, a), (_, b) in pairs if name != "FRAME")
    for module in (b"multiarray", b"numeric"):
        new, old = b"numpy._core." + module, b"numpy.core." + module
        data = data.replace(bytes([len(new)]) + new, bytes([len(old)]) + old).replace(new, old)
    assert b"numpy.core." in data and b"numpy._core." not in data
    return data


def torch_zip(content: bytes, storages: dict[str, bytes] | None = None, **entries: bytes) -> bytes:
    """A file as torch.save lays it out, around the pickle `content`."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        for key, value in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", value)
        for name, value in entries.items():
            archive.writestr(f"archive/{name}", value)
    return stream.getvalue()


def torch_legacy(content: bytes, rest: bytes = b"\x80\x02].") -> bytes:
    """A file as torch.save laid it out before 1.6: `rest` lists the storages, then holds them."""
    head = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
    return head + pickle.dumps({"little_endian": True}, 2) + content + rest


# Parts of a pickle, spelled out.


def text(value: str) -> bytes:
    """Push a text."""
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    """Push an integer of any size."""
    return pickle.dumps(value, 2)[2:-1]


def entry(value: bytes, key: str = "w", protocol: int = 2) -> bytes:
    """A pickle of a dict with one entry, whose value the stream `value` pushes."""
    return b"\x80" + bytes([protocol]) + b"}" + text(key) + value + b"s."


def call(name: str, *arguments: bytes) -> bytes:
    """Call a global by its dotted name."""
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n(".encode() + b"".join(arguments) + b"tR"


def tensor(
    size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, count: int = 4, key: str = "0"
) -> bytes:
    """Push a float tensor of a storage of `count` numbers."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu")
    storage += number(count) + b"tQ"
    shapes = [b"(" + b"".join(map(number, numbers)) + b"t" for numbers in (size, stride)]
    return call("torch._utils._rebuild_tensor_v2", storage, number(offset), *shapes, b"\x89N")
