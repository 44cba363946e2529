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

from torch import Tensor

_Value = TypeVar("_Value")
_NORM_LEAVES = ("running_mean", "running_var", "num_batches_tracked")
TORCH_LEAVES = {name: name for name in ("weight", "bias", *_NORM_LEAVES)}
PASSES_ON = "passes on"
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


def modules(parts: Mapping[str, str], names: Mapping[str, str]) -> dict[str, str]:
    """Children of which each, a path of theirs -> a path of ours, has the same `parts`."""
    return {
        f"{theirs}.{part}": f"{ours}.{mine}"
        for theirs, ours in names.items()
        for part, mine in parts.items()
    }


@dataclass(frozen=True)
class Fill:
    """What a target that a dialect does not store is set to, and why that is the same network.

    value: a number, PASSES_ON for the kernel that gives its input back, or None for the model's
        present value.
    """

    value: float | str | None
    reason: str


@dataclass(frozen=True, eq=False)
class Dialect:
    r"""One way in which somebody names a family's tensors.

    prefix: may stand in front of a key.
    drops: regular expression of a source key -> why it is not needed.
    fills: regular expression of a target key -> what it is set to where the source lacks it.
    requires: regular expression that at least one source key matches; without one the dialect is
        not spoken.
    splits: regular expression of a renamed key, whose tensor is several of ours stacked -> our
        names of its equal parts along the rows, in order; may use \1.
    """

    name: str
    rules: tuple[Rule, ...]
    leaves: Mapping[str, str] = field(default_factory=lambda: TORCH_LEAVES)
    prefix: str = ""
    drops: Mapping[str, str] = field(default_factory=dict)
    fills: Mapping[str, Fill] = field(default_factory=dict)
    requires: str = ""
    splits: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def rename(self, key: str) -> str | None:
        """This project's name of `key`, or None."""
        path = key.removeprefix(self.prefix)
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

    def targets(self, key: str) -> tuple[str, ...]:
        """This project's names of what `key` holds; none if it is not known."""
        renamed = self.rename(key)
        if renamed is None:
            return ()
        for pattern, names in self.splits.items():
            if match := re.fullmatch(pattern, renamed):
                return tuple(match.expand(name) for name in names)
        return (renamed,)

    def is_spoken(self, keys: Iterable[str]) -> bool:
        """Whether `keys` hold what every file of this dialect has."""
        return not self.requires or any(re.fullmatch(self.requires, key) for key in keys)

    def dropped(self, key: str) -> str | None:
        """Why `key` is dropped, or None."""
        return _first_match(self.drops, key)

    def filled(self, target: str) -> Fill | None:
        """What the absent `target` is set to, or None if it may not be absent."""
        return _first_match(self.fills, target)


def own_dialects(keys: Iterable[str], *, is_backbone: bool) -> tuple[Dialect, ...]:
    """A model's own names, and those of its backbone alone or of the network around it."""
    name, prefix = "this project's", "backbone."
    same = {key: key for key in keys}
    own = Dialect(name, (Rule("", "", same),))
    if is_backbone:
        drops = {r"(?!backbone\.).*": "not part of the backbone"}
        return own, Dialect(name, own.rules, prefix=prefix, drops=drops)
    inner = {key.removeprefix(prefix) for key in same if key.startswith(prefix)}
    if not inner:
        return (own,)
    alone = Rule("", "backbone", {key: key for key in inner})
    return own, Dialect(
        name, (alone,), fills={r"(?!backbone\.).*": Fill(None, "not in backbone files")}
    )


def one_line(value: object) -> str:
    """Text out of a file, fit for one line of a message."""
    text = str(value)[:400]
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def _first_match(table: Mapping[str, _Value], key: str) -> _Value | None:
    return next((value for pattern, value in table.items() if re.fullmatch(pattern, key)), None)


@dataclass(frozen=True)
class Renaming:
    """What a dialect makes of a set of keys: target -> source, source -> reason, the rest.

    parts: target -> (index, count) where it is one of several equal parts of its source's rows.
    """

    dialect: Dialect
    sources: dict[str, str]
    dropped: dict[str, str]
    unknown: list[str]
    parts: dict[str, tuple[int, int]] = field(default_factory=dict)

    def tensor(self, target: str, state: Mapping[str, Tensor]) -> Tensor:
        """What `state` has for `target`; the whole tensor where its rows cannot be parted."""
        whole = state[self.sources[target]]
        index, count = self.parts.get(target, (0, 1))
        if count == 1 or not whole.ndim or whole.shape[0] % count:
            return whole
        return whole.chunk(count)[index]


def rename_keys(dialect: Dialect, keys: Iterable[str]) -> Renaming:
    """Apply one dialect. Two sources with one target count as unknown from the second on."""
    result = Renaming(dialect, {}, {}, [])
    for key in keys:
        reason = dialect.dropped(key)
        targets = () if reason else dialect.targets(key)
        if reason:
            result.dropped[key] = reason
        elif not targets or any(target in result.sources for target in targets):
            result.unknown.append(key)
        else:
            result.sources.update(dict.fromkeys(targets, key))
        if len(targets) > 1:
            result.parts.update((t, (i, len(targets))) for i, t in enumerate(targets))
    return result


def strip_wrappers(keys: Iterable[str]) -> str:
    """The prefix that DistributedDataParallel and torch.compile put in front of every key."""
    keys = list(keys)
    prefix = re.match(r"((module|_orig_mod)\.)*", keys[0])[0] if keys else ""
    while not all(key.startswith(prefix) for key in keys):
        prefix = prefix[: prefix.rfind(".", 0, -1) + 1]  # one name less
    return prefix
