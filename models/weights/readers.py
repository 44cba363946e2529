"""Checkpoint files to named tensors. Nothing in a file is executed.

Accepted: files of torch.save (zip or legacy), pickles of numpy arrays (Paddle's .pdparams among
them), and .safetensors.
"""

import functools
import io
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple, TypeVar

import safetensors
import safetensors.torch
from torch import Tensor

from ..errors import InputError
from .names import MAX_TEXT, UnfitError
from .pickles import DAMAGE, Inert, read_pickle
from .rules import one_line
from .stored import (
    ARRAY_CONSTRUCTORS,
    TENSOR_CONSTRUCTORS,
    StoredArray,
    StoredTensor,
    plain,
    storage_of,
)

T = TypeVar("T")
ACCEPTED = "a torch checkpoint (.pt, .pth, .pth.tar), a Paddle .pdparams file or .safetensors"
MAX_BYTES = 8 << 30  # of a file, and of all that it unpacks to

MAX_TENSORS = 20_000  # the largest networks have some 2,000

# Where the weights may lie inside a training checkpoint, in order of preference.
WRAPPERS = (
    "model", "state_dict", "model_state_dict", "model_state", "net", "network", "module",
    "params", "weights", "ema", "model_ema", "state_dict_ema", "ema_state_dict",
)  # fmt: skip

# Entries of this project's own checkpoints that say what the weights are of.
FACTS = {
    "architecture": str,
    "options": dict,
    "dataset": str,
    "class_names": list,
    "palette": list,
    "input": dict,
    "score": dict,
    "format": str,
}

_DAMAGE = (
    *DAMAGE, OSError, RuntimeError, zipfile.BadZipFile, struct.error, safetensors.SafetensorError,
)  # fmt: skip
_STORED = (Tensor, StoredTensor, StoredArray)
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_TORCH = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number, pickled
_MAX_DIRECTORY = 4 << 20  # bytes of a zip's list of entries, some 100 each
_MAX_DEPTH = 4  # wrappers around the state dict
_OLD_PICKLES = (b"(dp", b"}q", b"ccollections\n")  # a dict by protocol 0 or 1
_PADDLE_NAMES = "StructuredToParameterName@@"
_PADDLE_SPLIT = "UnpackBigParamInfor@@"


class Checkpoint(NamedTuple):
    """tensors: flat state dict. ignored: entry name -> why it is no weight. facts: what the file
    says beside the weights under the names of FACTS and those that were asked for."""

    path: Path
    tensors: dict[str, Tensor]
    ignored: dict[str, str]
    facts: dict[str, Any]


def read_checkpoint(path: str | Path, also: Mapping[str, type] | None = None) -> Checkpoint:
    """Read the weights in a file.

    Args:
        also: name -> type of entries beside the weights to be read like those of FACTS, such as
            {"optimizer": dict}. One that is absent or of another type is left out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a directory, empty, too large, damaged, hostile, or no checkpoint.
    """
    return _opened(path, lambda *found: _find_weights(Path(path), *found, also or {}))


def read_facts(path: str | Path) -> dict[str, Any]:
    """What a file says beside its weights, under the names of FACTS; in a zip of torch.save the
    weights stay unread. Raises as `read_checkpoint`."""
    return _opened(path, lambda content, _: _unwrap(content, FACTS)[1])


