"""What the values of a configuration must be, whatever it is used for."""

import functools
import math
import operator
import os
from typing import Any

from yacs.config import CfgNode

from .errors import InputError

INTEGERS = 2**31  # no integer setting reaches it but SEED
PATHS = (  # settings that name files or folders
    "OUTPUT_DIR",
    "DATASET.DATASET",
    "DATASET.ROOT",
    "DATASET.TRAIN_SET",
    "DATASET.TEST_SET",
    "DATASET.CACHE_DIR",
    "MODEL.PRETRAINED",
    "TEST.MODEL_FILE",
)
NOT_NEGATIVE = (
    "WORKERS",
    "TEST.OVERLAYS",
    "TRAIN.WARMUP_STEPS",
    "TRAIN.SAVE_EVERY",
    "TRAIN.WD",
    "TRAIN.CLIP_GRAD",
    "TRAIN.BASE_SIZE",
    "TRAIN.SHORT_SIDE",
    "TEST.SHORT_SIDE",
    "TEST.LONG_SIDE",
    "TRAIN.SCALE_STEP",
    "LOSS.BOUNDARY_WEIGHT",
    "LOSS.BOUNDARY_AWARE_WEIGHT",
    "LOSS.DICE",
    "LOSS.LOVASZ",
    "TRAIN.STEPS",
    "TRAIN.MINUTES",
)


def expand_paths(c: CfgNode, origins: dict[str, str]) -> None:
    """Put the home folder in place of a leading ~ in PATHS, as a shell does outside of quotes."""
    rules = _Rules(origins)
    for key in PATHS:
        *sections, name = key.split(".")
        node = c[sections[0]] if sections else c
        path = os.path.expanduser(node[name])
        rules.need(
            not path.startswith("~"), key, path, "a path whose ~ is a home folder (./~ is none)"
        )
        node[name] = path


def _value(c: CfgNode, key: str) -> Any:
    return functools.reduce(operator.getitem, key.split("."), c)


def is_option(value: Any) -> bool:
    """Whether yaml and a checkpoint hold `value` as it is, and its integers have 32 bits."""
    if isinstance(value, (tuple, list)):
        return all(map(is_option, value))
    if type(value) is int:
        return abs(value) < INTEGERS
    return value is None or type(value) in (str, float, bool)


class _Rules:
    """What values must be. `origins`: key -> the source that set it."""

    def __init__(self, origins: dict[str, str]) -> None:
        self.origins = origins

    def need(self, ok: bool, key: str, value: Any, accepted: str) -> None:
        if not ok:
            origin = f"{self.origins[key]}: " if key in self.origins else ""
            raise InputError(f"{origin}{key} is {value!r}; accepted: {accepted}")

    def choice(self, key: str, value: str, *names: str) -> None:
        self.need(value in names, key, value, ", ".join(names))

    def positive(self, key: str, value: float, least: float = 1) -> None:
        below = ", below 2**31" if type(value) is int else ""
        ok = least <= value < (INTEGERS if below else math.inf)
        self.need(ok, key, value, f"{least} or more{below}")

    def numbers(self, key: str, value: tuple, count: int | None, kinds: tuple = (int,)) -> None:
        ok = all(type(v) in kinds and 0 < v < INTEGERS for v in value)
        ok = ok and count in (None, len(value))
        size = "" if count is None else f"{count} "
        names = " or ".join(kind.__name__ for kind in kinds)
        self.need(ok, key, value, f"{size}positive numbers ({names}) below 2**31")


