"""How long a run is, and how its learning rate goes."""

import functools
from collections.abc import Callable

from builders import count
from yacs.config import CfgNode

from utils.errors import InputError
from utils.optim import learning_rate
from utils.run_state import Plan

MOST_EPOCHS = 2**31 - 1  # of a timed run


def build_plan(config: CfgNode, images: int, processes: int) -> Plan:
    """How long a run is. Raises ValueError where the images do not fill one step."""
    t = config.TRAIN
    batch = t.BATCH_SIZE_PER_GPU * t.ACCUMULATE * processes
    if images < batch:
        raise InputError(
            f"{count(images, 'training image')} do not fill one batch of {batch} "
            f"({batch_parts(config, processes)}); lower TRAIN.BATCH_SIZE_PER_GPU"
        )
    steps, epochs = images // batch, t.END_EPOCH
    if t.STEPS:
        epochs = -(-t.STEPS // steps)
    if t.MINUTES:
        epochs = MOST_EPOCHS
    return Plan(
        epochs, steps, t.ACCUMULATE, batch, t.SAVE_EVERY, limit=t.STEPS, seconds=60 * t.MINUTES
    )


def build_schedule(config: CfgNode, plan: Plan) -> Callable[[float], float]:
    """Share of the run that lies behind -> learning rate."""
    t = config.TRAIN
    return functools.partial(
        learning_rate,
        base_lr=t.LR,
        end_lr=t.END_LR,
        kind=t.SCHEDULE,
        power=t.POWER,
        warmup=t.WARMUP_STEPS / plan.steps if t.WARMUP_STEPS else t.WARMUP,
        warmup_lr=t.WARMUP_LR,
    )


def length(plan: Plan) -> str:
    """How long a run is."""
    epochs = f"{count(plan.epochs, 'epoch')} of {count(plan.steps_per_epoch, 'step')}"
    if plan.seconds:
        minutes = f"{plan.seconds / 60:g} minutes of training"
        return f"{minutes}, epochs of {count(plan.steps_per_epoch, 'step')}"
    return f"{count(plan.limit, 'step')} in {epochs}" if plan.limit else epochs


def batch_parts(config: CfgNode, processes: int) -> str:
    """How the images of a step come together."""
    t = config.TRAIN
    return (
        f"TRAIN.BATCH_SIZE_PER_GPU {t.BATCH_SIZE_PER_GPU} x TRAIN.ACCUMULATE {t.ACCUMULATE} x "
        f"{count(processes, 'process')}"
    )
