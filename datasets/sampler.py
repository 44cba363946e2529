"""Which sample comes when: a pure function of seed and epoch, whatever the number of processes."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from .errors import InputError


class Draw(NamedTuple):
    """One sample to fetch.

    index: in the dataset.
    seed: of its augmentation.
    mirror: whether its turn to be mirrored has come: every other epoch, for half of the images
        the even ones.
    calm: whether only crop and flip are to happen to it.
    """

    index: int
    seed: int
    mirror: bool = False
    calm: bool = False


def substitute(draw: Draw, attempt: int, length: int) -> int:
    """The index that takes the place of an unreadable one; a function of the draw alone."""
    return int(np.random.default_rng([draw.seed, attempt]).integers(length))


class EpochBatchSampler:
    """Batches of `Draw` for one process of `world_size`; drops the last incomplete batch.

    Global batch k of an epoch holds the positions [k * B * W, (k + 1) * B * W) of the epoch's
    permutation, and rank r takes its r-th slice of B. So W processes with batch B see together
    what one process with batch W * B sees, with equal augmentation seeds.

    Args:
        length: samples in the dataset.
        batch_size: per process (B).
        seed: of permutations and augmentation.
        rank, world_size: this process and their number (W).
        shuffle: False keeps the order of the list (the seeds still differ per epoch).

    calm: batch of the epoch -> whether its draws are calm; asked when the batch is drawn, and to
        be replaced by whoever knows.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch size is {batch_size}; at least 1 is needed")
        if not 0 <= rank < world_size:
            raise InputError(f"rank {rank} is outside 0..{world_size - 1}")
        if seed < 0:
            raise InputError(f"seed is {seed}; accepted: 0 and above")
        if length < batch_size * world_size:
            raise InputError(
                f"{length} samples do not fill one batch of {batch_size * world_size} "
                f"({batch_size} per process x {world_size}); use a smaller batch"
            )
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.rank, self.world_size, self.shuffle = rank, world_size, shuffle
        self.epoch = self.start_batch = 0
        self.calm: Callable[[int], bool] = lambda batch: False
        # Three numbers, so that no epoch has this stream.
        self._first = np.random.default_rng([seed, 0, 1]).integers(2, size=length).astype(bool)

    def __len__(self) -> int:
        """Batches in a whole epoch (`start_batch` does not shorten it)."""
        return self.length // (self.batch_size * self.world_size)

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Choose what the next iteration yields: batches `start_batch`.. of `epoch` (both >= 0)."""
        if epoch < 0 or not 0 <= start_batch <= len(self):
            raise InputError(
                f"epoch {epoch}, batch {start_batch}: accepted are 0 and above, 0..{len(self)}"
            )
        self.epoch, self.start_batch = epoch, start_batch

    def __iter__(self) -> Iterator[list[Draw]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(self.length) if self.shuffle else np.arange(self.length)
        seeds = rng.integers(2**63, size=self.length)
        for batch in range(self.start_batch, len(self)):
            first = (batch * self.world_size + self.rank) * self.batch_size
            part, calm = slice(first, first + self.batch_size), bool(self.calm(batch))
            yield [
                Draw(int(i), int(s), bool(self._first[i]) != bool(self.epoch % 2), calm)
                for i, s in zip(order[part], seeds[part], strict=True)
            ]