def check(c: CfgNode, origins: dict[str, str]) -> None:
    """Ranges and choices that hold for every configuration."""
    rules = _Rules(origins)
    need, choice, positive = rules.need, rules.choice, rules.positive
    choice("DATASET.CACHE", c.DATASET.CACHE, "none", "ram", "disk")
    choice("DATASET.ON_ERROR", c.DATASET.ON_ERROR, "stop", "skip")
    choice("TRAIN.AUGMENT_ON", c.TRAIN.AUGMENT_ON, "cpu", "device")
    need(0 < c.DATASET.CACHE_GB < 1e9, "DATASET.CACHE_GB", c.DATASET.CACHE_GB, "above 0, below 1e9")
    choice("LOSS.NAME", c.LOSS.NAME, "ce", "ohem")
    choice("LOSS.AUX_NAME", c.LOSS.AUX_NAME, "ce", "ohem")
    choice("DATASET.CLASS_WEIGHTS", c.DATASET.CLASS_WEIGHTS, "none", "published", "enet")
    choice("TRAIN.FLIP", c.TRAIN.FLIP, "none", "random", "alternate")
    choice("TRAIN.COLOR", c.TRAIN.COLOR, "none", "jitter", "photometric")
    choice("TRAIN.SCHEDULE", c.TRAIN.SCHEDULE, "poly", "cosine")
    choice("TRAIN.OPTIMIZER", c.TRAIN.OPTIMIZER, "sgd", "adamw")
    choice("TRAIN.CAPTURE", c.TRAIN.CAPTURE, "auto", "on", "off")
    for section in ("TRAIN", "TEST"):
        choice(f"{section}.PRECISION", c[section].PRECISION, "auto", "fp32", "bf16", "fp16")
    runtimes = ("torch", "eager", "graph", "compiled", "onnxruntime", "openvino")
    choice("TEST.PER", c.TEST.PER, "none", "folder", "prefix")
    choice("TEST.RUNTIME", c.TEST.RUNTIME, *runtimes)
    for name in ("BATCH_SIZE_PER_GPU", "ACCUMULATE", "END_EPOCH", "EVAL_EVERY", "LOG_EVERY"):
        positive(f"TRAIN.{name}", c.TRAIN[name])
    positive("TEST.BATCH_SIZE_PER_GPU", c.TEST.BATCH_SIZE_PER_GPU)
    positive("TEST.SIZE_DIVISOR", c.TEST.SIZE_DIVISOR)
    for key in NOT_NEGATIVE:
        positive(key, _value(c, key), 0)
    need(0 <= c.SEED < 2**63, "SEED", c.SEED, f"0 to {2**63 - 1}")
    need(c.TRAIN.LR > 0, "TRAIN.LR", c.TRAIN.LR, "above 0")
    threshold = c.LOSS.OHEM_THRESHOLD
    need(0 < threshold <= 1, "LOSS.OHEM_THRESHOLD", threshold, "above 0, at most 1")
    positive("LOSS.OHEM_MIN_KEPT", c.LOSS.OHEM_MIN_KEPT, 0)
    smoothing = c.LOSS.LABEL_SMOOTHING
    need(0 <= smoothing < 1, "LOSS.LABEL_SMOOTHING", smoothing, "0 or more, below 1")
    need(bool(c.OUTPUT_DIR), "OUTPUT_DIR", c.OUTPUT_DIR, "a folder, such as output")
    _check_schedule(c, rules)
    _check_augmentation(c, rules)
    _check_tuples(c, rules)


def _check_schedule(c: CfgNode, rules: _Rules) -> None:
    """What would only be found wanting on the way."""
    t, need = c.TRAIN, rules.need
    need(t.LR < math.inf, "TRAIN.LR", t.LR, "above 0, finite")
    need(0 <= t.END_LR <= t.LR, "TRAIN.END_LR", t.END_LR, f"0 to TRAIN.LR, {t.LR}")
    rules.positive("TRAIN.POWER", t.POWER, 0)
    rules.positive("TRAIN.WARMUP_LR", t.WARMUP_LR, 0)
    ok = t.WARMUP_LR <= t.LR or not (t.WARMUP_STEPS or t.WARMUP)
    need(ok, "TRAIN.WARMUP_LR", t.WARMUP_LR, f"0 to TRAIN.LR, {t.LR}")
    need(0 <= t.WARMUP < 1, "TRAIN.WARMUP", t.WARMUP, "0 or more, below 1")
    ok = not (t.WARMUP_STEPS and t.WARMUP)
    need(ok, "TRAIN.WARMUP", t.WARMUP, f"0 where TRAIN.WARMUP_STEPS is set, {t.WARMUP_STEPS}")
    ok = not (t.WARMUP_STEPS and t.MINUTES)
    wanted = "0 where TRAIN.MINUTES is set, whose warm-up is a share such as TRAIN.WARMUP 0.05"
    need(ok, "TRAIN.WARMUP_STEPS", t.WARMUP_STEPS, wanted)
    need(not (t.STEPS and t.MINUTES), "TRAIN.MINUTES", t.MINUTES, "0 where TRAIN.STEPS is set")
    need(0 <= t.EMA < 1, "TRAIN.EMA", t.EMA, "0 (off) or more, below 1")
    need(0 <= t.MOMENTUM < 1, "TRAIN.MOMENTUM", t.MOMENTUM, "0 or more, below 1")


