"""What a command refuses, or says about its settings, before it writes a file or trains a step."""

import os
from pathlib import Path

import numpy as np
import torch
from builders import build_network, count
from yacs.config import CfgNode

from configs.loader import changed_keys
from datasets import DatasetMeta, SceneDataset

FEW_STEPS = 20  # of an epoch
FEW_IN_ALL = 200  # of a run


def check_folder(folder: Path, key: str) -> None:
    """Raise ValueError if files could not be put into `folder`, which need not be there yet.

    `key` is the setting that leads to it. Nothing is made.
    """
    place = folder.absolute()
    while not os.path.lexists(place):
        place = place.parent
    if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
        what = "is not a folder" if not place.is_dir() else "is not a folder that can be written"
        raise ValueError(f"{key} leads to {folder}, but {place} {what}")


def check_batch_norm(config: CfgNode, meta: DatasetMeta, processes: int) -> None:
    """Raise ValueError if a norm layer would see a single value per channel in training.

    That is found by a forward pass that computes nothing. Only one image per process can do it:
    networks reduce their maps to one pixel, but not the batch.
    """
    t = config.TRAIN
    images = t.BATCH_SIZE_PER_GPU * (processes if t.SYNC_BN else 1)
    if images > 1:
        return
    width, height = t.IMAGE_SIZE
    with torch.device("meta"):
        network = build_network(config, meta).train()
        picture = torch.empty(images, 3, height, width)
    try:
        network.forward_train(picture)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        shared = " or TRAIN.SYNC_BN True" if processes > 1 else ""
        raise ValueError(
            f"TRAIN.BATCH_SIZE_PER_GPU 1 is too small for {network.architecture}: it normalises a "
            "map of one pixel by the other images of the batch; set TRAIN.BATCH_SIZE_PER_GPU 2 or "
            f"more{shared} (TRAIN.ACCUMULATE does not help)"
        ) from None


def check_test_batch(config: CfgNode, dataset: SceneDataset, samples: int = 8) -> None:
    """Raise ValueError if some of the images to score differ in size but are to share a batch."""
    if config.TEST.BATCH_SIZE_PER_GPU == 1:
        return
    sizes = {}
    for index in np.unique(np.linspace(0, len(dataset) - 1, samples, dtype=int)).tolist():
        sizes.setdefault(dataset.load(index).image.shape[:2], dataset.name(index))
    if len(sizes) > 1:
        found = [f"{name} is {height}x{width}" for (height, width), name in sizes.items()]
        raise ValueError(
            f"TEST.BATCH_SIZE_PER_GPU is {config.TEST.BATCH_SIZE_PER_GPU}, but the images of "
            f"{config.DATASET.TEST_SET} differ in size ({found[0]}, {found[1]}); set "
            "TEST.BATCH_SIZE_PER_GPU 1"
        )


def refuse_changes(config: CfgNode, earlier: str, path: Path) -> None:
    """Raise ValueError if a setting differs that a run cannot change on its way."""
    changed = changed_keys(config, earlier)
    for key, (then, now) in changed.items():
        if key.startswith("MODEL.OPTIONS") or key in ("TRAIN.OPTIMIZER", "TRAIN.WD_ON_NORM"):
            raise ValueError(
                f"{path} is a run with {key} {then}, which cannot become {now} on the way; set it "
                "back, or start anew with TRAIN.RESUME False"
            )


def advice(config: CfgNode, steps: int, last_lr: float) -> list[str]:
    """A sentence about every setting that lets a run of `steps` per epoch learn little.

    `last_lr` is the learning rate of its last step.
    """
    t, found = config.TRAIN, []
    total = steps * t.END_EPOCH
    cures = {
        "raise TRAIN.END_EPOCH": total < FEW_IN_ALL,
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
