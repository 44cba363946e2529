"""What a training run is: its plan, where it stands, and all that a checkpoint holds of it."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .averaging import AveragedWeights, NormStatistics
from .distributed import World, gather_objects
from .errors import DivergedError, InputError

MAX_BAD_STEPS = 20  # steps in a row without a finite loss and gradient before a run gives up


@dataclass(frozen=True)
class Plan:
    """How long a run is and what a step of it is made of.

    Attributes:
        epochs: in all; of a timed run the most there can be.
        steps_per_epoch: optimiser steps.
        accumulate: batches of one step, in every process.
        batch: images of one step, over all processes.
        save_every: steps between checkpoints; 0 makes one after every epoch instead. Both make one
            before and after an epoch is scored.
        limit: optimiser steps after which the run ends within its last epoch; 0 has none.
        seconds: of training after which it ends; 0 has none.
    """

    epochs: int
    steps_per_epoch: int
    accumulate: int
    batch: int
    save_every: int = 0
    limit: int = 0
    seconds: float = 0.0

    @property
    def steps(self) -> int:
        """Of the whole run, unless it is timed."""
        return self.limit or self.epochs * self.steps_per_epoch

    @property
    def ends_within(self) -> bool:
        """Whether the run may end within an epoch."""
        return bool(self.limit or self.seconds)

    def position(self, progress: "Progress", step_in_epoch: int | None = None) -> int:
        """Steps of this plan that lie behind, at `progress` or another step of its epoch: those
        taken where it has a limit, else what the epochs come to, whose length may have changed."""
        done = progress.step_in_epoch if step_in_epoch is None else step_in_epoch
        if self.limit:
            return progress.step - progress.step_in_epoch + done
        return progress.epoch * self.steps_per_epoch + done

    def share(self, progress: "Progress", step_in_epoch: int | None = None) -> float:
        """How much of the run lies behind, 0..1, at `progress` or another step of its epoch.

        Learning rate and augmentation follow this alone.
        """
        if self.seconds:
            return min(1.0, progress.trained / self.seconds)
        return min(1.0, self.position(progress, step_in_epoch) / self.steps)

    def ended(self, progress: "Progress") -> bool:
        """Whether no step is left; the last epoch may still have to be scored."""
        return self.share(progress) >= 1

    def describe(self, epoch: int) -> str:
        """`epoch 3/200`, or `epoch 3` where nobody knows how many there will be."""
        known = not self.seconds and epoch <= self.epochs  # more, where epochs were longer before
        return f"epoch {epoch}/{self.epochs}" if known else f"epoch {epoch}"


@dataclass
class Progress:
    """Where a run stands; part of the checkpoint, so that a resumed epoch reports as a whole one.

    Attributes:
        epoch: epochs finished, evaluation included.
        step_in_epoch: optimiser steps done of the epoch under way.
        step: optimiser steps done in all; runs on where the length of an epoch changes.
        sums: loss parts summed over the finite steps of that epoch.
        counted: steps of that epoch whose numbers have been looked at.
        skipped: those left out because loss or gradient was not finite.
        unreadable: images of that epoch that others took the place of.
        bad_in_a_row: steps left out since the last good one, over epochs.
        seconds: time the steps of that epoch took.
        trained: time all steps took, as the first process has measured it.
        best_miou: best mean IoU of the evaluations so far (0..1), -1 before the first.
        best_epoch: epochs finished at that evaluation.
        ended_at: `step` at which the last epoch was recorded, scored if wanted.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    counted: int = 0
    skipped: int = 0
    unreadable: int = 0
    bad_in_a_row: int = 0
    seconds: float = 0.0
    trained: float = 0.0
    best_miou: float = -1.0
    best_epoch: int = 0
    ended_at: int = -1

    def advance(self) -> None:
        """One more step is done; its numbers come later."""
        self.step_in_epoch += 1
        self.step += 1

    def count(self, losses: dict[str, float], *, bad: bool, unreadable: int = 0) -> None:
        """Add the numbers of one step.

        Raises:
            DivergedError: this is the MAX_BAD_STEPS-th bad one in a row.
        """
        self.counted += 1
        self.unreadable += unreadable
        if not bad:
            self.bad_in_a_row = 0
            for name, value in losses.items():
                self.sums[name] = self.sums.get(name, 0.0) + value
            return
        self.skipped += 1
        self.bad_in_a_row += 1
        if self.bad_in_a_row >= MAX_BAD_STEPS:
            raise DivergedError(
                f"loss or gradient was not finite {self.bad_in_a_row} steps in a row; try a lower "
                "TRAIN.LR or TRAIN.PRECISION fp32"
            )

    def means(self) -> dict[str, float | None]:
        """Averages over the finite steps of the epoch under way; a loss of None without any."""
        finite = max(1, self.counted - self.skipped)
        return {"loss": None} | {name: value / finite for name, value in self.sums.items()}

    def end_epoch(self) -> None:
        """Count the epoch; the next one starts from nothing."""
        self.epoch += 1
        self.restart_epoch()

    def restart_epoch(self) -> None:
        """Forget the epoch under way."""
        self.step_in_epoch, self.counted, self.sums, self.seconds = 0, 0, {}, 0.0
        self.skipped = self.unreadable = 0


