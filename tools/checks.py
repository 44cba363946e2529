"""What a command refuses, or says about its settings, before it writes a file or trains a step."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from builders import build_network, count
from yacs.config import CfgNode

from configs.loader import changed_keys
from datasets import DatasetMeta, EvalTransform, SceneDataset
from utils.checkpoint import as_tuples
from utils.errors import InputError
from utils.run_state import Plan

FEW_STEPS = 20  # of an epoch
FEW_IN_ALL = 200  # of a run

# What an image may be enlarged to for scoring: OpenCV counts in 16 bits in places, and 2^28 pixels
# are 3 GB of input alone.
LONGEST_SIDE = 2**15
MOST_PIXELS = 2**28


def check_folder(folder: Path, key: str) -> None:
    """Raise ValueError if files could not be put into `folder`, which need not be there yet.

    `key` is the setting that leads to it. Nothing is made.
    """
    place = folder.absolute()
    while not os.path.lexists(place):
        place = place.parent
    if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
        what = "is not a folder" if not place.is_dir() else "is not a folder that can be written"
        raise InputError(f"{key} leads to {folder}, but {place} {what}")


def check_network(config: CfgNode, meta: DatasetMeta, processes: int) -> None:
    """Raise ValueError if the network of `config` cannot be trained on its batches.

    That is found by a forward pass that computes nothing: options that no network can be built
    from or run with, crops that it cannot take, and norm layers that would see a single value per
    channel. Only one image per process can do the last: networks reduce their maps to one pixel,
    but not the batch.
    """
    t = config.TRAIN
    images = min(2, t.BATCH_SIZE_PER_GPU * (processes if t.SYNC_BN else 1))
    width, height = t.IMAGE_SIZE
    try:
        with torch.device("meta"):
            network = build_network(config, meta).train()
            network.forward_train(torch.empty(images, 3, height, width))
    except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError) as error:
        reason = str(error).partition("\n")[0].partition(", but expected")[0]
    else:
        return
    if images == 1 and "more than 1 value per channel" in reason:
        shared = " or TRAIN.SYNC_BN True" if processes > 1 else ""
        raise InputError(
            f"TRAIN.BATCH_SIZE_PER_GPU 1 is too small for {network.architecture}: it normalises a "
            "map of one pixel by the other images of the batch; set TRAIN.BATCH_SIZE_PER_GPU 2 or "
            f"more{shared} (TRAIN.ACCUMULATE does not help)"
        )
    raise InputError(
        f"MODEL.NAME {config.MODEL.NAME} with MODEL.OPTIONS {dict(config.MODEL.OPTIONS)} cannot be "
        f"trained on crops of TRAIN.IMAGE_SIZE {t.IMAGE_SIZE}: {reason}"
    )


def unused_reset(config: CfgNode) -> list[str]:
    """A sentence where MODEL.RESET is set, but no weights that it could leave out."""
    reset = config.MODEL.RESET
    if not reset or config.MODEL.PRETRAINED:
        return []
    return [
        f"MODEL.RESET {reset} does nothing without MODEL.PRETRAINED, the weights that need not "
        "fill these parts; all weights start at random"
    ]


def idle_settings(config: CfgNode) -> list[str]:
    """A sentence about every setting that others keep from doing anything."""
    t, loss, found = config.TRAIN, config.LOSS, []
    if t.CUTMIX and t.BATCH_SIZE_PER_GPU == 1:
        found.append(
            f"TRAIN.CUTMIX {t.CUTMIX:g} does nothing with TRAIN.BATCH_SIZE_PER_GPU 1: crops are "
            "pasted into one another within a batch of one process (TRAIN.ACCUMULATE does not help)"
        )
    if t.CUTMIX and t.CALM >= 1:
        found.append(f"TRAIN.CUTMIX {t.CUTMIX:g} does nothing with TRAIN.CALM {t.CALM:g}")
    if loss.AUX_OVER_ALL_PIXELS and loss.AUX_NAME != "ce":
        found.append(
            f"LOSS.AUX_OVER_ALL_PIXELS True does nothing with LOSS.AUX_NAME {loss.AUX_NAME}, which "
            "averages over the pixels that it keeps"
        )
    return found


def check_test_batch(config: CfgNode, dataset: SceneDataset, samples: int = 8) -> None:
    """Raise ValueError if images to score become too large, or differ in size within a batch."""
    batch, sizes = config.TEST.BATCH_SIZE_PER_GPU, {}
    samples = 2 if batch == 1 else samples
    for index in np.unique(np.linspace(0, len(dataset) - 1, samples, dtype=int)).tolist():
        sizes.setdefault(dataset.load(index).image.shape[:2], dataset.name(index))
    for size, name in sizes.items():
        check_scored_size(config, size, name)
    if batch > 1 and len(sizes) > 1:
        found = [f"{name} is {height}x{width}" for (height, width), name in sizes.items()]
        raise InputError(
            f"TEST.BATCH_SIZE_PER_GPU is {batch}, but the images of "
            f"{config.DATASET.TEST_SET} differ in size ({found[0]}, {found[1]}); set "
            "TEST.BATCH_SIZE_PER_GPU 1"
        )


def check_scored_size(config: CfgNode, size: tuple[int, int], name: str) -> None:
    """Raise ValueError if TEST enlarges image `name` of `size` (height, width) beyond reason.

    That is, beyond LONGEST_SIDE or MOST_PIXELS. An image as it is may be of any size.
    """
    test = config.TEST
    sides = {"short_side": test.SHORT_SIDE, "long_side": test.LONG_SIDE}
    stretched = EvalTransform(**sides, divisor=test.SIZE_DIVISOR).target_size(size)
    stages = {
        f"TEST.SHORT_SIDE {test.SHORT_SIDE}, TEST.LONG_SIDE {test.LONG_SIDE}": EvalTransform(
            **sides
        ).target_size(size),
        f"TEST.SIZE_DIVISOR {test.SIZE_DIVISOR}": stretched,
        f"TEST.SCALES {test.SCALES}": [side * max(1, *test.SCALES) for side in stretched],
    }
    for setting, (height, width) in stages.items():
        large = max(height, width) > LONGEST_SIDE or height * width > MOST_PIXELS
        if large and height * width > size[0] * size[1]:
            raise InputError(
                f"{setting} would bring {name} from {size[0]}x{size[1]} to {height:.6g}x{width:.6g}"
                f" (height x width); accepted: sides of up to {LONGEST_SIDE} and {MOST_PIXELS} "
                "pixels in all"
            )


def refuse_changes(config: CfgNode, earlier: str, options: dict[str, Any], path: Path) -> None:
    """Raise ValueError if a setting differs that a run cannot change on its way.

    Args:
        earlier: the run's configuration.
        options: what its network was built with; beside the configuration's MODEL.OPTIONS those
            whose defaults have changed since.
    """
    built, wanted = as_tuples(options), as_tuples(dict(config.MODEL.OPTIONS))
    pairs = {key: (built.get(key), wanted.get(key)) for key in (*built, *wanted)}
    changed = {f"MODEL.OPTIONS.{key}": pair for key, pair in pairs.items() if pair[0] != pair[1]}
    settings = changed_keys(config, earlier)
    changed |= {k: settings[k] for k in ("TRAIN.OPTIMIZER", "TRAIN.WD_ON_NORM") if k in settings}
    for key, (then, now) in changed.items():
        raise InputError(
            f"{path} is a run with {key} {then}, which cannot become {now} on the way; set it "
            "back, or start anew with TRAIN.RESUME False"
        )


def advice(config: CfgNode, plan: Plan, last_lr: float) -> list[str]:
    """A sentence about every setting that lets a run of a planned length learn little.

    `last_lr` is the learning rate of its last step.
    """
    t, found = config.TRAIN, []
    steps, total = plan.steps_per_epoch, plan.steps
    cures = {
        f"raise TRAIN.{'STEPS' if plan.limit else 'END_EPOCH'}": total < FEW_IN_ALL,
        "start from trained weights (MODEL.PRETRAINED)": not (config.MODEL.PRETRAINED or t.RESUME),
        "score fewer epochs (TRAIN.EVAL_EVERY)": t.EVAL_EVERY == 1,
    }
    if steps < FEW_STEPS and any(cures.values()):
        found.append(
            f"note: an epoch has only {count(steps, 'step')} and the run {total}"
            f"{', too few to learn much' if total < FEW_IN_ALL else ''}: "
            f"{', '.join(cure for cure, lacks in cures.items() if lacks)}; see "
            "docs/your_own_data.md, Few photographs"
        )
    if t.WARMUP_STEPS >= total:
        found.append(
            f"note: TRAIN.WARMUP_STEPS is {t.WARMUP_STEPS} in a run of {count(total, 'step')}; the "
            f"learning rate ends at {last_lr:.2g} and never reaches TRAIN.LR {t.LR:g}. Set "
            f"TRAIN.WARMUP_STEPS {total // 10}, or train longer"
        )
    return found
