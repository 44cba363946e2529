"""Where a run stands, how it computes, and whether somebody asked it to stop."""

import signal
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import FrameType

import torch

from .distributed import World, sum_over_processes


class StopRequest:
    """SIGINT and SIGTERM as a flag that loops look at; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.signal = number
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def anywhere(self, world: World) -> bool:
        """Whether any process of the run was asked; the same answer in all of them."""
        asked = torch.tensor([float(self.signal is not None)], device=world.device)
        return sum_over_processes(asked, world).item() > 0


@dataclass
class Progress:
    """Where a run stands; part of the checkpoint, so that a resumed epoch reports as a whole one.

    Attributes:
        epoch: epochs finished, evaluation included.
        step_in_epoch: optimiser steps done of the epoch under way.
        sums: loss parts summed over the finite steps of that epoch.
        skipped: steps of that epoch left out because loss or gradient was not finite.
        unreadable: images of that epoch that others took the place of.
        bad_in_a_row: such steps since the last good one, over epochs.
        seconds: time those steps took.
        best_miou: best mean IoU of the evaluations so far (0..1), -1 before the first.
        best_epoch: epochs finished at that evaluation.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    skipped: int = 0
    unreadable: int = 0
    bad_in_a_row: int = 0
    seconds: float = 0.0
    best_miou: float = -1.0
    best_epoch: int = 0

    def means(self) -> dict[str, float | None]:
        """Averages over the finite steps of the epoch under way; a loss of None without any."""
        finite = max(1, self.step_in_epoch - self.skipped)
        return {"loss": None} | {name: value / finite for name, value in self.sums.items()}

    def end_epoch(self) -> None:
        """Count the epoch; the next one starts from nothing."""
        self.epoch += 1
        self.restart_epoch()

    def restart_epoch(self) -> None:
        """Forget the epoch under way."""
        self.step_in_epoch, self.sums, self.skipped, self.seconds = 0, {}, 0, 0.0
        self.unreadable = 0


@dataclass(frozen=True)
class Precision:
    """How the forward pass computes: float32, or autocast to a 16-bit type."""

    name: str
    device: torch.device

    @classmethod
    def choose(cls, name: str, device: torch.device) -> "Precision":
        """Resolve "auto" for `device`. Raises ValueError where a type is not supported."""
        if name == "auto":
            return cls("bf16" if _has_bf16(device) else "fp32", device)
        if name == "fp16" and device.type != "cuda":
            place = "the CPU" if device.type == "cpu" else device.type
            raise ValueError(
                f"TRAIN.PRECISION fp16 needs a CUDA device; on {place}: auto, fp32 or bf16"
            )
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