def _opened(path: str | Path, use: Callable[[Any, Any], T]) -> T:
    """What `use` makes of the content of a file and of what reads its storages."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; expected {ACCEPTED}")
    if not path.is_file():
        kind = "directory" if path.is_dir() else "device or a pipe"
        raise InputError(f"{path} is a {kind}; expected {ACCEPTED}")
    size = path.stat().st_size
    if size == 0:
        raise InputError(f"{path} is empty (0 bytes); expected {ACCEPTED}")
    try:
        if size > MAX_BYTES:
            raise UnfitError(f"has {size} bytes, more than the {MAX_BYTES} that are read")
        with path.open("rb") as stream:
            return use(*_read(stream, size))
    except UnfitError as error:
        raise InputError(f"{path} {error}") from None
    except PermissionError:
        raise
    except _DAMAGE as error:
        raise InputError(
            f"{path} ({size} bytes) is damaged or cut off; expected {ACCEPTED}"
        ) from error


def _read(stream: BinaryIO, size: int) -> tuple[Any, Any]:
    """The content of a file, and the function that gives the bytes of its storages."""
    start = stream.read(64)
    stream.seek(0)
    if start.startswith(b"PK\x03\x04"):
        return _read_zip(stream, size)
    if _LEGACY_TORCH in start:
        return _read_legacy(stream, size)
    if start.startswith((b"\x80", *_OLD_PICKLES)):
        return read_pickle(stream, ARRAY_CONSTRUCTORS), None
    if size > 8 and start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] <= size - 8:
        return safetensors.torch.load_file(stream.name), None  # its header is checked first
    raise UnfitError(f"({size} bytes) is not a checkpoint; expected {ACCEPTED}")


def _directory_bytes(stream: BinaryIO, size: int) -> int:
    """Length of a zip's list of entries, as its end states it."""
    stream.seek(max(0, size - (1 << 16) - 100))
    tail = stream.read()
    end = tail.rfind(b"PK\x05\x06")
    length = struct.unpack_from("<I", tail, end + 12)[0] if end >= 0 else 0
    if end >= 76 and tail[end - 76 : end - 72] == b"PK\x06\x06":  # zip64
        length = struct.unpack_from("<Q", tail, end - 36)[0]
    return length


def _read_zip(stream: BinaryIO, size: int):
    listed = _directory_bytes(stream, size)
    if listed > _MAX_DIRECTORY:
        raise UnfitError(f"is a zip with a list of entries of {listed} bytes; no checkpoint")
    archive = zipfile.ZipFile(stream)
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    for name in names:
        if name.startswith("/") or "\\" in name or ".." in PurePosixPath(name).parts:
            raise UnfitError(f"is a zip with the entry {name[:80]!r}, which leaves its folder")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        total = sum(entry.file_size for entry in entries)
        raise UnfitError(
            f"is a zip of {size} bytes with compressed entries ({total} bytes unpacked); "
            "torch.save does not compress"
        )
    if sum(entry.file_size for entry in entries) > size or len(set(names)) < len(names):
        raise UnfitError("is a zip whose entries overlap")
    mains = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(mains) != 1:
        raise UnfitError(f"is a zip without the weights of torch.save; expected {ACCEPTED}")
    folder = mains[0].partition("/")[0]
    if f"{folder}/constants.pkl" in names:
        raise UnfitError("is a TorchScript archive, which holds code; save the state dict alone")
    if f"{folder}/byteorder" in names and archive.read(f"{folder}/byteorder") != b"little":
        raise UnfitError("was written on a big-endian machine; save it again on another")
    content = read_pickle(io.BytesIO(archive.read(mains[0])), TENSOR_CONSTRUCTORS, storage_of)
    return content, lambda key: archive.read(f"{folder}/data/{key}")


def _read_legacy(stream: BinaryIO, size: int):
    if read_pickle(stream, {}) != _LEGACY_MAGIC:
        raise pickle.UnpicklingError("no magic number")
    for _ in range(2):  # protocol version, byte order and word sizes
        read_pickle(stream, {})
    storages: dict[str, int] = {}

    def persistent(key: Any):
        if type(key) is tuple and key[:1] == ("module",):  # a class, with its source text
            return key[1]
        storage = storage_of(key)
        storages[storage.key] = storage.item_size
        return storage

    content = read_pickle(stream, TENSOR_CONSTRUCTORS, persistent)
    keys = read_pickle(stream, {})
    if type(keys) is not list or not all(isinstance(key, str) for key in keys):
        raise pickle.UnpicklingError("no list of storages")
    raw: dict[str, bytes] = {}
    for key in keys:
        (count,) = struct.unpack("<q", stream.read(8))
        if not 0 <= count * storages[key] <= size:
            raise pickle.UnpicklingError("a storage of impossible size")
        raw[key] = stream.read(count * storages[key])
    return content, raw.__getitem__


