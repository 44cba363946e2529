"""One optimiser step: a pure affair of the device, which the host looks into from time to time."""

import itertools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .capture import Capture
from .distributed import World, gather_objects, sum_over_processes
from .optim import set_learning_rate, steps_by_itself
from .run_state import Precision, Run

Batch = dict[str, Any]
Inputs = tuple[Tensor | None, ...]  # image N, 3, H, W; label N, H, W; boundary N, H, W or None


class TrainForm(nn.Module):
    """`forward_train` as `forward`, the method that DistributedDataParallel wraps."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Any:
        return self.model.forward_train(image)


@dataclass
class StepReport:
    """What the host learns of one step.

    Attributes:
        step: steps done with it, in the whole run.
        values: mean loss parts and gradient norm.
        lr: learning rate.
        bad: left out, since not all of `values` were finite.
        unreadable: images that others took the place of.
        names: its images, if it was left out.
        problems: a sentence per unreadable image.
    """

    step: int
    values: dict[str, float]
    lr: float
    bad: bool = False
    unreadable: int = 0
    names: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass
class _Interval:
    """Steps that the host has not looked at yet: numbers on the device, facts beside them."""

    rows: list[Tensor] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    names: list[list[str]] = field(default_factory=list)
    problems: list[list[str]] = field(default_factory=list)
    numbers: Tensor | None = None  # on their way to the host
    arrived: torch.cuda.Event | None = None


class Step:
    """A callable that takes the batches of one step and changes a Run.

    The host reads nothing back in it, but for a criterion that must (`needs_host`). Whether loss
    and gradient are finite is decided on the device: if they are not, weights, optimiser, averaged
    weights and norm statistics stay as they were. What happened is looked at every `log_every`
    steps by `collect`; on a GPU one interval late, so that nobody waits.

    Args:
        forward: the training form of the run's network, DistributedDataParallel around it or not.
        criterion: (outputs, label, boundary) -> loss and its parts.
        learning_rate: share of the run that lies behind -> learning rate.
        stop: true once this process was asked to stop.
        clip_grad: largest gradient norm; 0 does not clip.
        log_every: steps.
        capture: None computes every step eagerly.
    """

    def __init__(
        self,
        forward: nn.Module,
        criterion: nn.Module,
        *,
        world: World,
        precision: Precision,
        learning_rate: Callable[[float], float],
        stop: Callable[[], bool] = lambda: False,
        clip_grad: float = 0.0,
        log_every: int = 10,
        capture: Capture | None = None,
    ) -> None:
        self.forward, self.criterion = forward, criterion
        self.world, self.precision = world, precision
        self.learning_rate, self.stop = learning_rate, stop
        self.clip_grad, self.log_every, self.capture = clip_grad, log_every, capture
        self.columns: list[str] = []
        self.stopping = False
        self._now, self._before = _Interval(), None

    def __call__(self, run: Run, batches: Sequence[Batch]) -> None:
        """Take one step; `batches` together make its gradient."""
        rate = self.learning_rate(run.plan.share(run.progress))
        set_learning_rate(run.optimizer, rate)
        if run.averaged is not None:
            run.averaged.set_step(run.progress.step)
        inputs = [self._send(batch) for batch in batches]
        if self.capture is not None:
            row = self.capture(lambda inputs: self._compute(run, inputs), inputs)
        else:
            row = self._compute(run, inputs)
        run.progress.advance()
        now = self._now
        now.rows.append(row)
        now.steps.append(run.progress.step)
        now.rates.append(rate)
        now.names.append([name for batch in batches for name in batch["name"]])
        missed = (batch.get("skipped", ()) for batch in batches)
        now.problems.append(list(itertools.chain.from_iterable(itertools.chain(*missed))))
        if self.world.size == 1:
            self.stopping = self.stop()

    def is_due(self) -> bool:
        """Whether an interval is full; all processes say the same."""
        return len(self._now.rows) >= self.log_every

    def collect(self, *, wait: bool = False) -> list[StepReport]:
        """Look at what has been computed, and whether some process should stop.

        On a GPU these are the numbers of one interval ago; `wait` for all.
        """
        if self._now.rows:
            self._depart()
            ready, self._before = self._before, self._now
            self._now = _Interval()
        else:
            ready = None
        reports = [] if ready is None else self._arrive(ready)
        if self._before is not None and (wait or self.world.device.type != "cuda"):
            last, self._before = self._before, None
            reports += self._arrive(last)
        return reports

    def _send(self, batch: Batch) -> Inputs:
        parts = (batch["image"], batch["label"], batch.get("boundary"))
        return tuple(None if part is None else self.world.send(part) for part in parts)

    def _compute(self, run: Run, inputs: Sequence[Inputs]) -> Tensor:
        """All of a step that happens on the device: loss parts, gradient norm, 1.0 if bad."""
        losses = self._backward(run, inputs)
        norm, bad = self._update(run, losses)
        self.columns = [*losses, "grad_norm"]
        return torch.stack([*losses.values(), norm, bad.float()])

    def _backward(self, run: Run, inputs: Sequence[Inputs]) -> dict[str, Tensor]:
        """Gradients of all `inputs`, whose mean loss parts are returned."""
        run.optimizer.zero_grad(set_to_none=True)
        losses: dict[str, Tensor] = {}
        for image, label, boundary in inputs:
            wait = self.world.size > 1 and image is not inputs[-1][0]
            with self.forward.no_sync() if wait else nullcontext():
                with self.precision.autocast():
                    outputs = self.forward(image)
                loss, parts = self.criterion(outputs, label, boundary)
                run.scaler.scale(loss / len(inputs)).backward()
            for name, value in {"loss": loss, **parts}.items():
                losses[name] = losses.get(name, 0) + value.detach().float() / len(inputs)
        return losses

    def _update(self, run: Run, losses: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """What happens with the gradient: skip or clip, step, average. Its norm, and if skipped."""
        if run.scaler.is_enabled():
            run.scaler.unscale_(run.optimizer)
        gradients = [p.grad for p in run.parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        bad = ~torch.isfinite(torch.stack([*losses.values(), norm])).all()
        if self.world.size > 1:
            bad = sum_over_processes(bad.float(), self.world) > 0
        if self.clip_grad:
            nn.utils.clip_grads_with_norm_(run.parameters, self.clip_grad, norm)
        if steps_by_itself(self.world.device):
            run.optimizer.found_inf = bad.float()
            run.optimizer.step()
        elif not bad:
            run.optimizer.step()
        if run.scaler.is_enabled():
            run.scaler.update()
        run.norms.settle(bad)
        if run.averaged is not None:
            run.averaged.update((~bad).float())
        return norm, bad

    def _depart(self) -> None:
        """Sum the interval over all processes and send it to the host."""
        now, world = self._now, self.world
        rows = torch.stack(now.rows)
        told = torch.tensor(
            [[float(len(problems)), float(self.stop())] for problems in now.problems]
        )
        if world.device.type == "cuda":
            told = told.pin_memory()  # else sending it waits for all that is computed
        numbers = torch.cat([rows, world.send(told)], 1)
        if world.size > 1:
            sum_over_processes(numbers, world)
            numbers[:, : rows.shape[1]] /= world.size
        if world.device.type == "cuda":
            now.numbers = torch.empty(numbers.shape, pin_memory=True)
            now.numbers.copy_(numbers, non_blocking=True)
            now.arrived = torch.cuda.Event()
            now.arrived.record()
        else:
            now.numbers = numbers.cpu()
        now.rows = []

    def _arrive(self, interval: _Interval) -> list[StepReport]:
        if interval.arrived is not None:
            interval.arrived.synchronize()
        table = interval.numbers.tolist()
        if any(row[-1] for row in table):
            self.stopping = True
        skipped = [index for index, row in enumerate(table) if row[-3]]
        if skipped or any(row[-2] for row in table):
            # All processes come here with the same numbers; names are what each of them has.
            told = [interval.names[index] for index in skipped], interval.problems
            everybody = gather_objects(told, self.world)
        reports = []
        for index, (*values, bad, unreadable, _) in enumerate(table):
            losses = dict(zip(self.columns, values, strict=True))
            report = StepReport(interval.steps[index], losses, interval.rates[index], bool(bad))
            if bad:
                report.names = [n for names, _ in everybody for n in names[skipped.index(index)]]
            if unreadable:
                report.unreadable = round(unreadable)
                report.problems = [p for _, problems in everybody for p in problems[index]]
            reports.append(report)
        return reports
