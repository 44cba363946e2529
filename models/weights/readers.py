"""Checkpoint containers: bytes on disk to a flat dict of tensors. Nothing in a file is executed.

Accepted: files of torch.save (zip or legacy) and .pdparams of paddle.save (one plain pickle).
"""

import io
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

ACCEPTED = "a torch checkpoint (.pt, .pth, .pth.tar) or a Paddle .pdparams file"

# Where the weights may lie inside a training checkpoint, in order of preference.
WRAPPERS = (
    "model", "state_dict", "model_state_dict", "model_state", "net", "network", "module",
    "params", "weights", "ema", "model_ema", "state_dict_ema", "ema_state_dict",
)  # fmt: skip

# Values that training scripts leave beside the weights (scores, settings). They are not needed:
# an inert object takes their place, so that their own code is never called.
INERT_GLOBALS = (
    "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype",
    "numpy.dtypes.Float64DType", "numpy.dtypes.Float32DType", "numpy.dtypes.Int64DType",
    "_codecs.encode", "argparse.Namespace", "yacs.config.CfgNode",
)  # fmt: skip

# What reading a damaged pickle or zip can raise.
_DAMAGE = (
    pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, TypeError,
    AttributeError, ArithmeticError, AssertionError, MemoryError, OSError,
)  # fmt: skip

_LEGACY_TORCH = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number, pickled


class Checkpoint(NamedTuple):
    """tensors: flat state dict. ignored: entry name -> why it is no weight. facts: the file's
    own `architecture` and `class_names`, where this project wrote it."""

    tensors: dict[str, Tensor]
    ignored: dict[str, str]
    facts: dict[str, Any]


class _Inert:
    """Takes the place of an object that is not needed; does nothing."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read the weights in a file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a directory, empty, damaged, or not a checkpoint that is accepted.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a directory; expected {ACCEPTED}")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected {ACCEPTED}")
    size = path.stat().st_size
    if size == 0:
        raise ValueError(f"{path} is empty (0 bytes); expected {ACCEPTED}")
    with path.open("rb") as stream:
        start = stream.read(64)
    if start.startswith(b"PK\x03\x04") or _LEGACY_TORCH in start:
        content = _read_torch(path)
    elif start.startswith(b"\x80"):
        content = _read_paddle(path)
    else:
        raise ValueError(f"{path} ({size} bytes) is not a checkpoint; expected {ACCEPTED}")
    return _unwrap(content, path)


def _read_torch(path: Path) -> Any:
    allowed = [(_Inert, name) for name in INERT_GLOBALS]
    try:
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecation notes of old storage types
            return torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        raise ValueError(_torch_complaint(path, error)) from error


def _torch_complaint(path: Path, error: BaseException) -> str:
    text = str(error)
    for mark in ("Unsupported global: GLOBAL ", "unsupported GLOBAL "):
        if mark in text:
            name = text.split(mark, 1)[1].split()[0].rstrip(".,")
            return (
                f"{path} holds an object of {name}, which is not loaded because reading it would "
                "run code; save the state dict alone"
            )
    if "Unsupported operand" in text or "Can only" in text:
        return (
            f"{path} holds objects other than tensors and plain values; save the state dict alone"
        )
    return f"{path} ({path.stat().st_size} bytes) is damaged or cut off; expected {ACCEPTED}"


def _unwrap(content: Any, path: Path) -> Checkpoint:
    """Find the state dict: the file's own content, or an entry that training scripts name so."""
    facts: dict[str, Any] = {}
    for _ in range(3):
        if not isinstance(content, Mapping):
            break
        facts |= {k: content[k] for k in ("architecture", "class_names") if k in content}
        tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)}
        inner = next((k for k in WRAPPERS if isinstance(content.get(k), Mapping)), None)
        if tensors and inner is None:
            if not all(isinstance(k, str) for k in tensors):
                break
            ignored = {str(k): "not a tensor" for k in content if k not in tensors}
            if _PADDLE_NAMES in ignored:
                ignored[_PADDLE_NAMES] = "Paddle's internal names"
            return Checkpoint(tensors, ignored, facts)
        if inner is None:
            found = ", ".join(sorted(map(str, content))[:6]) or "nothing"
            raise ValueError(
                f"{path} holds no weights (found: {found}); expected a state dict, bare or as one "
                f"of {', '.join(WRAPPERS)}"
            )
        content = content[inner]
    raise ValueError(f"{path} holds a {type(content).__name__}, not a state dict of named tensors")


# Paddle: one pickle of a plain dict, key -> numpy array. The arrays are rebuilt here from their
# raw bytes; of the names that such a pickle may call, none is resolved to the real one.

_PADDLE_NAMES = "StructuredToParameterName@@"
_PADDLE_SPLIT = "UnpackBigParamInfor@@"
_ARRAY_KINDS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1"}


class _ArrayType:
    """Stands for numpy.ndarray as an argument."""


class _DType:
    def __init__(self, code: str = "", *_: object) -> None:
        if code not in _ARRAY_KINDS:
            raise pickle.UnpicklingError(f"array type {code!r} is not a number")
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple) -> None:
        if state[1] not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"byte order {state[1]!r}")
        self.order = state[1]


class _Array:
    def __init__(self, *_: object) -> None:
        self.value: Tensor | None = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _DType) or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("an array is not stored as raw bytes")
        array = np.frombuffer(raw, np.dtype(dtype.order + dtype.code))
        array = array.reshape(shape, order="F" if fortran else "C")
        self.value = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))


def _encode(text: str, encoding: str = "") -> bytes:
    if encoding != "latin1" or not isinstance(text, str):
        raise pickle.UnpicklingError(f"_codecs.encode is admitted with latin1, not {encoding!r}")
    return text.encode("latin1")


_PADDLE_GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _ArrayType,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _encode,
}


class _RefusedGlobal(pickle.UnpicklingError):
    pass


class _PaddleUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PADDLE_GLOBALS:
            raise _RefusedGlobal(f"{module}.{name}")
        return _PADDLE_GLOBALS[module, name]


def _read_paddle(path: Path) -> dict[str, Any]:
    try:
        content = _PaddleUnpickler(io.BytesIO(path.read_bytes())).load()
    except _RefusedGlobal as error:
        raise ValueError(
            f"{path} is a pickle that calls {error}, which is not loaded because reading it would "
            f"run code; expected {ACCEPTED}"
        ) from error
    except _DAMAGE as error:
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) is damaged or cut off; expected {ACCEPTED}"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} holds a pickled {type(content).__name__}; expected a dict of named arrays"
        )
    if _PADDLE_SPLIT in content:
        raise ValueError(
            f"{path} holds parameters split over several entries; save it again "
            "with pickle protocol 4"
        )
    return {k: v.value if isinstance(v, _Array) else v for k, v in content.items()}
