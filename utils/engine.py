"""One epoch of training, one evaluation."""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .distributed import World, gather_objects, sum_over_processes
from .inference import predict_logits
from .logger import RunLog
from .optim import set_learning_rate
from .resize import resize
from .run_state import Precision, Progress, StopRequest

MAX_BAD_STEPS = 20  # steps in a row without a finite loss and gradient before a run gives up


class TrainForm(nn.Module):
    """`forward_train` as `forward`, the method that DistributedDataParallel wraps."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Any:
        return self.model.forward_train(image)


def train_one_epoch(
    train_form: nn.Module,
    criterion: nn.Module,
    loader: Iterable[dict[str, Any]],
    optimizer: torch.optim.Optimizer,
    *,
    world: World,
    precision: Precision,
    scaler: torch.amp.GradScaler,
    progress: Progress,
    steps_per_epoch: int,
    lr_of_step: Callable[[int], float],
    log: RunLog,
    stop: StopRequest,
    accumulate: int = 1,
    clip_grad: float = 0.0,
) -> bool:
    """Train from `progress.step_in_epoch` to the end of the epoch.

    Args:
        loader: the batches that are left of the epoch; `accumulate` of them make one step.
        lr_of_step: optimiser steps taken in the whole run -> learning rate.

    Returns:
        True at the end of the epoch, False if a signal asked to stop before.

    Raises:
        FloatingPointError: loss or gradient was not finite MAX_BAD_STEPS times in a row.
    """
    train_form.train()
    parameters = [p for p in train_form.parameters() if p.requires_grad]
    statistics = NormStatistics(train_form)
    batches, start = iter(loader), time.perf_counter() - progress.seconds
    title, done = f"epoch {progress.epoch + 1}", progress.step_in_epoch
    with progress_bar(world, desc=title, total=steps_per_epoch, initial=done) as bar:
        while progress.step_in_epoch < steps_per_epoch:
            step = progress.epoch * steps_per_epoch + progress.step_in_epoch
            lr = lr_of_step(step)
            set_learning_rate(optimizer, lr)
            optimizer.zero_grad(set_to_none=True)
            statistics.remember()
            losses, names, unreadable = _backward(
                train_form, criterion, batches, accumulate, world, precision, scaler
            )
            if scaler.is_enabled():
                scaler.unscale_(optimizer)  # a norm of inf is then the scaler's own business
            norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            if not scaler.is_enabled():
                losses["grad_norm"] = norm
            values, missed, stopping = _agree(losses, len(unreadable), stop, world)
            if missed:
                progress.unreadable += missed
                for problem in itertools.chain(*gather_objects(unreadable, world)):
                    log.info(f"step {step + 1}: {problem}; another image took its place")
            progress.step_in_epoch += 1
            progress.seconds = time.perf_counter() - start
            if all(map(math.isfinite, values.values())):
                if clip_grad:
                    nn.utils.clip_grads_with_norm_(parameters, clip_grad, norm)
                scaler.step(optimizer)
                progress.bad_in_a_row = 0
                for name, value in values.items():
                    progress.sums[name] = progress.sums.get(name, 0.0) + value
            else:
                statistics.restore()
                progress.bad_in_a_row += 1
                progress.skipped += 1
                log.info(f"step {step + 1} skipped: not finite on {', '.join(names)}")
                if progress.bad_in_a_row >= MAX_BAD_STEPS:
                    raise FloatingPointError(
                        f"loss or gradient was not finite {progress.bad_in_a_row} steps in a row; "
                        f"try a lower TRAIN.LR (now {lr:.3g}) or TRAIN.PRECISION fp32"
                    )
            scaler.update()
            log.scalars({f"train/{n}": v for n, v in values.items()} | {"train/lr": lr}, step + 1)
            bar.set_postfix(loss=f"{values['loss']:.3f}", lr=f"{lr:.2g}", refresh=False)
            bar.update()
            if stopping:
                return False
    return True


class NormStatistics:
    """Running statistics of all norms, so that a step that is left out leaves no trace in them."""

    def __init__(self, module: nn.Module) -> None:
        self.live = list(module.buffers())
        self.kept = [b.clone() for b in self.live]

    def remember(self) -> None:
        """Keep the present values."""
        if self.live:
            torch._foreach_copy_(self.kept, self.live)

    def restore(self) -> None:
        """Go back to the values kept."""
        if self.live:
            torch._foreach_copy_(self.live, self.kept)


def progress_bar(world: World, **options: Any) -> tqdm:
    """A bar with the time left: in one process, on a terminal."""
    return tqdm(disable=None if world.is_main else True, leave=False, **options)


def _backward(
    train_form: nn.Module,
    criterion: nn.Module,
    batches: Iterator[dict[str, Any]],
    accumulate: int,
    world: World,
    precision: Precision,
    scaler: torch.amp.GradScaler,
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Gradients of `accumulate` batches.

    Returns:
        their mean loss parts, the names of their images, and one sentence per image that could
        not be read.
    """
    losses: dict[str, Tensor] = {}
    names: list[str] = []
    unreadable: list[str] = []
    for part in range(accumulate):
        batch = next(batches)
        names += batch["name"]
        unreadable += itertools.chain(*batch.get("skipped", ()))
        image, label, boundary = (
            None if value is None else world.send(value)
            for value in (batch["image"], batch["label"], batch.get("boundary"))
        )
        wait = world.size > 1 and part < accumulate - 1
        with train_form.no_sync() if wait else nullcontext():
            with precision.autocast():
                outputs = train_form(image)
            loss, parts = criterion(outputs, label, boundary)
            scaler.scale(loss / accumulate).backward()
        for name, value in {"loss": loss, **parts}.items():
            losses[name] = losses.get(name, 0) + value.detach().float() / accumulate
    return losses, names, unreadable


