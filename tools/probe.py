"""A few steps before a long run: memory, speed, hours, and the largest batch that fits."""

import datetime
import itertools
import os
import time
from pathlib import Path
from typing import Any

import torch
from builders import count
from training import Job, build_loaders, build_run, build_step

from datasets.machine import free_memory
from utils.benchmark import peak_memory
from utils.distributed import init_world, is_launched, world_size
from utils.engine import groups_of
from utils.errors import InputError
from utils.run_state import Run
from utils.step import Step

STEPS, WARM_UP = 20, 5
USABLE = 0.92  # share of a device's memory that a run may plan with


def probe(job: Job) -> int:
    """Train STEPS steps in this process, write nothing, and print what a whole run will take.

    Raises ValueError inside one of several processes.
    """
    if is_launched():
        raise InputError("--probe runs in one process; start it without torchrun or srun")
    config, plan = job.config, job.plan
    world, processes = init_world(config.GPUS[:1]), world_size(config.GPUS)
    device = world.device
    loaders = build_loaders(config, job.train_set, job.test_set, world)
    run = build_run(config, job.model, job.meta, plan, world)
    step = build_step(config, run, job.criterion, world, lambda: False, print)
    told: list[Any] = []
    peak = peak_memory(lambda: told.extend(_train(run, step, loaders.train)), device)["bytes"]
    seconds, held = told
    local = plan.batch // processes
    speed = local / seconds * processes
    print(
        f"{count(processes, 'process')} on {device}: {speed:.1f} images/s, {1000 * seconds:.0f} ms "
        f"per step of {count(plan.batch, 'image')}"
    )
    if plan.seconds:
        steps = round(plan.seconds * speed / plan.batch)
        print(f"{plan.seconds / 60:g} minutes are about {count(steps, 'step')}")
    else:
        hours = datetime.timedelta(seconds=round(plan.steps * plan.batch / speed))
        print(f"{count(plan.steps, 'step')} take {hours} (h:min:s) beside evaluations")
    if peak is None or held is None or peak <= held:
        print("how much memory a step takes cannot be told here")
        return 0
    each, room = (peak - held) / config.TRAIN.BATCH_SIZE_PER_GPU, _room(device, held)
    largest = max(1, int((USABLE * room - held) / each))
    print(
        f"{peak / 1e9:.2f} GB of {room / 1e9:.2f} GB taken at most, about {each / 1e9:.3f} GB per "
        f"image; a batch of about {largest} would fit"
    )
    fitting, accumulate = keeping(local, largest)
    print(
        f"TRAIN.BATCH_SIZE_PER_GPU {fitting} TRAIN.ACCUMULATE {accumulate} keeps the batch of "
        f"{plan.batch} with the fewest passes"
    )
    return 0


def keeping(images: int, largest: int) -> tuple[int, int]:
    """Batch, at most `largest`, and accumulation that together make `images`, with few passes."""
    accumulate = next(a for a in range(1, images + 1) if images % a == 0 and images // a <= largest)
    return images // accumulate, accumulate


def _train(run: Run, step: Step, batches: object) -> tuple[float, int | None]:
    """Seconds per step once all is warm; bytes that stay taken between steps."""
    run.model.train()
    groups = groups_of(run.plan.accumulate, batches)
    steps = min(STEPS, run.plan.steps_per_epoch)
    began, timed = time.perf_counter(), 0
    for index, group in enumerate(itertools.islice(groups, steps)):
        if index == min(WARM_UP, steps - 1):
            step.collect(wait=True)
            began, timed = time.perf_counter(), steps - index
        step(run, group)
        if index == 0:
            step.collect(wait=True)
            held = _held(step.world.device)
    step.collect(wait=True)
    if step.world.device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / timed, held


def _held(device: torch.device) -> int | None:
    """Bytes taken now; of this process where `device` is the CPU, None where that is not told."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def _room(device: torch.device, held: int) -> int:
    """Bytes that there would be for a run alone."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return free_memory() + held
