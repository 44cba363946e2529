"""Reading a configuration: `_BASE_` files, then the yaml, more of these, then KEY VALUE pairs."""

import ast
import difflib
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from .defaults import defaults
from .errors import InputError
from .files import read_chain
from .ranges import check, expand_paths, is_option

COMMAND_LINE = "command line"
_SWITCHES = {  # settings with names that once were True or False, and are still set so
    "DATASET.CLASS_WEIGHTS": {"true": "published", "false": "none"},
    "TRAIN.FLIP": {"true": "random", "false": "none"},
    "TRAIN.COLOR": {"true": "jitter", "false": "none"},
}
_MOVED = {
    "DATASET.NUM_CLASSES": "the class count is the number of class names of the dataset",
    "MODEL.NUM_CLASSES": "the class count is the number of class names of the dataset",
    "TRAIN.IGNORE_LABEL": "the ignored label belongs to the dataset",
    "DATASET.IGNORE_LABEL": "the ignored label belongs to the dataset",
    "MODEL.ALIGN_CORNERS": "it is part of each architecture",
    "LOSS.USE_OHEM": "set LOSS.NAME to ohem or ce",
    "LOSS.OHEMTHRES": "now called LOSS.OHEM_THRESHOLD",
    "LOSS.OHEMKEEP": "now called LOSS.OHEM_MIN_KEPT",
    "LOSS.SB_WEIGHTS": "now called LOSS.BOUNDARY_AWARE_WEIGHT",
    "LOSS.BALANCE_WEIGHTS": "auxiliary weights are LOSS.AUX_WEIGHTS",
    "TRAIN.SHUFFLE": "training data is always shuffled",
    "PIN_MEMORY": "memory is pinned whenever there is a GPU",
}


def get_config(
    paths: str | Path | Sequence[str | Path],
    overrides: Sequence[str] = (),
    origin: str = COMMAND_LINE,
) -> CfgNode:
    """The frozen configuration of one or several yaml files with KEY VALUE pairs on top.

    What a later file sets, its bases included, replaces what earlier ones do. `origin` is where
    the pairs are from.

    Raises:
        ValueError: unknown key, value of the wrong type or out of range; names its origin.
        FileNotFoundError: a file, or one of its bases, does not exist.
    """
    paths = [Path(path) for path in _listed(paths)]
    for index, path in enumerate(paths):
        if path.resolve() in [earlier.resolve() for earlier in paths[:index]]:
            raise InputError(f"config {path} is given twice")
    config, origins = defaults(), {}
    for path in paths:
        for source, content in read_chain(path):
            if content.pop("_OVERLAY_", False) and source == paths[0]:
                raise InputError(
                    f"config {path} goes on top of another: --cfg NETWORK.yaml --cfg {path}"
                )
            _merge(config, content, "", str(source), origins)
    for key, text in _pairs(overrides, origin):
        content: Any = text
        for part in reversed(key.split(".")):
            content = {part: content}
        _merge(config, content, "", origin, origins)
    expand_paths(config, origins)
    check(config, origins)
    config.freeze()
    return config


def _listed(paths: str | Path | Sequence[str | Path]) -> list[str | Path]:
    return [paths] if isinstance(paths, (str, Path)) else list(paths)


def _pairs(words: Sequence[str], origin: str) -> list[tuple[str, str]]:
    """KEY VALUE pairs. Raises ValueError with the cure where it is something else."""
    for at, key in list(enumerate(words))[::2]:
        name, equals, value = key.partition("=")
        after = [*words[at + 1 : at + 3], "VALUE"]
        if not equals and after[0].startswith("="):
            equals, value = "=", after.pop(0)[1:]
        if equals:
            pair = f"{(meant(name) or [name])[0]} {shlex.quote(value or after[0])}"
            raise InputError(f"{origin}: {key} is no KEY with a VALUE after it; write {pair}")
        if key.lower().endswith((".yaml", ".yml")):
            raise InputError(f"{origin}: {key} is a file; write --cfg {shlex.quote(key)}")
    if len(words) % 2:
        raise InputError(
            f"{origin}: {words[-1]!r} stands alone; overrides come in pairs KEY VALUE, "
            'with a space between (quote tuples: GPUS "(0,1)")'
        )
    return list(zip(words[::2], words[1::2], strict=True))


def run_folder(config: CfgNode, paths: str | Path | Sequence[str | Path]) -> Path:
    """Where the run of this configuration keeps its files; the last of several names it."""
    dataset = config.DATASET.DATASET
    if dataset.lower().endswith((".yaml", ".yml")):  # a file's path would nest or leave OUTPUT_DIR
        dataset = Path(dataset).stem
    return Path(config.OUTPUT_DIR) / dataset / Path(_listed(paths)[-1]).stem


