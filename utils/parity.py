"""Parity data: what a published implementation computes for weights and inputs made from seeds.

A fixture NAME.json states key names and shapes, seeds, and outputs. The outputs lie in NAME.npz,
or inside the JSON itself under `inline` (compact files): whole small arrays, arrays made from a
seed, or samples of an output at seeded positions with the maximum of the whole.
"""

import ast
import base64
import json
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .errors import InputError

TOLERANCE = 2e-5  # relative to max |reference|
NORM_LEAVES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
NOISE_FACTOR = 10  # a case that states its own float32 noise is held to this many times of it
OWN_NOISE = "max_abs_err_over_max_abs_fp32_vs_fp64"  # the same, stated by a single output

# Fixtures that do not state theirs, but whose float32 outputs differ by more than TOLERANCE between
# processors: with exact (float64) arithmetic they are within 1.3e-5 of the reference, but one at
# 2.6e-5, which is then the reference's own rounding; native float32 kernels reach 5e-5.
UNSTATED_NOISE = {"mmseg_pidnet_s": 6e-6, "pidnet_l": 4e-6, "pidnet_s": 4e-6}

# What a damaged file or a wrong entry in one can raise while it is read and run.
DAMAGE = (
    OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, EOFError,
    ArithmeticError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


class Reference(NamedTuple):
    """An output to compare with. values: flat; indices: their flat positions, None for all."""

    shape: tuple[int, ...]
    values: np.ndarray
    indices: np.ndarray | None
    absmax: float


@dataclass
class Fixture:
    """One parity file. `data` is its JSON; arrays are read when they are asked for."""

    path: Path
    data: dict[str, Any]
    _arrays: Mapping[str, np.ndarray] | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        return str(self.data.get("name", self.path.stem))

    @property
    def kind(self) -> str:
        return str(self.entry("kind"))

    def entry(self, key: str) -> Any:
        """A required top-level entry of the JSON."""
        if key not in self.data:
            raise InputError(f"{self.path} has no entry {key!r}")
        return self.data[key]

    def cases(self) -> list[dict[str, Any]]:
        """The cases; at least one."""
        cases = self.entry("cases")
        if not isinstance(cases, list) or not cases:
            raise InputError(f"{self.path} has no cases")
        return cases

    def tensors(self) -> list[tuple[str, list[int]]]:
        """Keys and shapes of the state dict, in order.

        The five tensors of a BatchNorm may stand as one entry, [path, "norm", channels].
        """
        result = []
        for key, shape, *channels in self.entry("state_dict"):
            if shape == "norm":
                *vectors, counter = (f"{key}.{leaf}" for leaf in NORM_LEAVES)
                result += [(vector, [*channels]) for vector in vectors] + [(counter, [])]
            else:
                result.append((key, shape))
        return result

    def array(self, key: str) -> np.ndarray:
        """A whole array, from `inline` or the npz. It must be finite."""
        inline = self.data.get("inline", {})
        value = decode(inline[key]) if key in inline else self._stored(key)
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise InputError(f"{key} of {self.name} holds values that are not finite")
        return value

    def reference(self, key: str, shape: Sequence[int] | None = None) -> Reference:
        """The output stored as `key`, which must have `shape`."""
        spec = self.data.get("inline", {}).get(key)
        if spec is not None and "samples" in spec:
            values = np.asarray(spec["samples"], np.float64)
            if not np.isfinite(values).all() or not np.isfinite(spec["absmax"]):
                raise InputError(f"{key} of {self.name} holds values that are not finite")
            found = tuple(spec["shape"])
            indices = sample_indices(found, len(values), spec["seed"])
            result = Reference(found, values, indices, float(spec["absmax"]))
        else:
            whole = self.array(key)
            values = whole.astype(np.float64).ravel()
            result = Reference(whole.shape, values, None, float(np.abs(values).max(initial=0)))
        if shape is not None and result.shape != tuple(shape):
            raise InputError(f"{key} of {self.name} has shape {result.shape}, stated {shape}")
        if not len(result.values):
            raise InputError(f"{key} of {self.name} is empty")
        return result

    def _stored(self, key: str) -> np.ndarray:
        path = self.path.with_suffix(".npz")
        if self._arrays is None:
            if not path.is_file():
                raise InputError(f"{path} does not exist; {self.path.name} refers to it")
            with np.load(path, allow_pickle=False) as arrays:
                self._arrays = {name: arrays[name] for name in arrays.files}
        if key not in self._arrays:
            raise InputError(f"{path} has no array {key!r}")
        return self._arrays[key]


def read_fixture(path: Path) -> Fixture:
    """Read NAME.json. Raises ValueError if it is no JSON object."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(data, dict):
        raise InputError(f"{path} holds a JSON {type(data).__name__}, not an object")
    return Fixture(path, data)


def sample_indices(shape: Sequence[int], count: int, seed: int) -> np.ndarray:
    """`count` distinct flat positions in an array of `shape`."""
    return np.random.RandomState(seed).permutation(int(np.prod(shape)))[:count]


def encode(array: np.ndarray) -> dict[str, Any]:
    """A whole array as text for `inline`."""
    packed = base64.b64encode(zlib.compress(np.ascontiguousarray(array).tobytes(), 9)).decode()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "packed": packed}


def decode(spec: Mapping[str, Any]) -> np.ndarray:
    """The array of an `inline` entry: packed, or seeded noise with a bump at one class a pixel."""
    shape = tuple(spec["shape"])
    if "packed" in spec:
        raw = zlib.decompress(base64.b64decode(spec["packed"]))
        return np.frombuffer(raw, spec["dtype"]).reshape(shape).copy()
    noise = np.random.RandomState(spec["seed"]).standard_normal(shape) * spec["scale"]
    if "classes" in spec:
        classes = decode(spec["classes"])[:, None]  # N, 1, H, W
        noise += spec["bump"] * (classes == np.arange(shape[1])[:, None, None])
    return noise.astype(np.float32)


def fill(fixture: Fixture, case: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The state dict of a case: every tensor from the checksum of its own name.

    Keys listed as untouched are constants of the architecture and left out.
    """
    rule = {**fixture.data.get("fill", {}), **case.get("fill", {})}
    salt, gain = rule.get("salt", ""), float(rule.get("gain_for_ndim_ge_2", 1.0))
    untouched = set(fixture.data.get("untouched", ()))
    return {
        key: fill_tensor(key, shape, salt, gain)
        for key, shape in fixture.tensors()
        if key not in untouched
    }


def fill_tensor(key: str, shape: Sequence[int], salt: str = "", gain: float = 1.0) -> np.ndarray:
    """One tensor: normal noise seeded by crc32(salt + key), scaled by the role of the key."""
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    seed = zlib.crc32((salt + key).encode("utf-8"))
    noise = np.asarray(np.random.RandomState(seed).standard_normal(tuple(shape)))
    if key.endswith(("running_var", "_variance")):
        value = 1 + 0.1 * np.abs(noise)
    elif key.endswith(("running_mean", "_mean")):
        value = 0.1 * noise
    elif len(shape) >= 2:
        value = noise * np.sqrt(2 / np.prod(shape[1:])) * gain
    elif key.endswith("weight"):
        value = 1 + 0.1 * noise
    else:
        value = 0.1 * noise
    return np.asarray(value, np.float32)


def inputs(fixture: Fixture, case: Mapping[str, Any]) -> list[np.ndarray]:
    """The float32 inputs of a case. Of several forms of one input only the first is given."""
    if "inputs" in case:
        return [_block_input(fixture, entry) for entry in case["inputs"] if "from" not in entry]
    shapes, seeds = case["input"], case.get("input_seeds", [case["seed"]])
    shapes = shapes if isinstance(shapes[0], list) else [shapes]
    return [normal(seed, shape) for seed, shape in zip(seeds, shapes, strict=True)]


def _block_input(fixture: Fixture, entry: Mapping[str, Any]) -> np.ndarray:
    if "seed" in entry:
        return normal(entry["seed"], entry["shape"])
    return fixture.array(entry["key"])


def normal(seed: int, shape: Sequence[int]) -> np.ndarray:
    """Standard normal float32 from numpy's legacy generator."""
    return np.random.RandomState(seed).standard_normal(tuple(shape)).astype(np.float32)


def stored_grid(value: np.ndarray, entry: Mapping[str, Any]) -> np.ndarray:
    """The rows and columns of an output that its entry says are stored; usually all.

    Raises ValueError if `value` has not the full shape, or the entry does not say which.
    """
    full = entry.get("full_shape", entry["shape"])
    if list(full) == list(entry["shape"]):
        return value
    if list(value.shape) != list(full):
        raise InputError(f"output has shape {value.shape}, reference {tuple(full)}")
    step = re.match(r"rows and columns 0,(\d+)", str(entry.get("stored", "")))
    if step is None or not int(step[1]):
        raise InputError(f"does not say which rows and columns of {full} are stored")
    return value[..., :: int(step[1]), :: int(step[1])]


def tolerance(
    case: Mapping[str, Any], role: str, fixture: str = "", entry: Mapping[str, Any] | None = None
) -> float:
    """Admissible difference relative to max |reference|, for an output of `fixture`.

    The noise of float32 is stated by the case for a role, or by the output's own `entry`.
    """
    unstated = (entry or {}).get(OWN_NOISE, UNSTATED_NOISE.get(fixture, 0.0))
    noise = case.get("fp32_noise_rel", {}).get(role.partition(":")[0], unstated)
    return max(TOLERANCE, NOISE_FACTOR * float(noise))


def difference(value: np.ndarray, reference: Reference) -> float:
    """max |value - reference| relative to max |reference| of the whole output.

    Raises ValueError if `value` has another shape or is not finite.
    """
    if value.shape != reference.shape:
        raise InputError(f"output has shape {value.shape}, reference {reference.shape}")
    flat = value.astype(np.float64).ravel()
    if not np.isfinite(flat).all():
        raise InputError("output holds values that are not finite")
    chosen = flat if reference.indices is None else flat[reference.indices]
    distance = float(np.abs(chosen - reference.values).max())
    return distance / reference.absmax if reference.absmax else distance


def parse_constructor(text: str) -> tuple[str, dict[str, Any]]:
    """Class name and keyword arguments out of `Name(a=1, b=[2, 3] (remark), c=True) remark`.

    A text of another form has the name "".
    """
    head = re.match(r"\s*(\w+)\(", text)
    if head is None:
        return "", {}
    depth, kept = 1, []
    for char in text[head.end() :]:
        depth += (char == "(") - (char == ")")
        if depth == 0:
            break
        if depth == 1 and char != ")":
            kept.append(char)
    pairs = re.findall(r"(\w+)\s*=\s*(\[[^\]]*\]|[^,\s]+)", "".join(kept))
    return head[1], {name: ast.literal_eval(value) for name, value in pairs}


@dataclass(frozen=True)
class Row:
    """One line of the report. verdict: ok, FAIL or unknown; note: why, where it is not ok."""

    fixture: str
    case: str = ""
    output: str = ""
    keys: str = ""
    difference: float | None = None
    tolerance: float | None = None
    verdict: str = "ok"
    note: str = ""

    @classmethod
    def measured(cls, fixture: str, case: str, output: str, keys: str, rel: float, tol: float):
        """A row whose verdict follows from its numbers."""
        return cls(fixture, case, output, keys, rel, tol, "ok" if rel <= tol else "FAIL")


def table(rows: Sequence[Row]) -> str:
    """The report as aligned text."""
    lines = [("fixture", "case", "output", "keys", "max |diff|", "tolerance", "verdict")]
    for row in rows:
        numbers = ("" if v is None else f"{v:.1e}" for v in (row.difference, row.tolerance))
        verdict = f"{row.verdict}  {row.note}".rstrip()
        lines.append((row.fixture, row.case, row.output, row.keys, *numbers, verdict))
    widths = [max(len(line[i]) for line in lines) for i in range(6)]
    text = [
        "  ".join([*(c.ljust(w) for c, w in zip(line, widths, strict=False)), line[6]])
        for line in lines
    ]
    return "\n".join(line.rstrip() for line in text)