@dataclass
class Run:
    """All that training changes, and so exactly what a checkpoint holds.

    Attributes:
        model: the network that is trained.
        optimizer: over its parameters.
        scaler: of the loss; does nothing but for float16.
        plan: how long it is.
        facts: what else a checkpoint says of it, plain values.
        averaged: weights averaged over the steps, or None.
        progress: where it stands.
        synchronised: whether norms see the images of all processes.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    plan: Plan
    facts: dict[str, Any] = field(default_factory=dict)
    averaged: AveragedWeights | None = None
    progress: Progress = field(default_factory=Progress)
    synchronised: bool = True

    def __post_init__(self) -> None:
        self.norms = NormStatistics(self.model)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]

    @property
    def networks(self) -> dict[str, nn.Module]:
        """Those to score; the first one is what the run is for."""
        averaged = {} if self.averaged is None else {"averaged": self.averaged.model}
        return averaged | {"trained": self.model}

    @property
    def finished(self) -> bool:
        """Whether all is trained and scored."""
        plan, progress = self.plan, self.progress
        if not plan.ends_within:
            return progress.epoch >= plan.epochs
        recorded = not progress.step_in_epoch or progress.ended_at == progress.step
        return recorded and plan.ended(progress)

    def end_epoch(self) -> None:
        """Count the epoch under way, which is recorded. One that the limit of steps has come within
        stays open: with a higher limit the run goes on there."""
        plan, progress = self.plan, self.progress
        progress.ended_at = progress.step
        if not plan.limit or progress.step_in_epoch >= plan.steps_per_epoch:
            progress.end_epoch()

    def weights(self) -> dict[str, Any]:
        """What best.pt holds: the network that is scored."""
        if self.averaged is not None:
            self.averaged.counters_from(self.model)
        scored = next(iter(self.networks.values()))
        return self.facts | {"progress": asdict(self.progress), "model": scored.state_dict()}

    def state(self, random: Sequence[dict[str, Tensor]]) -> dict[str, Any]:
        """What last.pt holds: the weights, and what a run needs to go on as if never stopped.

        `random` is that of all processes, see `random_state`.
        """
        trained = {} if self.averaged is None else {"trained": self.model.state_dict()}
        return self.weights() | {
            **trained,
            "steps_per_epoch": self.plan.steps_per_epoch,
            "batch": self.plan.batch,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": list(random),
        }

    def equalise(self, world: World) -> None:
        """Make all processes hold the same; they differ in norms that are not synchronised."""
        if world.size > 1 and not self.synchronised:
            self.norms.average(world)
            if self.averaged is not None:
                NormStatistics(self.averaged.model).average(world)

    def restore(self, saved: dict[str, Any], world: World) -> None:
        """Go on from `state`; with another batch or another number of processes, at the epoch.

        A run of limited steps or time that has reached its end stays there: its last epoch may have
        to be scored, and begun again it would count as done.
        """
        self.model.load_state_dict(saved.get("trained", saved["model"]))
        if self.averaged is not None:
            self.averaged.model.load_state_dict(saved["model"])
        restore_optimizer(self.optimizer, saved["optimizer"])
        if saved["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(saved["scaler"])
        told = saved["progress"]
        steps = saved["steps_per_epoch"] * told["epoch"] + told["step_in_epoch"]
        self.progress = Progress(**{"step": steps} | told)  # files of old have no "step"
        self.norms.remember()
        same = restore_random_state(saved["random"], world) and saved["batch"] == self.plan.batch
        changed = not same or saved["steps_per_epoch"] != self.plan.steps_per_epoch
        if changed and not (self.plan.ends_within and self.plan.ended(self.progress)):
            self.progress.restart_epoch()


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the optimiser's memory but keep the settings that the configuration now states."""
    settings = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    # Also before: they decide where counters of steps belong, on the device or beside it.
    saved = state["param_groups"]
    groups = [group | now for group, now in zip(saved, settings, strict=False)]
    optimizer.load_state_dict(state | {"param_groups": groups + saved[len(settings) :]})
    for group, now in zip(optimizer.param_groups, settings, strict=True):
        group.update(now)


def random_state(world: World) -> list[dict[str, torch.Tensor]]:
    """The generators of every process, by rank."""
    state = {"cpu": torch.get_rng_state()}
    if world.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(world.device)
    if world.device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return gather_objects(state, world)


def restore_random_state(states: Sequence[dict[str, torch.Tensor]], world: World) -> bool:
    """Put this process's generators back. False if the run had another number of processes."""
    if len(states) != world.size:
        return False
    state = states[world.rank]
    torch.set_rng_state(state["cpu"])
    if world.device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], world.device)
    if world.device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"])
    return True


@dataclass(frozen=True)
class Precision:
    """How the forward pass computes: float32, or autocast to a 16-bit type."""

    name: str
    device: torch.device

    @classmethod
    def choose(cls, name: str, device: torch.device, key: str = "TRAIN.PRECISION") -> "Precision":
        """Resolve "auto" for `device`. Raises ValueError where a type is not supported."""
        if name == "auto":
            return cls("bf16" if _has_bf16(device) else "fp32", device)
        if name == "fp16" and device.type != "cuda":
            place = "the CPU" if device.type == "cpu" else device.type
            raise InputError(f"{key} fp16 needs a CUDA device; on {place}: auto, fp32 or bf16")
        return cls(name, device)

    def autocast(self) -> AbstractContextManager:
        """Context of the forward pass."""
        if self.name == "fp32":
            return nullcontext()
        dtype = torch.bfloat16 if self.name == "bf16" else torch.float16
        return torch.autocast(self.device.type, dtype)

    def scaler(self) -> torch.amp.GradScaler:
        """Loss scaling, which only float16 needs."""
        return torch.amp.GradScaler(self.device.type, enabled=self.name == "fp16")


def _has_bf16(device: torch.device) -> bool:
    """Whether the hardware computes in bfloat16 rather than emulating it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))
