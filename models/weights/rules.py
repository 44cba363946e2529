"""Renaming: how the keys of a foreign state dict become this project's keys.

A table is a tuple of rules. A key is cut into module path and leaf ("weight", "running_mean");
the first rule whose parent matches the path and which knows the rest renames it. Nothing is
renamed twice, so tables may be read rule by rule.
"""

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

_Value = TypeVar("_Value")
_NORM_LEAVES = ("running_mean", "running_var", "num_batches_tracked")
TORCH_LEAVES = {name: name for name in ("weight", "bias", *_NORM_LEAVES)}
PADDLE_LEAVES = {
    "weight": "weight",
    "bias": "bias",
    "_mean": "running_mean",
    "_variance": "running_var",
}


@functools.cache
def _pattern(parent: str) -> re.Pattern[str]:
    """Matches a path below `parent`."""
    return re.compile(rf"(?:{parent})\.(?P<child>.+)" if parent else "(?P<child>.+)")


@dataclass(frozen=True)
class Rule:
    r"""`parent` (regular expression, "" for the top) becomes `target` (may use \1), and the path
    below it, a key of `children`, becomes that key's value."""

    parent: str
    target: str
    children: Mapping[str, str]

    def rename(self, path: str) -> str | None:
        match = _pattern(self.parent).fullmatch(path)
        if match is None or match["child"] not in self.children:
            return None
        parts = (match.expand(self.target), self.children[match["child"]])
        return ".".join(part for part in parts if part)


@dataclass(frozen=True)
class Fill:
    """What a target that a dialect does not store is set to, and why that is the same network.

    value: a number, or None for the model's present value.
    """

    value: float | None
    reason: str


@dataclass(frozen=True)
class Dialect:
    """One way in which somebody names a family's tensors.

    prefix: in front of every key that is renamed.
    drops: regular expression of a source key -> why it is not needed.
    fills: regular expression of a target key -> what it is set to where the source lacks it.
    requires: regular expression that at least one source key matches; without one the dialect is
        not spoken.
    """

    name: str
    rules: tuple[Rule, ...]
    leaves: Mapping[str, str] = field(default_factory=lambda: TORCH_LEAVES)
    prefix: str = ""
    drops: Mapping[str, str] = field(default_factory=dict)
    fills: Mapping[str, Fill] = field(default_factory=dict)
    requires: str = ""

    def rename(self, key: str) -> str | None:
        """This project's name of `key`, or None."""
        if not key.startswith(self.prefix):
            return None
        path = key[len(self.prefix) :]
        parent, _, last = path.rpartition(".")
        candidates = [(path, "")]
        if parent and last in self.leaves:
            candidates.append((parent, f".{self.leaves[last]}"))
        for module, leaf in candidates:
            for rule in self.rules:
                renamed = rule.rename(module)
                if renamed is not None:
                    return renamed + leaf
        return None

    def is_spoken(self, keys: Iterable[str]) -> bool:
        """Whether `keys` hold what every file of this dialect has."""
        return not self.requires or any(re.fullmatch(self.requires, key) for key in keys)

    def dropped(self, key: str) -> str | None:
        """Why `key` is dropped, or None."""
        return _first_match(self.drops, key)

    def filled(self, target: str) -> Fill | None:
        """What the absent `target` is set to, or None if it may not be absent."""
        return _first_match(self.fills, target)


@dataclass(frozen=True)
class OwnNames:
    """The dialect of a model's own keys, which stay as they are but for a prefix.

    theirs, ours: what stands before the names in the file and in the model.
    drops, fills: as in `Dialect`.
    """

    keys: frozenset[str]
    name: str = "this project's"
    theirs: str = ""
    ours: str = ""
    drops: Mapping[str, str] = field(default_factory=dict)
    fills: Mapping[str, Fill] = field(default_factory=dict)

    def rename(self, key: str) -> str | None:
        target = self.ours + key.removeprefix(self.theirs)
        return target if key.startswith(self.theirs) and target in self.keys else None

    def is_spoken(self, keys: Iterable[str]) -> bool:
        return True

    def dropped(self, key: str) -> str | None:
        return _first_match(self.drops, key)

    def filled(self, target: str) -> Fill | None:
        return _first_match(self.fills, target)


def own_names(keys: Iterable[str], *, is_backbone: bool) -> tuple[OwnNames, ...]:
    """A model's own names, and those of its backbone alone or of the network around it."""
    keys = frozenset(keys)
    own = (OwnNames(keys),)
    if is_backbone:
        drops = {r"(?!backbone\.).*": "not part of the backbone"}
        return (*own, OwnNames(keys, theirs="backbone.", drops=drops))
    if any(key.startswith("backbone.") for key in keys):
        fills = {r"(?!backbone\.).*": Fill(None, "not in backbone files")}
        return (*own, OwnNames(keys, ours="backbone.", fills=fills))
    return own


def one_line(value: object) -> str:
    """Text out of a file, fit for one line of a message."""
    text = str(value)[:400]
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def _first_match(table: Mapping[str, _Value], key: str) -> _Value | None:
    return next((value for pattern, value in table.items() if re.fullmatch(pattern, key)), None)


@dataclass(frozen=True)
class Renaming:
    """What a dialect makes of a set of keys: target -> source, source -> reason, the rest."""

    dialect: Dialect | OwnNames
    sources: dict[str, str]
    dropped: dict[str, str]
    unknown: list[str]


def rename_keys(dialect: Dialect | OwnNames, keys: Iterable[str]) -> Renaming:
    """Apply one dialect. Two sources with one target count as unknown from the second on."""
    result = Renaming(dialect, {}, {}, [])
    for key in keys:
        reason = dialect.dropped(key)
        target = None if reason else dialect.rename(key)
        if reason:
            result.dropped[key] = reason
        elif target is None or target in result.sources:
            result.unknown.append(key)
        else:
            result.sources[target] = key
    return result


def strip_wrappers(keys: Iterable[str]) -> str:
    """The prefix that DistributedDataParallel and torch.compile put in front of every key."""
    keys, prefix = list(keys), ""
    while keys:
        found = next(
            (w for w in ("module.", "_orig_mod.") if all(k.startswith(prefix + w) for k in keys)),
            None,
        )
        if found is None:
            break
        prefix += found
    return prefix
