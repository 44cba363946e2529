"""Tensors and arrays as pickles describe them, and how they become tensors when asked for."""

import math
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .names import Name, RefusedError, UnfitError
from .pickles import MAX_ARGUMENTS, Inert
from .rules import one_line

_STORAGES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16,
    "BFloat16": torch.bfloat16, "Long": torch.int64, "Int": torch.int32, "Short": torch.int16,
    "Char": torch.int8, "Byte": torch.uint8, "Bool": torch.bool,
}  # fmt: skip
_MAX_EXPANDED = 1 << 24  # numbers of a tensor that repeats those of its storage
_DTYPES = {str(dtype): dtype for dtype in _STORAGES.values()}
_ARRAY_KINDS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1"}


def _unread(key: str, how: str) -> UnfitError:
    return UnfitError(f"cannot be read: {one_line(key)} is {how}")


def _is_shape(numbers: Any) -> bool:
    """Whether these are a few integers that are not negative."""
    return (
        type(numbers) in (tuple, list)
        and len(numbers) <= MAX_ARGUMENTS
        and all(type(n) is int and 0 <= n < 1 << 63 for n in numbers)
    )


@dataclass(frozen=True)
class StoredStorage:
    """Raw memory under a key of the file. dtype: None where each tensor names its own."""

    key: str
    dtype: torch.dtype | None

    @property
    def item_size(self) -> int:
        """Bytes of one item."""
        return 1 if self.dtype is None else self.dtype.itemsize


def storage_of(key: Any) -> StoredStorage:
    """The storage behind torch's persistent id ("storage", class, key, device, count, ...)."""
    if type(key) is not tuple or len(key) < 5 or key[0] != "storage" or type(key[4]) is not int:
        raise pickle.UnpicklingError("a persistent id that is no storage")
    kind, name = key[1], key[2]
    text = kind.text.rpartition(".")[2] if isinstance(kind, Name) else ""
    if not isinstance(name, str) or not text.endswith("Storage"):
        raise pickle.UnpicklingError("a storage without a key")
    if len(key) > 5 and key[5] is not None:
        raise pickle.UnpicklingError("a view of another storage")
    return StoredStorage(name, _STORAGES.get(text.removesuffix("Storage")))


class StoredTensor(Inert):
    """A strided view of a storage. more: whether it learns, hooks and perhaps its own type."""

    __slots__ = ("dtype", "offset", "size", "storage", "stride")

    def __init__(self, storage: Any, offset: Any, size: Any, stride: Any, *more: Any) -> None:
        super().__init__("torch.Tensor")
        if not isinstance(storage, StoredStorage):
            raise pickle.UnpicklingError("a tensor without a storage")
        if not _is_shape(size) or not _is_shape(stride) or not _is_shape((offset,)):
            raise pickle.UnpicklingError("a tensor of impossible size")
        if len(size) != len(stride):
            raise pickle.UnpicklingError("a tensor without strides")
        self.storage, self.offset, self.dtype = storage, offset, storage.dtype
        self.size, self.stride = tuple(size), tuple(stride)
        if len(more) > 2 and isinstance(more[2], Name):
            self.dtype = _DTYPES.get(more[2].text, more[2].text)

    def tensor(self, key: str, read: Callable[[str], bytes], buffers: dict[Any, Tensor]) -> Tensor:
        """The tensor. `buffers` keeps what has been read, for tensors that share a storage."""
        storage, dtype = self.storage, self.dtype
        if dtype is None:
            raise _unread(key, "stored in a type that is not read")
        if isinstance(dtype, str):
            raise _unread(key, f"stored as {one_line(dtype)}, which is not read")
        if 0 in self.size:
            return torch.empty(self.size, dtype=dtype)
        if storage.key not in buffers:
            buffers[storage.key] = torch.frombuffer(bytearray(read(storage.key)), dtype=torch.uint8)
        flat = buffers[storage.key]
        last = self.offset + sum((n - 1) * s for n, s in zip(self.size, self.stride, strict=True))
        if (last + 1) * dtype.itemsize > len(flat):
            raise pickle.UnpicklingError(f"{key} reaches beyond its storage")
        if math.prod(self.size) > max(len(flat), _MAX_EXPANDED):
            raise pickle.UnpicklingError(f"{key} claims more numbers than its storage has")
        flat = flat[: len(flat) // dtype.itemsize * dtype.itemsize].view(dtype)
        return flat.as_strided(self.size, self.stride, self.offset)


class StoredArray(Inert):
    """A numpy array, whose content comes as a state (version, shape, dtype, fortran, bytes)."""

    __slots__ = ()

    def __init__(self, *_: Any) -> None:
        super().__init__("numpy.ndarray")

    def tensor(self, key: str, _: Any, buffers: dict[Any, Tensor]) -> Tensor:
        """The array as a tensor of this machine's byte order."""
        state = self.state if type(self.state) is tuple else ()
        _, shape, dtype, fortran, raw = state if len(state) == 5 else (None,) * 5
        if not isinstance(raw, (bytes, bytearray, str)) or not isinstance(dtype, Inert):
            raise _unread(key, "an array without raw bytes")
        if not _is_shape(shape):
            raise pickle.UnpicklingError("an array of impossible size")
        code = dtype.args[0] if dtype.args and isinstance(dtype.args[0], str) else "objects"
        order = dtype.state[1] if type(dtype.state) is tuple else "="
        if code not in _ARRAY_KINDS or order not in ("<", ">", "|", "="):
            raise _unread(key, f"an array of {one_line(code)}, which are not numbers")
        known = (id(raw), order, code)  # arrays that share their bytes do so in memory, too
        if known not in buffers:
            content = raw.encode("latin1") if isinstance(raw, str) else raw
            array = np.frombuffer(content, np.dtype(order + code))
            buffers[known] = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
        if fortran:
            return buffers[known].reshape(shape[::-1]).permute(*range(len(shape))[::-1])
        return buffers[known].reshape(shape)


def plain(value: Any, tensor: Callable[[Any], Tensor], done: dict[int, Any]) -> Any:
    """`value` with every stored tensor made by `tensor`, also those in dicts, lists and tuples.

    done: what has been made, by the id of what it was made of; a container may come many times,
    or hold itself.
    """
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, (StoredTensor, StoredArray)):
        done[id(value)] = tensor(value)
    elif type(value) is dict:
        done[id(value)] = made = {}
        made.update((key, plain(item, tensor, done)) for key, item in value.items())
    elif type(value) is list:
        done[id(value)] = made = []
        made.extend(plain(item, tensor, done) for item in value)
    elif type(value) is tuple:
        done[id(value)] = tuple(plain(item, tensor, done) for item in value)
    else:
        return value
    return done[id(value)]


