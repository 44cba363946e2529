"""DDRNet: deep dual-resolution networks for real-time semantic segmentation (T-ITS 2022).

Paper: arXiv 2101.06085; official code: github.com/ydhongHIT/DDRNet (MIT).
After stage 2 a high-resolution branch stays at stride 8 while the low one goes on to stride 64:
    stem, stage1, stage2   N, 3, H, W -> N, 2C, H/8, W/8
    stage3, stage4         low N, 4C, H/16, W/16, then N, 8C, H/32, W/32; high N, 2C, H/8, W/8
    low5, high5            low N, 16C, H/64, W/64; high N, 4C, H/8, W/8
    context                DAPPM on the low branch (Fig. 5)
    head                   logits N, classes, H/8, W/8 from high + context
Resize targets are the features' own grids, so any input size passes. Fresh biases are 0, which the
official code leaves to torch's default.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .base import SegModel, TrainOutputs
from .errors import InputError
from .layers.bilateral import BilateralStage
from .layers.context import DAPPM
from .layers.head import SegHead
from .layers.init import kaiming_init
from .layers.residual import Bottleneck, basic_stage
from .layers.resize import resize_like
from .layers.stem import Stem
from .registry import register


class DDRNet(SegModel):
    """The dual-resolution network.

    Args:
        num_classes: classes of both heads.
        base_channels: C of the table above.
        context_channels: width inside DAPPM.
        head_channels: width inside both heads.
        blocks_per_stage: residual blocks of stages 1 to 4, the same in both branches.
        exchanges: how often the branches exchange features in stage 3, whose blocks are split
            evenly between the exchanges.
        dropout: share of channels that both heads drop before their last layer while training.
    """

    num_aux = 1
    training_only = ("aux_head",)

    def __init__(
        self,
        num_classes: int,
        *,
        base_channels: int = 32,
        context_channels: int = 128,
        head_channels: int = 64,
        blocks_per_stage: tuple[int, int, int, int] = (2, 2, 2, 2),
        exchanges: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(num_classes)
        c = base_channels
        if len(blocks_per_stage) != 4 or min(blocks_per_stage) < 1:
            raise InputError(
                f"blocks_per_stage is {blocks_per_stage}; four numbers of 1 or more are needed"
            )
        depth1, depth2, depth3, depth4 = blocks_per_stage
        if exchanges < 1 or depth3 % exchanges:
            raise InputError(f"{depth3} blocks of stage 3 do not split over {exchanges} exchanges")
        depth3 //= exchanges
        self.stem = Stem(c)
        self.stage1 = basic_stage(c, c, depth1)
        self.stage2 = basic_stage(c, 2 * c, depth2, 2)
        self.stage3 = nn.ModuleList(
            BilateralStage(
                basic_stage(4 * c if i else 2 * c, 4 * c, depth3, 1 if i else 2),
                basic_stage(2 * c, 2 * c, depth3),
                4 * c,
                2 * c,
                1,
            )
            for i in range(exchanges)
        )
        self.stage4 = BilateralStage(
            basic_stage(4 * c, 8 * c, depth4, 2), basic_stage(2 * c, 2 * c, depth4), 8 * c, 2 * c, 2
        )
        self.low5 = Bottleneck(8 * c, 8 * c, 2)
        self.high5 = Bottleneck(2 * c, 2 * c)
        self.context = DAPPM(16 * c, context_channels, 4 * c)
        self.head = SegHead(4 * c, head_channels, num_classes, dropout=dropout)
        self.aux_head = SegHead(2 * c, head_channels, num_classes, dropout=dropout)
        kaiming_init(self, "fan_out")

    def forward(self, x: Tensor) -> Tensor:
        return self._features(x)[0]

    def forward_train(self, x: Tensor) -> TrainOutputs:
        logits, high3 = self._features(x)
        return TrainOutputs(logits, (self.aux_head(high3),))

    def _features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and the high branch after stage 3, not rectified, for the auxiliary head."""
        x = self.stage2(F.relu(self.stage1(self.stem(x)), inplace=True))
        low = high = x
        for stage in self.stage3:
            low, high = stage(F.relu(low), F.relu(high))
        high3 = high
        low, high = self.stage4(F.relu(low), F.relu(high))
        high = self.high5(F.relu(high))
        context = self.context(self.low5(F.relu(low)))
        return self.head(high + resize_like(context, high)), high3


VARIANTS = {
    "ddrnet_23_slim": {},
    "ddrnet_23": {"base_channels": 64, "head_channels": 128},
    "ddrnet_39": {
        "base_channels": 64,
        "head_channels": 256,
        "blocks_per_stage": (3, 4, 6, 3),
        "exchanges": 2,
    },
}
register(DDRNet, VARIANTS)
