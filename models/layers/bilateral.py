"""Two branches that exchange features at the end of a stage (DDRNet, Fig. 4; RDRNet, Fig. 2)."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ..base import SegModel, TrainOutputs
from ..errors import InputError
from .conv import ConvBN
from .resize import resize_like


class BilateralStage(nn.Module):
    """A stage of both branches, then each receives the other's result.

    low: N, low_channels, ceil(h / 2**steps), ceil(w / 2**steps) after its stage.
    high: N, high_channels, h, w.
    Both leave as sums that have not been rectified; what one branch gives the other is its own
    stage's output, rectified, before it has received anything.

    Args:
        low, high: the stage of each branch.
        low_channels, high_channels: what the stages give.
        steps: strided convolutions from the high grid to the low one.
        rectified: whether what a branch receives is added to its rectified output, too (GCNet).
    """

    def __init__(
        self,
        low: nn.Module,
        high: nn.Module,
        low_channels: int,
        high_channels: int,
        steps: int,
        *,
        rectified: bool = False,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        norm = {"eps": eps, "momentum": momentum}
        self.low, self.high, self.rectified = low, high, rectified
        self.compress = ConvBN(low_channels, high_channels, 1, **norm)
        self.down = nn.ModuleList(
            ConvBN(
                high_channels * 2**i,
                low_channels if i == steps - 1 else high_channels * 2 ** (i + 1),
                3,
                2,
                **norm,
            )
            for i in range(steps)
        )

    def forward(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self.low(low), self.high(high)
        low_out, high_out = F.relu(low), F.relu(high)
        down, up = high_out, self.compress(low_out)
        for i, conv in enumerate(self.down):
            down = conv(F.relu(down) if i else down)
        if self.rectified:
            low, high = low_out, high_out
        return low + down, high + resize_like(up, high)


def check_depths(blocks: Sequence, *, least: int, example: Sequence) -> Sequence:
    """`blocks`, the option `blocks_per_stage` of RDRNet and GCNet, if it has their form.

    Raises ValueError unless it is two numbers of `least` or more, for the stages before the
    branches part, and three pairs of 1 or more, for the low and the high branch.
    """
    pairs = [tuple(pair) if isinstance(pair, (tuple, list)) else () for pair in blocks[2:]]
    numbers = [*blocks[:2], *(n for pair in pairs for n in pair)]
    ok = len(blocks) == 5 and all(len(pair) == 2 for pair in pairs)
    ok = ok and all(isinstance(n, int) for n in numbers)
    if not ok or min(numbers[:2]) < least or min(numbers[2:]) < 1:
        raise InputError(
            f"blocks_per_stage is {blocks}; accepted: two numbers of {least} or more and three "
            f"pairs of 1 or more, such as {example}"
        )
    return blocks


class BilateralNetwork(SegModel):
    """What RDRNet and GCNet have in common; a family builds the parts: stem, stage4 and stage5
    (`BilateralStage`), low6, high6, context, head, aux_head."""

    num_aux = 1
    training_only = ("aux_head",)

    def forward(self, x: Tensor) -> Tensor:
        return self._features(x)[0]

    def forward_train(self, x: Tensor) -> TrainOutputs:
        logits, high4 = self._features(x)
        return TrainOutputs(logits, (self.aux_head(high4),))

    def _features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and the high branch after stage 4, not rectified, for the auxiliary head."""
        x = self.stem(x)
        low, high4 = self.stage4(x, x)
        low, high = self.stage5(F.relu(low), F.relu(high4))
        high = self.high6(F.relu(high))
        context = self.context(self.low6(F.relu(low)))
        return self.head(high + resize_like(context, high)), high4
