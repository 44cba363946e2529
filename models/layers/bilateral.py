"""Two branches that exchange features at the end of a stage (DDRNet, Fig. 4; RDRNet, Fig. 2)."""

import torch.nn.functional as F
from torch import Tensor, nn

from .conv import ConvBN
from .resize import resize_like


class BilateralStage(nn.Module):
    """A stage of both branches, then each receives the other's result.

    low: N, low_channels, ceil(h / 2**steps), ceil(w / 2**steps) after its stage.
    high: N, high_channels, h, w.
    Both leave as sums that have not been rectified; what one branch gives the other is its own
    stage's output, before it has received anything.

    Args:
        low, high: the stage of each branch.
        low_channels, high_channels: what the stages give.
        steps: strided convolutions from the high grid to the low one.
    """

    def __init__(
        self,
        low: nn.Module,
        high: nn.Module,
        low_channels: int,
        high_channels: int,
        steps: int,
        *,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        norm = {"eps": eps, "momentum": momentum}
        self.low, self.high = low, high
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
        down = high
        for conv in self.down:
            down = conv(F.relu(down))
        up = self.compress(F.relu(low))
        return low + down, high + resize_like(up, high)
