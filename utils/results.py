"""Finished training runs as a small folder of files, and what they say together."""

import hashlib
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from .errors import InputError
from .records import atomic_write, sha256

PART_BYTES = 15 << 20  # of a weight file; many places take files up to 16 MiB
KEYS = {"runs": dict, "score": str, "lists": dict, "notes": str}
RUN_KEYS = {
    "title": str, "cfg": list, "set": dict, "seeds": list, "minutes": (int, float), "score": str,
    "start": str, "weights": bool,
}  # fmt: skip


class WantedRun(NamedTuple):
    """One training run of a table.

    Attributes:
        name: of the row.
        title: what a reader calls it.
        seed: SEED.
        cfg: files, as --cfg takes them.
        settings: KEY VALUE words behind them.
        minutes: that it takes by the table, scoring included; None where the table does not say.
        score: list that it is scored on at its end.
        start: stem of the run whose weights it starts from; "" for none.
        weights: whether its own are kept.
    """

    name: str
    title: str
    seed: int
    cfg: tuple[str, ...]
    settings: tuple[str, ...]
    minutes: float | None
    score: str
    start: str
    weights: bool

    @property
    def stem(self) -> str:
        """What its files are called."""
        return f"{self.name}-{self.seed}"


def wanted_runs(table: Mapping[str, Any], origin: str) -> list[WantedRun]:
    """The runs of a table, the most important first: all rows with their first seed, then those
    that have a second one, and so on.

    Args:
        table: "score", the list that finished runs are scored on, once; "runs": name -> "title",
            "cfg" (files), "set" (KEY: value), "seeds", "minutes", a "score" of its own, "start"
            (an earlier row, whose weights it starts from), "weights" (false: the record alone is
            kept); "lists", list -> title, and "notes", text, both for the page.
        origin: the file it is from.

    Raises:
        ValueError: something is missing, unknown or of another kind.
    """
    _check_keys(table, KEYS, {"runs", "score"}, origin)
    for scored, title in table.get("lists", {}).items():
        if not isinstance(scored, str) or not isinstance(title, str):
            raise InputError(f"{origin}: lists has {scored!r}: {title!r}; both must be text")
    runs, seen = [], {}
    for name, row in table["runs"].items():
        where = f"{origin}, runs: {name}"
        if not isinstance(row, dict):
            raise InputError(f"{where} is {row!r}; accepted: {', '.join(RUN_KEYS)}")
        _check_keys(row, RUN_KEYS, {"cfg"}, where)
        seeds = row.get("seeds", [304])
        if not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
            raise InputError(f"{where}: seeds is {seeds}; accepted: whole numbers, 0 or more")
        settings = [word for key, value in row.get("set", {}).items() for word in (key, str(value))]
        start = row.get("start", "")
        if start and start not in seen:
            raise InputError(f"{where}: start is {start}; accepted: a row above it")
        if start and not table["runs"][start].get("weights", True):
            raise InputError(f"{where}: start is {start}, a row whose weights are not kept")
        seen[str(name)] = seeds[0]
        for place, seed in enumerate(seeds):
            run = WantedRun(
                str(name),
                row.get("title", str(name)),
                seed,
                tuple(map(str, row["cfg"])),
                tuple(settings),
                row.get("minutes"),
                row.get("score", table["score"]),
                f"{start}-{seen[start]}" if start else "",
                row.get("weights", True),
            )
            runs.append((place, run))
    return [run for _, run in sorted(runs, key=lambda item: item[0])]


def _check_keys(
    found: Mapping[str, Any], known: Mapping[str, Any], needed: set[str], origin: str
) -> None:
    for key, value in found.items():
        if key not in known:
            raise InputError(f"{origin}: unknown key {key}; accepted: {', '.join(known)}")
        if not isinstance(value, known[key]) or isinstance(value, bool) != (known[key] is bool):
            kind = getattr(known[key], "__name__", "number")
            raise InputError(f"{origin}: {key} is {value!r}; it must be a {kind}")
    if missing := sorted(needed - found.keys()):
        raise InputError(f"{origin} has no {missing[0]}")


