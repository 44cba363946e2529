"""One epoch of training, one evaluation."""

import datetime
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .distributed import World, first_says, sum_over_processes
from .errors import InputError
from .inference import Network, predict_logits
from .logger import RunLog
from .metrics import ConfusionMatrix
from .resize import resize
from .run_state import Run
from .step import Batch, Step, StepReport


def train_one_epoch(
    run: Run,
    step: Step,
    batches: Iterable[Batch],
    log: RunLog,
    save: Callable[[], None] = lambda: None,
) -> bool:
    """Train from where the run stands to the end of its epoch.

    Args:
        batches: those that are left of the epoch; `run.plan.accumulate` of them make one step.
        save: called every `run.plan.save_every` steps, when all that is computed is counted.

    Returns:
        True at the end of the epoch or of the whole run, False if a signal asked to stop before.

    Raises:
        DivergedError: loss or gradient was not finite many times in a row.
    """
    run.model.train()
    run.norms.remember()
    progress, began = run.progress, time.perf_counter() - run.progress.seconds
    before = progress.trained - progress.seconds
    with progress_bar(run, step.world) as bar:
        left = () if run.plan.ended(progress) else batches
        for group in groups_of(run.plan.accumulate, left):
            step(run, group)
            bar.update()
            saves = run.plan.save_every and progress.step % run.plan.save_every == 0
            looks = step.is_due() or saves or step.stopping
            take_time(run, step.world, time.perf_counter() - began, before, looks)
            if looks:
                look(run, step, log, bar, wait=saves)
            if step.stopping:
                break
            if saves:
                save()
            if run.plan.ended(progress):
                break
        look(run, step, log, bar, wait=True)
    # A GPU was busy with the last steps until here.
    take_time(run, step.world, time.perf_counter() - began, before, True)
    return not step.stopping


def take_time(run: Run, world: World, seconds: float, before: float, shared: bool) -> None:
    """Note how long the epoch and all before it (`before`) have taken.

    Processes of a timed run agree on it, or they would disagree on the learning rate and the end;
    they do so only where all of them call with `shared`.
    """
    progress, trained = run.progress, before + seconds
    progress.seconds = seconds
    if not run.plan.seconds or world.size == 1:
        progress.trained = trained
    elif shared:
        progress.trained = first_says(trained, world)


def look(run: Run, step: Step, log: RunLog, bar: tqdm, *, wait: bool) -> None:
    """Count, log and show what the device has computed."""
    for report in step.collect(wait=wait):
        for problem in report.problems:
            log.info(f"step {report.step}: {problem}; another image took its place")
        if report.bad:
            log.info(f"step {report.step} skipped: not finite on {', '.join(report.names)}")
        values = {f"train/{name}": value for name, value in report.values.items()}
        log.scalars(values | {"train/lr": report.lr}, report.step)
        run.progress.count(report.values, bad=report.bad, unreadable=report.unreadable)
        bar.set_postfix(loss=f"{report.values['loss']:.3f}", lr=f"{report.lr:.2g}", refresh=False)
        log.every_minute(lambda report=report: step_line(run, report))


def step_line(run: Run, report: StepReport) -> str:
    """Where a run is within an epoch, with the time that training will still take."""
    plan, progress = run.plan, run.progress
    speed = progress.step_in_epoch / max(progress.seconds, 1e-9)
    seconds = (plan.steps - plan.position(progress)) / speed
    if plan.seconds:
        seconds = max(0.0, plan.seconds - progress.trained)
    return (
        f"{plan.describe(progress.epoch + 1)} step {progress.step_in_epoch}/{plan.steps_per_epoch} "
        f"loss {report.values['loss']:.4f} lr {report.lr:.2g} {speed * plan.batch:.1f} images/s, "
        f"{datetime.timedelta(seconds=round(seconds))} left"
    )


def groups_of(size: int, batches: Iterable[Batch]) -> Iterator[list[Batch]]:
    """`size` batches at a time; fewer than that at the end are left."""
    batches = iter(batches)
    while len(group := list(itertools.islice(batches, size))) == size:
        yield group


def progress_bar(run: Run, world: World) -> tqdm:
    """Steps of the epoch, with the time left: in one process, on a terminal."""
    return tqdm(
        desc=f"epoch {run.progress.epoch + 1}",
        total=run.plan.steps_per_epoch,
        initial=run.progress.step_in_epoch,
        disable=None if world.is_main else True,
        leave=False,
    )


def _at_size(logits: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Logits at the size (height, width) that the images had before they were scaled.

    Raises ValueError where images of several sizes share a batch.
    """
    if not sizes:
        return logits
    size = tuple(sizes[0])
    if any(tuple(other) != size for other in sizes):
        raise InputError(
            "images of several sizes share a batch of the evaluation; set TEST.BATCH_SIZE_PER_GPU 1"
        )
    return resize(logits, size)


@torch.inference_mode()
def evaluate(
    networks: Mapping[str, Network],
    loader: Iterable[Batch],
    make_confusion: Callable[[], ConfusionMatrix],
    *,
    world: World,
    stop: Callable[[], bool] = lambda: False,
    on_batch: Callable[[Batch, Tensor], None] | None = None,
    **views: Any,
) -> dict[str, ConfusionMatrix] | None:
    """The confusion matrix of every one of `networks` over `loader`, over all processes.

    Args:
        networks: name -> network, ready for images in float32 (`prepare_for_inference`).
        on_batch: called with (batch, prediction N, H, W) of the first network, for pictures and
            submission files.
        views: arguments of `predict_logits`: flip, scales, sliding window, padding.

    Returns:
        None if a signal asked some process to stop before the end.
    """
    counts = {name: make_confusion() for name in networks}
    bar = tqdm(loader, desc="evaluate", disable=None if world.is_main else True, leave=False)
    for batch in bar:
        if stop():
            break
        image = world.send(batch["image"])
        label = world.send(batch["label"]) if "label" in batch else None
        for index, (name, network) in enumerate(networks.items()):
            logits = predict_logits(network, image, **views)
            prediction = _at_size(logits, batch.get("size", ())).argmax(1)
            if label is not None:
                counts[name].update(prediction, label)
            if on_batch is not None and index == 0:
                on_batch(batch, prediction)
    asked = torch.tensor(float(stop()), device=world.device)
    if sum_over_processes(asked, world).item() > 0:
        return None
    for confusion in counts.values():
        confusion.reduce()
    return counts
