"""Reading a configuration: `_BASE_` files, then the yaml, then KEY VALUE pairs."""

import ast
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from .defaults import defaults

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


def get_config(path: str | Path, overrides: Sequence[str] = ()) -> CfgNode:
    """The frozen configuration of a yaml file with KEY VALUE pairs on top.

    Raises:
        ValueError: unknown key, value of the wrong type or out of range; names its origin.
        FileNotFoundError: the file, or one of its bases, does not exist.
    """
    config = defaults()
    for source, content in _chain(Path(path), ()):
        _merge(config, content, "", str(source))
    if len(overrides) % 2:
        raise ValueError(
            f"command line: {overrides[-1]!r} stands alone; overrides come in pairs KEY VALUE, "
            'with a space between (quote tuples: GPUS "(0,1)")'
        )
    for key, text in zip(overrides[::2], overrides[1::2], strict=True):
        content: Any = text
        for part in reversed(key.split(".")):
            content = {part: content}
        _merge(config, content, "", "command line")
    _check(config)
    config.freeze()
    return config


def run_folder(config: CfgNode, path: str | Path) -> Path:
    """Where the run of this configuration keeps its files."""
    dataset = config.DATASET.DATASET
    if dataset.lower().endswith((".yaml", ".yml")):  # a file's path would nest or leave OUTPUT_DIR
        dataset = Path(dataset).stem
    return Path(config.OUTPUT_DIR) / dataset / Path(path).stem


def changed_keys(config: CfgNode, earlier: str) -> dict[str, tuple[Any, Any]]:
    """Keys that differ from an earlier run's dumped configuration: key -> (then, now)."""
    then, now = defaults(), config
    _merge(then, yaml.safe_load(earlier), "", "earlier configuration")
    return {
        key: (_value(then, key), _value(now, key))
        for key in leaf_names(now)
        if _value(then, key) != _value(now, key)
    }


def _value(node: CfgNode, key: str) -> Any:
    for part in key.split("."):
        node = node.get(part)
    return node


def _chain(path: Path, seen: tuple[Path, ...]) -> list[tuple[Path, dict]]:
    """The yaml files behind `path`, bases first."""
    if path.resolve() in seen:
        raise ValueError(f"{path}: _BASE_ leads back to the file itself")
    if not path.is_file():
        origin = f", named as _BASE_ in {seen[-1]}" if seen else ""
        raise FileNotFoundError(f"config {path} does not exist{origin}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid yaml: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: the top level is a {type(content).__name__}, not KEY: value")
    bases = content.pop("_BASE_", [])
    files = []
    for base in [bases] if isinstance(bases, str) else bases:
        files += _chain(path.parent / base, (*seen, path.resolve()))
    return [*files, (path, content)]


def _merge(node: CfgNode, content: dict, prefix: str, source: str) -> None:
    for name, value in content.items():
        key = f"{prefix}{name}"
        if name not in node:
            if node.is_new_allowed():
                node[name] = _plain(value)
                continue
            raise ValueError(f"{source}: unknown key {key}{_hint(key)}")
        if isinstance(node[name], CfgNode):
            if not isinstance(value, dict):
                raise ValueError(f"{source}: {key} is a section, not a value ({value!r})")
            _merge(node[name], value, f"{key}.", source)
        else:
            node[name] = _coerce(node[name], value, key, source)


def _hint(key: str) -> str:
    if key in _MOVED:
        return f": {_MOVED[key]}"
    keys = leaf_names(defaults())
    near = difflib.get_close_matches(key, keys, n=1, cutoff=0.75)
    return f"; did you mean {near[0]}?" if near else "; configs/defaults.py lists all keys"


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
        except (ValueError, SyntaxError):
            return value
    return tuple(value) if isinstance(value, list) else value


def _coerce(old: Any, value: Any, key: str, source: str) -> Any:
    """`value` in the type of `old`. int -> float and scalar -> 1-tuple are the only coercions."""
    if not isinstance(old, str):  # "(0,1)" and "1e-3" are text in yaml and on the command line
        value = _plain(value)
    if isinstance(old, bool) and value in ("true", "false"):
        value = value == "true"
    if isinstance(old, float) and type(value) is int:
        value = float(value)
    if isinstance(old, tuple) and not isinstance(value, tuple):
        value = (value,)
    if isinstance(old, str) and value is None:
        value = ""
    if type(value) is not type(old):
        raise ValueError(
            f"{source}: {key} is {value!r} ({type(value).__name__}); accepted: "
            f"{type(old).__name__}, such as {old!r}"
        )
    return value


