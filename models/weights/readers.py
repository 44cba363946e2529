"""Checkpoint files to named tensors. Nothing in a file is executed.

Accepted: files of torch.save (zip or legacy), pickles of numpy arrays (Paddle's .pdparams among
them), and .safetensors.
"""

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

import safetensors
import safetensors.torch
from torch import Tensor

from models.weights.pickles import DAMAGE, Inert, RefusedError, read_pickle
from models.weights.stored import (
    ARRAY_CONSTRUCTORS,
    TENSOR_CONSTRUCTORS,
    NotNumbersError,
    StoredArray,
    StoredTensor,
    storage_of,
)

ACCEPTED = "a torch checkpoint (.pt, .pth, .pth.tar), a Paddle .pdparams file or .safetensors"
MAX_BYTES = 8 << 30  # of a file, and of all that it unpacks to

# Where the weights may lie inside a training checkpoint, in order of preference.
WRAPPERS = (
    "model", "state_dict", "model_state_dict", "model_state", "net", "network", "module",
    "params", "weights", "ema", "model_ema", "state_dict_ema", "ema_state_dict",
)  # fmt: skip

# Entries of this project's own checkpoints that say what the weights are of.
FACTS = {"architecture": str, "options": dict, "dataset": str, "class_names": list, "format": str}

_DAMAGE = (*DAMAGE, OSError, RuntimeError, zipfile.BadZipFile, struct.error)
_STORED = (Tensor, StoredTensor, StoredArray)
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_TORCH = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number, pickled
_PADDLE_NAMES = "StructuredToParameterName@@"
_PADDLE_SPLIT = "UnpackBigParamInfor@@"


class Checkpoint(NamedTuple):
    """tensors: flat state dict. ignored: entry name -> why it is no weight. facts: what the file
    says of itself under the names of FACTS, where this project wrote it."""

    tensors: dict[str, Tensor]
    ignored: dict[str, str]
    facts: dict[str, Any]


class _FormatError(ValueError):
    """A readable file of a kind that is not accepted; the text goes on after the file's name."""


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read the weights in a file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a directory, empty, too large, damaged, hostile, or no checkpoint.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a directory; expected {ACCEPTED}")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected {ACCEPTED}")
    size = path.stat().st_size
    if size == 0:
        raise ValueError(f"{path} is empty (0 bytes); expected {ACCEPTED}")
    try:
        if size > MAX_BYTES:
            raise _FormatError(f"has {size} bytes, more than the {MAX_BYTES} that are read")
        with path.open("rb") as stream:
            return _find_weights(*_read(stream, size))
    except RefusedError as error:
        raise ValueError(
            f"{path} is a pickle that calls {_short(error)}, which is not loaded because reading "
            "it would run code; save the state dict alone"
        ) from None
    except _FormatError as error:
        raise ValueError(f"{path} {error}") from None
    except NotNumbersError as error:
        raise ValueError(f"{path}: {_short(error)}") from None
    except _DAMAGE as error:
        raise ValueError(
            f"{path} ({size} bytes) is damaged or cut off; expected {ACCEPTED}"
        ) from error


def _read(stream: BinaryIO, size: int) -> tuple[Any, Any]:
    """The content of a file, and the function that gives the bytes of its storages."""
    start = stream.read(64)
    stream.seek(0)
    if start.startswith(b"PK\x03\x04"):
        return _read_zip(stream, size)
    if _LEGACY_TORCH in start:
        return _read_legacy(stream)
    if start.startswith(b"\x80"):
        return read_pickle(stream, ARRAY_CONSTRUCTORS), None
    if size > 8 and start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] <= size - 8:
        return _read_safetensors(stream), None
    raise _FormatError(f"({size} bytes) is not a checkpoint; expected {ACCEPTED}")


def _read_zip(stream: BinaryIO, size: int):
    archive = zipfile.ZipFile(stream)
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    for name in names:
        if name.startswith("/") or "\\" in name or ".." in PurePosixPath(name).parts:
            raise _FormatError(f"is a zip with the entry {name[:80]!r}, which leaves its folder")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        total = sum(entry.file_size for entry in entries)
        raise _FormatError(
            f"is a zip of {size} bytes with compressed entries ({total} bytes unpacked); "
            "torch.save does not compress"
        )
    if sum(entry.file_size for entry in entries) > size or len(set(names)) < len(names):
        raise _FormatError("is a zip whose entries overlap")
    mains = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(mains) != 1:
        raise _FormatError(f"is a zip without the weights of torch.save; expected {ACCEPTED}")
    folder = mains[0].partition("/")[0]
    if f"{folder}/constants.pkl" in names:
        raise _FormatError("is a TorchScript archive, which holds code; save the state dict alone")
    if f"{folder}/byteorder" in names and archive.read(f"{folder}/byteorder") != b"little":
        raise _FormatError("was written on a big-endian machine; save it again on another")
    content = read_pickle(io.BytesIO(archive.read(mains[0])), TENSOR_CONSTRUCTORS, storage_of)
    return content, lambda key: archive.read(f"{folder}/data/{key}")