def _unwrap(content: Any, wanted: Mapping[str, type]) -> tuple[Mapping, dict[str, Any]]:
    """The dict with the tensors, which scripts put below other entries, and those `wanted`."""
    if isinstance(content, Inert) and not content.entries:
        raise UnfitError(
            f"holds an object of {one_line(content.kind)}, not a state dict of named tensors; save "
            "its state dict alone"
        )
    if not isinstance(content, (Inert, Mapping)):
        raise UnfitError(
            f"holds a pickled {type(content).__name__}, not a state dict of named tensors"
        )
    *around, innermost = _way_to_weights(content, {}) or [_entries(content)]
    facts: dict[str, Any] = {}
    for entries in around:
        facts |= {k: v for k, v in entries.items() if k in wanted and isinstance(v, wanted[k])}
    return innermost, facts


def _find_weights(
    path: Path, content: Any, storage_bytes: Any, also: Mapping[str, type]
) -> Checkpoint:
    content, facts = _unwrap(content, {**FACTS, **also})
    stored = {k: v for k, v in content.items() if isinstance(v, _STORED)}
    if not stored or not all(isinstance(key, str) for key in stored):
        found = ", ".join(sorted(one_line(k) for k in content if isinstance(k, str))[:6])
        raise UnfitError(
            f"holds no weights (found: {found or 'nothing'}); expected a state dict of named "
            f"tensors, bare or as one of {', '.join(WRAPPERS)}"
        )
    if len(stored) > MAX_TENSORS or max(map(len, stored)) > MAX_TEXT:
        raise UnfitError(
            f"holds {len(stored)} tensors with names of up to {max(map(len, stored))} characters; "
            f"at most {MAX_TENSORS} of {MAX_TEXT} are read"
        )
    if _PADDLE_SPLIT in content:
        raise UnfitError(
            "holds parameters split over several entries; save it again with pickle protocol 4"
        )
    ignored = {
        one_line(k): "not a tensor" for k in content if isinstance(k, str) and k not in stored
    }
    if _PADDLE_NAMES in ignored:
        ignored[_PADDLE_NAMES] = "Paddle's internal names"
    buffers: dict[Any, Tensor] = {}

    def tensor(key: str, value: Any) -> Tensor:
        return value if isinstance(value, Tensor) else value.tensor(key, storage_bytes, buffers)

    tensors = {key: tensor(key, value) for key, value in stored.items()}
    for key in facts.keys() & also.keys():
        facts[key] = plain(facts[key], functools.partial(tensor, key), {})
    return Checkpoint(path, tensors, ignored, facts)


def _entries(value: Any) -> Mapping | None:
    """Those of a dict, also of one of an unknown class."""
    value = value.entries if isinstance(value, Inert) else value
    return value if isinstance(value, Mapping) else None


def _way_to_weights(
    value: Any, scanned: dict[int, bool], depth: int = _MAX_DEPTH
) -> list[Mapping] | None:
    """`value` and the dicts below it down to the one with the tensors; None if there is none.

    scanned: whether a dict itself holds tensors, by its id; it may come many times.
    """
    entries = _entries(value)
    if entries is None:
        return None
    for key in WRAPPERS if depth else ():  # no deeper: an entry may hold itself
        way = _way_to_weights(entries.get(key), scanned, depth - 1)
        if way is not None:
            return [entries, *way]
    if id(entries) not in scanned:
        scanned[id(entries)] = any(isinstance(v, _STORED) for v in entries.values())
    return [entries] if scanned[id(entries)] else None
