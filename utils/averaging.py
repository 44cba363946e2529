"""Averaged weights, and norm statistics that can take a step back."""

import copy

import torch
from torch import Tensor, nn

from .distributed import World, sum_over_processes


class AveragedWeights:
    """An exponential moving average of all weights and norm statistics, on their device.

    The decay starts low, (1 + step) / (10 + step), so that the first weights do not stay in it.

    Args:
        model: the network that is trained.
        decay: of the average per step, in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self._live, self._averaged = (_floats(network) for network in (model, self.model))
        self._rate = torch.zeros((), device=self._live[0].device)

    def set_step(self, step: int) -> None:
        """Choose the weight of the coming step, the `step`-th of the run, from 0."""
        self._rate.fill_(1 - min(self.decay, (1 + step) / (10 + step)))

    @torch.no_grad()
    def update(self, kept: Tensor) -> None:
        """Move towards the present weights; `kept` (0 or 1) tells whether the step counts."""
        difference = torch._foreach_sub(self._live, self._averaged)
        # Not lerp: with a weight on the device it waits for the device.
        torch._foreach_mul_(difference, self._rate * kept)
        torch._foreach_add_(self._averaged, difference)

    def counters_from(self, model: nn.Module) -> None:
        """Take over what is counted, not averaged."""
        for ours, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            if not ours.is_floating_point():
                ours.copy_(theirs)


class NormStatistics:
    """Running statistics of all norms, so that a step that is left out leaves no trace in them.

    They are kept as one block per dtype; counters of batches are left out. A step costs three
    launches, and the host learns nothing of it.
    """

    def __init__(self, model: nn.Module) -> None:
        self._groups: list[tuple[list[Tensor], Tensor]] = []
        buffers = [b for b in model.buffers() if b.is_floating_point()]
        for dtype in {b.dtype: None for b in buffers}:
            live = [b for b in buffers if b.dtype == dtype]
            self._groups.append((live, _block(live)))

    @torch.no_grad()
    def remember(self) -> None:
        """Keep the present values; needed where they change other than by steps."""
        for live, kept in self._groups:
            kept.copy_(_block(live))

    @torch.no_grad()
    def settle(self, bad: Tensor) -> None:
        """After a step: go back to what was kept where `bad` (0-d, bool), else keep what is."""
        for live, kept in self._groups:
            kept.copy_(torch.where(bad, kept, _block(live)))
            torch._foreach_copy_(live, _parts(kept, live))

    @torch.no_grad()
    def average(self, world: World) -> None:
        """Make all processes' statistics the mean over them."""
        for live, kept in self._groups:
            kept.copy_(sum_over_processes(_block(live), world).div_(world.size))
            torch._foreach_copy_(live, _parts(kept, live))


def _block(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])


def _parts(block: Tensor, like: list[Tensor]) -> list[Tensor]:
    parts = block.split([t.numel() for t in like])
    return [part.view(t.shape) for part, t in zip(parts, like, strict=True)]


def _floats(model: nn.Module) -> list[Tensor]:
    tensors = (*model.parameters(), *model.buffers())
    return [t.detach() for t in tensors if t.is_floating_point()]