def _read_legacy(stream: BinaryIO):
    if read_pickle(stream, {}) != _LEGACY_MAGIC:
        raise pickle.UnpicklingError("no magic number")
    for _ in range(2):  # protocol version, byte order and word sizes
        read_pickle(stream, {})
    storages: dict[str, int] = {}

    def persistent(key: Any):
        storage = storage_of(key)
        storages[storage.key] = storage.item_size
        return storage

    content = read_pickle(stream, TENSOR_CONSTRUCTORS, persistent)
    places: dict[str, tuple[int, int]] = {}
    for key in read_pickle(stream, {}):
        (count,) = struct.unpack("<q", stream.read(8))
        places[key] = stream.tell(), count * storages[key]
        if count < 0:
            raise pickle.UnpicklingError("a storage of negative size")
        stream.seek(count * storages[key], io.SEEK_CUR)

    def storage_bytes(key: str) -> bytes:
        start, length = places[key]
        stream.seek(start)
        return stream.read(length)

    return content, storage_bytes


def _read_safetensors(stream: BinaryIO) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(stream.read())
    except (safetensors.SafetensorError, json.JSONDecodeError) as error:
        raise pickle.UnpicklingError(str(error)) from error


def _find_weights(content: Any, storage_bytes: Any) -> Checkpoint:
    """Find the state dict: the file's own content, or an entry that training scripts name so."""
    facts: dict[str, Any] = {}
    content = _as_dict(content)
    while (
        inner := next((k for k in WRAPPERS if _holds_tensors(content.get(k))), None)
    ) is not None:
        facts |= {k: v for k, v in content.items() if k in FACTS and isinstance(v, FACTS[k])}
        content = _as_dict(content[inner])
    stored = {k: v for k, v in content.items() if isinstance(v, _STORED)}
    if not stored or not all(isinstance(key, str) for key in stored):
        found = ", ".join(sorted(_short(k) for k in content if isinstance(k, str))[:6])
        raise _FormatError(
            f"holds no weights (found: {found or 'nothing'}); expected a state dict of named "
            f"tensors, bare or as one of {', '.join(WRAPPERS)}"
        )
    if _PADDLE_SPLIT in content:
        raise _FormatError(
            "holds parameters split over several entries; save it again with pickle protocol 4"
        )
    ignored = {_short(k): "not a tensor" for k in content if isinstance(k, str) and k not in stored}
    if _PADDLE_NAMES in ignored:
        ignored[_PADDLE_NAMES] = "Paddle's internal names"
    buffers: dict[str, Tensor] = {}
    tensors = {
        key: value if isinstance(value, Tensor) else value.tensor(key, storage_bytes, buffers)
        for key, value in stored.items()
    }
    return Checkpoint(tensors, ignored, facts)


def _holds_tensors(value: Any, depth: int = 3) -> bool:
    """Whether `value` is a dict with tensors in it, or in an entry that training scripts name."""
    if isinstance(value, Inert):
        value = value.entries
    if not isinstance(value, Mapping) or depth == 0:
        return False
    if any(isinstance(v, _STORED) for v in value.values()):
        return True
    return any(_holds_tensors(value.get(key), depth - 1) for key in WRAPPERS)


def _as_dict(value: Any) -> dict:
    """A dict, also where it is one of an unknown class."""
    if isinstance(value, Inert):
        if value.entries:
            return value.entries
        raise _FormatError(
            f"holds an object of {_short(value.kind)}, not a state dict of named tensors; save its "
            "state dict alone"
        )
    if not isinstance(value, Mapping):
        raise _FormatError(
            f"holds a pickled {type(value).__name__}, not a state dict of named tensors"
        )
    return dict(value)


def _short(value: Any) -> str:
    """Text out of a file, fit for one line."""
    text = " ".join(str(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
