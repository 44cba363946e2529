"""RDRNet: reparameterizable dual-resolution network for real-time segmentation (arXiv 2406.12496).

Official code: github.com/gyyang23/RDRNet, a fork of mmsegmentation (Apache-2.0).
DDRNet's two branches, built of blocks that train with three paths and deploy as one convolution:
    stem                   N, 3, H, W -> N, 2C, H/8, W/8 (stages 1 to 3)
    stage4, stage5         low N, 4C, H/16, W/16, then N, 8C, H/32, W/32; high N, 2C, H/8, W/8
    low6, high6            low N, 16C, H/64, W/64; high N, 4C, H/8, W/8
    context                RPPM on the low branch (Sec. 3.4)
    head                   logits N, classes, H/8, W/8 from high + context
BatchNorm: eps 1e-3 and momentum 0.03 in the backbone, 1e-5 and 0.1 in the heads.
`fuse` gives the deployed form. Any input size passes. Fresh classifier biases are 0, which the
official code leaves to torch's default.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers.bilateral import BilateralNetwork, BilateralStage, check_depths
from .layers.context import PAPPM
from .layers.conv import ConvBN
from .layers.head import SegHead
from .layers.init import kaiming_init
from .layers.reparam import merge_paths
from .layers.residual import Bottleneck
from .registry import register

NORM = {"eps": 1e-3, "momentum": 0.03}


class RepBlock(nn.Module):
    """RB (Fig. 3): a 3x3 path, a path of two 1x1 convolutions and, where nothing changes, the
    normalised input, summed; `act` False leaves out the ReLU. One 3x3 convolution computes it."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, *, act: bool = True
    ) -> None:
        super().__init__()
        self.conv3x3 = ConvBN(in_channels, out_channels, 3, stride, **NORM)
        self.conv1x1 = nn.Sequential(
            ConvBN(in_channels, out_channels, 1, stride, bias=True, **NORM),
            ConvBN(out_channels, out_channels, 1, bias=True, **NORM),
        )
        same = stride == 1 and in_channels == out_channels
        self.identity = nn.BatchNorm2d(in_channels, **NORM) if same else None
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv3x3(x) + self.conv1x1(x)
        if self.identity is not None:
            y = y + self.identity(x)
        return F.relu(y, inplace=True) if self.act else y

    def fuse(self) -> nn.Module:
        """The deployed form: one 3x3 convolution, and the ReLU if there is one."""
        conv = merge_paths(((self.conv3x3,), self.conv1x1), self.identity)
        return nn.Sequential(conv, nn.ReLU(inplace=True)) if self.act else conv


class RepProcess(nn.Module):
    """BN, ReLU, then two parallel grouped 3x3 convolutions, which fold into one."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, **NORM)
        self.convs = nn.ModuleList(
            ConvBN(channels, channels, 3, groups=groups, **NORM) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(x), inplace=True)
        return self.convs[0](x) + self.convs[1](x)

    @torch.no_grad()
    def fuse(self) -> nn.Sequential:
        """Norm, ReLU and one grouped convolution."""
        first, second = (conv.fuse() for conv in self.convs)
        first.weight.add_(second.weight)
        first.bias.add_(second.bias)
        return nn.Sequential(self.norm, nn.ReLU(inplace=True), first)


class RPPM(PAPPM):
    """Reparameterizable pyramid pooling: PAPPM with two parallel convolutions over all scales."""

    def __init__(self, in_channels: int, channels: int, out_channels: int) -> None:
        super().__init__(in_channels, channels, out_channels, **NORM)
        self.process = RepProcess(4 * channels, 4)


def rep_stage(in_channels: int, channels: int, depth: int, stride: int = 1) -> nn.Sequential:
    """`depth` RepBlocks, of which the last has no ReLU."""
    return nn.Sequential(
        *(
            RepBlock(
                channels if i else in_channels, channels, 1 if i else stride, act=i < depth - 1
            )
            for i in range(depth)
        )
    )


def bottleneck_stage(in_channels: int, channels: int, depth: int, stride: int = 1) -> nn.Sequential:
    """`depth` bottlenecks of 2 * `channels`; neither the first nor the last has a final ReLU."""
    return nn.Sequential(
        *(
            Bottleneck(
                2 * channels if i else in_channels,
                channels,
                1 if i else stride,
                last_act=0 < i < depth - 1,
                **NORM,
            )
            for i in range(depth)
        )
    )


class RDRNet(BilateralNetwork):
    """The dual-resolution network in its training form.

    Args:
        num_classes: classes of both heads.
        base_channels: C of the table above.
        context_channels: width inside the pyramid.
        head_channels: width inside both heads.
        blocks_per_stage: for stages 2 to 6 the blocks of stride 1; stages 4 to 6 give a pair, for
            the low and the high branch.
        dropout: share of channels that both heads drop before their last layer while training.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        base_channels: int = 32,
        context_channels: int = 128,
        head_channels: int = 128,
        blocks_per_stage: Sequence = (4, 3, (5, 4), (5, 4), (1, 1)),
        dropout: float = 0.0,
    ) -> None:
        super().__init__(num_classes)
        c = base_channels
        depth2, depth3, *pairs = check_depths(
            blocks_per_stage, least=0, example=(4, 3, (5, 4), (5, 4), (1, 1))
        )
        self.stem = nn.Sequential(
            RepBlock(3, c, 2),
            RepBlock(c, c, 2),
            *(RepBlock(c, c) for _ in range(depth2)),
            RepBlock(c, 2 * c, 2),
            *(RepBlock(2 * c, 2 * c) for _ in range(depth3)),
        )
        (low4, high4), (low5, high5), (low6, high6) = pairs
        self.stage4 = BilateralStage(
            rep_stage(2 * c, 4 * c, low4 + 1, 2),
            rep_stage(2 * c, 2 * c, high4),
            4 * c,
            2 * c,
            1,
            **NORM,
        )
        self.stage5 = BilateralStage(
            rep_stage(4 * c, 8 * c, low5 + 1, 2),
            rep_stage(2 * c, 2 * c, high5),
            8 * c,
            2 * c,
            2,
            **NORM,
        )
        self.low6 = bottleneck_stage(8 * c, 8 * c, low6, 2)
        self.high6 = bottleneck_stage(2 * c, 2 * c, high6)
        self.context = RPPM(16 * c, context_channels, 4 * c)
        self.head = SegHead(4 * c, head_channels, num_classes, dropout=dropout)
        self.aux_head = SegHead(2 * c, head_channels, num_classes, dropout=dropout)
        kaiming_init(self, "fan_out")


VARIANTS = {
    "rdrnet_s_simple": {"head_channels": 64},
    "rdrnet_s": {},
    "rdrnet_m": {"base_channels": 64},
    "rdrnet_l": {
        "base_channels": 64,
        "head_channels": 256,
        "blocks_per_stage": (6, 5, (7, 6), (7, 6), (2, 2)),
    },
}
register(RDRNet, VARIANTS)