def split_file(source: Path, folder: Path, stem: str) -> dict[str, Any]:
    """Copy a file in parts that are small enough for any place.

    Returns:
        "files", their names below `folder`, which joined give a file of the digest "sha256".
    """
    data = source.read_bytes()
    parts = [data[at : at + PART_BYTES] for at in range(0, len(data), PART_BYTES)]
    names = [stem] if len(parts) == 1 else [f"{stem}.{number:02d}" for number in range(len(parts))]
    for name, part in zip(names, parts, strict=True):
        atomic_write(folder / name, part)
    return {"files": names, "sha256": sha256(source)}


def joined(record: Mapping[str, Any], folder: Path) -> bytes:
    """The content of the file behind a record's "weights". Raises ValueError where its parts are
    not kept, not there or not whole."""
    told, run = record["weights"], f"{record['name']}-{record['seed']}"
    if not told["files"]:
        raise InputError(f"the weights of {run} were not kept; remove its record to train it again")
    if missing := [name for name in told["files"] if not (folder / name).is_file()]:
        raise InputError(
            f"{folder / missing[0]} does not exist; bring it from where {run} was trained, or "
            "train it again beside what starts from it, with --state FOLDER"
        )
    data = b"".join((folder / name).read_bytes() for name in told["files"])
    if hashlib.sha256(data).hexdigest() != told["sha256"]:
        files = ", ".join(str(folder / name) for name in told["files"])
        raise InputError(f"{files} is not what the record of {run} tells of")
    return data


def join_file(record: Mapping[str, Any], folder: Path, target: Path) -> None:
    """Write the file behind a record's "weights". Raises as `joined` does."""
    atomic_write(target, joined(record, folder))


def settings_digest(settings: Mapping[str, Any]) -> str:
    """A few hexadecimal digits that tell settings from others."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def half_precision(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights in half precision; a tensor that does not fit its range stays as it is.

    Raises ValueError where a value is not finite.
    """
    kept = {}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            kept[name] = tensor
            continue
        if not tensor.isfinite().all():
            raise InputError(f"the weights {name} are not finite")
        half = tensor.half()
        kept[name] = half if half.isfinite().all() else tensor
    return kept


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The records in a folder, sorted by name and seed. Raises ValueError for what is none."""
    records = []
    for path in sorted(folder.glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            record["name"], record["seed"], record["test"]["mIoU"], record["weights"]["sha256"]
            record["settings"].items(), record["scored"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is no record of a finished run; remove it") from error
        records.append(record)
    return sorted(records, key=lambda record: (record["name"], record["seed"]))


def by_row(records: Sequence[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(name, its records) of every row that has any; several times, where settings differ."""
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in records:
        key = record["name"], settings_digest(record["settings"])
        rows.setdefault(key, []).append(record)
    for (name, _), found in rows.items():
        yield name, found


def network_options(record: Mapping[str, Any]) -> list[str]:
    """`name value` of every option of a run's network that is not the default."""
    given = record["settings"].items()
    return [f"{key.split('.')[-1]} {v}" for key, v in given if key.startswith("MODEL.OPTIONS.")]


def machine(facts: Mapping[str, Any]) -> str:
    """What a run was trained on, by the facts of its environment."""
    threads = facts["cpu_threads"]
    return f"{facts['device']}, {threads} thread{'s' if threads > 1 else ''}"


def trains_on_validation(record: Mapping[str, Any]) -> bool:
    """Whether a run has trained on its validation list, too, which then chooses nothing."""
    return "trainval" in Path(record["settings"].get("DATASET.TRAIN_SET", "")).stem


def mean_and_spread(values: Sequence[float | None]) -> str:
    """Fractions as percent: `61.2` of one, `61.2 ± 0.4` (sample standard deviation) of several, ""
    of none."""
    known = [100 * v for v in values if v is not None and math.isfinite(v)]
    if len(known) < 2:
        return f"{known[0]:.1f}" if known else ""
    return f"{statistics.mean(known):.1f} ± {statistics.stdev(known):.1f}"