def _agree(
    losses: dict[str, Tensor], unreadable: int, stop: StopRequest, world: World
) -> tuple[dict[str, float], int, bool]:
    """Losses averaged over processes, images unreadable in all of them, and whether to stop.

    Every process decides by the same numbers, so that none waits for another for ever.
    """
    told = torch.tensor([float(unreadable), float(stop.signal is not None)], device=world.device)
    packed = torch.cat([torch.stack([*losses.values()]), told])
    *values, missed, stopping = sum_over_processes(packed, world).tolist()
    means = [value / world.size for value in values]
    return dict(zip(losses, means, strict=True)), round(missed), stopping > 0


def _at_size(logits: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Logits at the size (height, width) that the images had before they were scaled.

    Raises ValueError where images of several sizes share a batch.
    """
    if not sizes:
        return logits
    size = tuple(sizes[0])
    if any(tuple(other) != size for other in sizes):
        raise ValueError(
            "images of several sizes share a batch of the evaluation; set TEST.BATCH_SIZE_PER_GPU 1"
        )
    return resize(logits, size)


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: Iterable[dict[str, Any]],
    confusion: Any,
    *,
    world: World,
    stop: StopRequest | None = None,
    on_batch: Callable[[dict[str, Any], Tensor], None] | None = None,
    **views: Any,
) -> bool:
    """Count the predictions of `model` over `loader` into `confusion`, over all processes.

    Args:
        on_batch: called with (batch, prediction N, H, W), for pictures and submission files.
        views: arguments of `predict_logits`: flip, scales, sliding window, padding.

    Returns:
        False if a signal asked to stop before the end; `confusion` is then incomplete.
    """
    model.eval()
    for batch in progress_bar(world, desc="evaluate", iterable=loader):
        if stop is not None and stop.signal is not None:
            break
        logits = predict_logits(model, world.send(batch["image"]), **views)
        prediction = _at_size(logits, batch.get("size", ())).argmax(1)
        if "label" in batch:
            confusion.update(prediction, world.send(batch["label"]))
        if on_batch is not None:
            on_batch(batch, prediction)
    if stop is not None and stop.anywhere(world):
        return False
    confusion.reduce()
    return True