def changed_keys(config: CfgNode, earlier: str) -> dict[str, tuple[Any, Any]]:
    """Keys that differ from an earlier run's dumped configuration: key -> (then, now)."""
    then, now = defaults(), config
    _merge(then, yaml.safe_load(earlier), "", "earlier configuration")
    keys = dict.fromkeys([*leaf_names(now), *leaf_names(then)])  # also what is gone by now
    pairs = {key: (_value(then, key), _value(now, key)) for key in keys}
    return {key: (before, after) for key, (before, after) in pairs.items() if before != after}


def _value(node: CfgNode, key: str) -> Any:
    """The value of `key`, every list in it as a tuple; None where there is none."""
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return _tuples(node)


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _tuples(item) for name, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def _merge(
    node: CfgNode, content: dict, prefix: str, source: str, origins: dict[str, str] | None = None
) -> None:
    """Put `content` into `node`; `origins` notes the source of every key."""
    for name, value in content.items():
        key = f"{prefix}{name}"
        if name not in node:
            if node.is_new_allowed():
                node[name] = _option(name, value, key, source)
                continue
            while isinstance(value, dict) and len(value) == 1:  # a pair names the whole path
                (inner, value), *_ = value.items()
                key = f"{key}.{inner}"
            raise InputError(f"{source}: unknown key {key}{_hint(key)}")
        if isinstance(node[name], CfgNode):
            if not isinstance(value, dict):
                raise InputError(f"{source}: {key} is a section, not a value ({value!r})")
            _merge(node[name], value, f"{key}.", source, origins)
        else:
            node[name] = _coerce(node[name], value, key, source)
            if origins is not None:
                origins[key] = source


def _hint(key: str) -> str:
    if key.upper() in _MOVED:
        return f": {_MOVED[key.upper()]}"
    near = meant(key) or difflib.get_close_matches(key.upper(), _names(), n=1, cutoff=0.75)
    return (
        f"; did you mean {' or '.join(near)}?" if near else "; configs/defaults.py lists all keys"
    )


def meant(text: str) -> list[str]:
    """The keys that `text` spells in other letters, or without their section."""
    text = text.upper()
    if text in _names():
        return [text]
    return [key for key in _names() if key.endswith(f".{text}")]


def _names() -> list[str]:
    """All keys and sections."""
    keys = leaf_names(defaults())
    return [*keys, *dict.fromkeys(key.rpartition(".")[0] for key in keys if "." in key)]


def leaf_names(node: CfgNode, prefix: str = "") -> list[str]:
    names = []
    for name, value in node.items():
        is_section = isinstance(value, CfgNode)
        names += leaf_names(value, f"{prefix}{name}.") if is_section else [f"{prefix}{name}"]
    return names


def _plain(value: Any) -> Any:
    """A Python value: text is read as a literal where it is one, lists become tuples."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return value
    return tuple(value) if isinstance(value, list) else value


def _option(name: Any, value: Any, key: str, source: str) -> Any:
    """A constructor option of the network, which a checkpoint and a dump can hold."""
    if not (isinstance(name, str) and name.isidentifier()):
        raise InputError(
            f"{source}: {key.removesuffix(f'.{name}')} has the key {name!r}; accepted: names of "
            "constructor options"
        )
    value = _plain(value)
    if not is_option(value):
        raise InputError(
            f"{source}: {key} is {value!r} ({type(value).__name__}); accepted: text, a number "
            "(integers below 2**31), True, False, None, or a tuple of these"
        )
    return value


def _coerce(old: Any, value: Any, key: str, source: str) -> Any:
    """`value` in the type of `old`. int -> float and scalar -> 1-tuple are the only coercions."""
    if key in _SWITCHES:
        value = _SWITCHES[key].get(str(value).lower(), value)
    if not isinstance(old, str):  # "(0,1)" and "1e-3" are text in yaml and on the command line
        value = _plain(value)
    if isinstance(old, bool) and value in ("true", "false"):
        value = value == "true"
    if isinstance(old, float) and type(value) is int and abs(value) < 1 << 1000:
        value = float(value)
    if isinstance(old, tuple) and not isinstance(value, tuple):
        value = (value,)
    if isinstance(old, str) and value is None:
        value = ""
    if type(value) is not type(old):
        raise InputError(
            f"{source}: {key} is {value!r} ({type(value).__name__}); accepted: "
            f"{type(old).__name__}, such as {old!r}"
        )
    return value