def _from_type(function: Any, kind: Any, arguments: Any, *_: Any) -> Any:
    """A tensor with attributes or of a subclass: the tensor."""
    name = function.text if isinstance(function, Name) else ""
    if name not in TENSOR_CONSTRUCTORS or name.endswith("_rebuild_from_type_v2"):
        raise RefusedError(name or "an object")
    if type(arguments) is not tuple or len(arguments) > MAX_ARGUMENTS:
        raise pickle.UnpicklingError("a tensor without arguments")
    return TENSOR_CONSTRUCTORS[name](*arguments)


def _array_from_buffer(raw: Any, dtype: Any, shape: Any, order: Any = "C", *_: Any) -> StoredArray:
    array = StoredArray()
    array.state = (1, shape, dtype, order == "F", raw)
    return array


def _table(items: Any = (), *_: Any) -> dict:
    """OrderedDict; Python 2 gave its items at once."""
    if not isinstance(items, list):
        return {}
    if not all(type(pair) in (list, tuple) and isinstance(pair[0], str) for pair in items):
        raise pickle.UnpicklingError("an OrderedDict of other things than named values")
    pairs, items[:] = items[:], []  # used up: a list that comes twice must not fill two tables
    return {pair[0]: pair[1] for pair in pairs}


def _encode(text: Any = "", encoding: Any = "latin1", *_: Any) -> str:
    """Bytes, kept as the text that stands for them, so that using it twice takes no memory."""
    if encoding not in ("latin1", "latin-1") or not isinstance(text, str):
        raise pickle.UnpicklingError("bytes in another encoding than latin1")
    return text


ARRAY_CONSTRUCTORS: Mapping[str, Callable[..., Any]] = {
    "collections.OrderedDict": _table,
    "collections.defaultdict": lambda *_: {},
    "numpy.core.multiarray._reconstruct": StoredArray,
    "numpy._core.multiarray._reconstruct": StoredArray,
    "numpy.core.numeric._frombuffer": _array_from_buffer,
    "numpy._core.numeric._frombuffer": _array_from_buffer,
    "_codecs.encode": _encode,
    "builtins.bytes": _encode,
}
TENSOR_CONSTRUCTORS: Mapping[str, Callable[..., Any]] = {
    **ARRAY_CONSTRUCTORS,
    "torch._utils._rebuild_tensor": StoredTensor,
    "torch._utils._rebuild_tensor_v2": StoredTensor,
    "torch._utils._rebuild_tensor_v3": StoredTensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch._tensor._rebuild_from_type_v2": _from_type,
}
