"""A few steps before a long run: memory, speed, hours, and the largest batch that fits."""

import contextlib
import datetime
import itertools
import sys
import time
from pathlib import Path

import torch
from builders import count
from training import Job, build_loaders, build_run, build_step

from datasets.machine import free_memory
from utils.distributed import World, choose_device, has_mps, is_launched, world_size
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
    index = config.GPUS[0] if config.GPUS else 0
    device = choose_device(index, cuda=torch.cuda.is_available(), mps=has_mps())
    world, processes = World(0, 1, device), world_size(config.GPUS)
    loaders = build_loaders(config, job.train_set, job.test_set, world)
    run = build_run(config, job.model, job.meta, plan, world)
    step = build_step(config, run, job.criterion, world, lambda: False, print)
    seconds, fixed = _train(run, step, loaders.train)
    local = plan.batch // processes
    speed = local / seconds * processes
    print(
        f"{count(processes, 'process')} on {device}: {speed:.1f} images/s, {1000 * seconds:.0f} ms "
        f"per step of {count(plan.batch, 'image')}"
    )
    hours = datetime.timedelta(seconds=round(plan.steps * plan.batch / speed))
    print(f"{count(plan.steps, 'step')} take {hours} (h:min:s) beside evaluations")
    peak, room = _memory(device, peak=True), _room(device)
    if peak is None or fixed is None or peak <= fixed:
        print("how much memory a step takes cannot be told here")
        return 0
    each = (peak - fixed) / config.TRAIN.BATCH_SIZE_PER_GPU
    largest = max(1, int((USABLE * room - fixed) / each))
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
            fixed = _memory(step.world.device)
    step.collect(wait=True)
    if step.world.device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / timed, fixed


def _memory(device: torch.device, *, peak: bool = False) -> int | None:
    """Bytes taken, now or at most so far; of this process where `device` is the CPU."""
    if device.type == "cuda":
        read = torch.cuda.max_memory_allocated if peak else torch.cuda.memory_allocated
        return read(device)
    with contextlib.suppress(ImportError, OSError):
        import resource

        if not peak:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            return pages * resource.getpagesize()
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return None


def _room(device: torch.device) -> int:
    """Bytes that there would be for a run alone."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return free_memory() + (_memory(device) or 0)