def _check_augmentation(c: CfgNode, rules: _Rules) -> None:
    t, need = c.TRAIN, rules.need
    need(0 <= t.PAD_VALUE <= 255, "TRAIN.PAD_VALUE", t.PAD_VALUE, "0 to 255")
    for key in ("CALM", "CUTMIX"):
        need(0 <= t[key] <= 1, f"TRAIN.{key}", t[key], "0 to 1")
    need(0 < t.CAT_MAX_RATIO <= 1, "TRAIN.CAT_MAX_RATIO", t.CAT_MAX_RATIO, "above 0, at most 1")
    ok = not (t.SCALE_LOG and t.SCALE_STEP)
    need(ok, "TRAIN.SCALE_LOG", t.SCALE_LOG, f"False where TRAIN.SCALE_STEP is {t.SCALE_STEP}")


def _check_tuples(c: CfgNode, rules: _Rules) -> None:
    need, numbers = rules.need, rules.numbers
    numbers("TRAIN.IMAGE_SIZE", c.TRAIN.IMAGE_SIZE, 2)
    numbers("DATASET.SIZE", c.DATASET.SIZE, 2)
    numbers("TRAIN.SCALE_RANGE", c.TRAIN.SCALE_RANGE, 2, (int, float))
    low, high = c.TRAIN.SCALE_RANGE
    need(low <= high, "TRAIN.SCALE_RANGE", c.TRAIN.SCALE_RANGE, "smaller factor first")
    step = c.TRAIN.SCALE_STEP
    ok = low == high or step <= high - low + 1e-6
    need(ok, "TRAIN.SCALE_STEP", step, f"0 to the width of TRAIN.SCALE_RANGE, {(low, high)}")
    weights = c.LOSS.AUX_WEIGHTS
    ok = all(type(w) in (int, float) and 0 <= w < INTEGERS for w in weights)
    need(ok, "LOSS.AUX_WEIGHTS", weights, "numbers of 0 or more, one per auxiliary head")
    numbers("TEST.SCALES", c.TEST.SCALES, None, (int, float))
    need(bool(c.TEST.SCALES), "TEST.SCALES", c.TEST.SCALES, "at least one factor, such as (1.0,)")
    window, stride = c.TEST.SLIDE, c.TEST.STRIDE
    for key, value in (("TEST.SLIDE", window), ("TEST.STRIDE", stride)):
        numbers(key, value, 2 if value else 0)
    ok = all(step <= side for step, side in zip(stride, window or (0, 0), strict=False))
    need(ok, "TEST.STRIDE", stride, f"(), or (width, height) of at most TEST.SLIDE, {window}")
    resets = c.MODEL.RESET
    ok = all(isinstance(name, str) and name.strip(". ") for name in resets)
    need(ok, "MODEL.RESET", resets, """names of submodules, such as "('head', 'aux_head')\"""")
    gpus = c.GPUS
    ok = all(type(g) is int and 0 <= g < INTEGERS for g in gpus) and len(set(gpus)) == len(gpus)
    need(
        ok,
        "GPUS",
        gpus,
        'different device numbers, such as 0 or "(0,1)"; () is the first GPU, or the CPU where '
        "there is none (CUDA_VISIBLE_DEVICES= hides GPUs)",
    )