def _check(c: CfgNode) -> None:
    """Ranges and choices that hold for every configuration."""

    def need(ok: bool, key: str, value: Any, accepted: str) -> None:
        if not ok:
            raise ValueError(f"{key} is {value!r}; accepted: {accepted}")

    def choice(key: str, value: str, *names: str) -> None:
        need(value in names, key, value, ", ".join(names))

    def positive(key: str, value: float, least: float = 1) -> None:
        need(value >= least, key, value, f"{least} or more")

    def numbers(key: str, value: tuple, count: int | None, kinds: tuple = (int,)) -> None:
        ok = all(type(v) in kinds and v > 0 for v in value) and count in (None, len(value))
        size = "" if count is None else f"{count} "
        need(ok, key, value, f"{size}positive numbers ({' or '.join(k.__name__ for k in kinds)})")

    choice("DATASET.CACHE", c.DATASET.CACHE, "none", "ram", "disk")
    choice("DATASET.ON_ERROR", c.DATASET.ON_ERROR, "stop", "skip")
    choice("TRAIN.AUGMENT_ON", c.TRAIN.AUGMENT_ON, "cpu", "device")
    need(0 < c.DATASET.CACHE_GB < 1e9, "DATASET.CACHE_GB", c.DATASET.CACHE_GB, "above 0, below 1e9")
    choice("LOSS.NAME", c.LOSS.NAME, "ce", "ohem")
    choice("LOSS.AUX_NAME", c.LOSS.AUX_NAME, "ce", "ohem")
    choice("TRAIN.OPTIMIZER", c.TRAIN.OPTIMIZER, "sgd", "adamw")
    choice("TRAIN.PRECISION", c.TRAIN.PRECISION, "auto", "fp32", "bf16", "fp16")
    for name in ("BATCH_SIZE_PER_GPU", "ACCUMULATE", "END_EPOCH", "EVAL_EVERY"):
        positive(f"TRAIN.{name}", c.TRAIN[name])
    positive("TEST.BATCH_SIZE_PER_GPU", c.TEST.BATCH_SIZE_PER_GPU)
    positive("TEST.SIZE_DIVISOR", c.TEST.SIZE_DIVISOR)
    for key, value in (
        ("WORKERS", c.WORKERS),
        ("TEST.OVERLAYS", c.TEST.OVERLAYS),
        ("TRAIN.WARMUP_STEPS", c.TRAIN.WARMUP_STEPS),
        ("TRAIN.WD", c.TRAIN.WD),
        ("TRAIN.CLIP_GRAD", c.TRAIN.CLIP_GRAD),
        ("TRAIN.BASE_SIZE", c.TRAIN.BASE_SIZE),
        ("TRAIN.SHORT_SIDE", c.TRAIN.SHORT_SIDE),
        ("TEST.SHORT_SIDE", c.TEST.SHORT_SIDE),
        ("TEST.LONG_SIDE", c.TEST.LONG_SIDE),
        ("TRAIN.SCALE_STEP", c.TRAIN.SCALE_STEP),
        ("LOSS.BOUNDARY_WEIGHT", c.LOSS.BOUNDARY_WEIGHT),
        ("LOSS.BOUNDARY_AWARE_WEIGHT", c.LOSS.BOUNDARY_AWARE_WEIGHT),
    ):
        positive(key, value, 0)
    need(0 <= c.SEED < 2**63, "SEED", c.SEED, f"0 to {2**63 - 1}")
    need(c.TRAIN.LR > 0, "TRAIN.LR", c.TRAIN.LR, "above 0")
    threshold = c.LOSS.OHEM_THRESHOLD
    need(0 < threshold <= 1, "LOSS.OHEM_THRESHOLD", threshold, "above 0, at most 1")
    numbers("TRAIN.IMAGE_SIZE", c.TRAIN.IMAGE_SIZE, 2)
    numbers("DATASET.SIZE", c.DATASET.SIZE, 2)
    numbers("TRAIN.SCALE_RANGE", c.TRAIN.SCALE_RANGE, 2, (int, float))
    low, high = c.TRAIN.SCALE_RANGE
    need(low <= high, "TRAIN.SCALE_RANGE", c.TRAIN.SCALE_RANGE, "smaller factor first")
    weights = c.LOSS.AUX_WEIGHTS
    ok = all(type(w) in (int, float) and w >= 0 for w in weights)
    need(ok, "LOSS.AUX_WEIGHTS", weights, "numbers of 0 or more, one per auxiliary head")
    numbers("TEST.SCALES", c.TEST.SCALES, None, (int, float))
    need(bool(c.TEST.SCALES), "TEST.SCALES", c.TEST.SCALES, "at least one factor, such as (1.0,)")
    for key, value in (("TEST.SLIDE", c.TEST.SLIDE), ("TEST.STRIDE", c.TEST.STRIDE)):
        numbers(key, value, 2 if value else 0)
    gpus = c.GPUS
    ok = all(type(g) is int and g >= 0 for g in gpus) and len(set(gpus)) == len(gpus)
    need(
        ok,
        "GPUS",
        gpus,
        'different device numbers, such as 0 or "(0,1)"; () is the first GPU, or the CPU where '
        "there is none (CUDA_VISIBLE_DEVICES= hides GPUs)",
    )
