"""GCNet: Golden Cudgel Network for real-time semantic segmentation (CVPR 2025, arXiv 2503.03325).

Official code: github.com/gyyang23/GCNet (MIT; the network lies in a fork of mmsegmentation,
Apache-2.0). Not the Global Context Network of 2019, whose name is the same.
RDRNet's two branches, of blocks whose every path ends in a 1x1 convolution, up to the last stage:
    stem                   N, 3, H, W -> N, 2C, H/8, W/8 (stages 1 to 3)
    stage4, stage5         low N, 4C, H/16, W/16, then N, 8C, H/32, W/32; high N, 2C, H/8, W/8
    low6, high6            low N, 16C, H/64, W/64; high N, 4C, H/8, W/8
    context                DAPPM on the low branch
    head                   logits N, classes, H/8, W/8 from high + context
What a branch receives after stages 4 and 5 is added to its rectified features; in RDRNet and DDRNet
these are signed.
`fuse` gives the deployed form. Any input size passes. Fresh classifier biases are 0, which the
official code leaves to torch's default.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from .layers.bilateral import BilateralNetwork, BilateralStage, check_depths
from .layers.context import DAPPM
from .layers.conv import ConvBN, ConvBNReLU
from .layers.head import SegHead
from .layers.init import kaiming_init
from .layers.reparam import merge_paths
from .registry import register

EPS = 1e-5  # of every BatchNorm


class GCBlock(nn.Module):
    """Two 3x3 paths, a 1x1 path and, where nothing changes, the normalised input, summed.

    N, in_channels, h, w to N, out_channels, ceil(h / stride), ceil(w / stride). Every path goes on
    with a 1x1 convolution, without an activation between; `act` False leaves out the ReLU behind
    the sum. One 3x3 convolution computes it.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, *, act: bool = True
    ) -> None:
        super().__init__()
        self.paths = nn.ModuleList(
            nn.Sequential(
                ConvBN(in_channels, out_channels, kernel_size, stride, eps=EPS),
                ConvBN(out_channels, out_channels, 1, eps=EPS),
            )
            for kernel_size in (3, 3, 1)
        )
        same = stride == 1 and in_channels == out_channels
        self.identity = nn.BatchNorm2d(in_channels, eps=EPS) if same else None
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        first, second, point = self.paths
        y = first(x) + second(x) + point(x)
        if self.identity is not None:
            y = y + self.identity(x)
        return F.relu(y, inplace=True) if self.act else y

    def fuse(self) -> nn.Module:
        """The deployed form: one 3x3 convolution, and the ReLU if there is one."""
        conv = merge_paths(self.paths, self.identity)
        return nn.Sequential(conv, nn.ReLU(inplace=True)) if self.act else conv


def gc_stage(
    in_channels: int, channels: int, depth: int, stride: int = 1, *, last_act: bool = True
) -> nn.Sequential:
    """`depth` GCBlocks, of which the first has the stride; `last_act` is the last one's ReLU."""
    return nn.Sequential(
        *(
            GCBlock(
                channels if i else in_channels,
                channels,
                1 if i else stride,
                act=last_act or i < depth - 1,
            )
            for i in range(depth)
        )
    )


class GCNet(BilateralNetwork):
    """The dual-resolution network in its training form.

    Args:
        num_classes: classes of both heads.
        base_channels: C of the table above.
        context_channels: width inside DAPPM.
        head_channels: width inside both heads.
        blocks_per_stage: for stages 2 to 6 all blocks, the first included; stages 4 to 6 give a
            pair, for the low and the high branch.
        dropout: share of channels that both heads drop before their last layer while training.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        base_channels: int = 32,
        context_channels: int = 128,
        head_channels: int = 64,
        blocks_per_stage: Sequence = (4, 4, (5, 4), (5, 4), (2, 2)),
        dropout: float = 0.0,
    ) -> None:
        super().__init__(num_classes)
        c = base_channels
        depth2, depth3, *pairs = check_depths(
            blocks_per_stage, least=1, example=(4, 4, (5, 4), (5, 4), (2, 2))
        )
        (low4, high4), (low5, high5), (low6, high6) = pairs
        self.stem = nn.Sequential(
            ConvBNReLU(3, c, 3, 2, eps=EPS),
            ConvBNReLU(c, c, 3, 2, eps=EPS),
            *gc_stage(c, c, depth2),
            *gc_stage(c, 2 * c, depth3, 2),
        )
        self.stage4 = BilateralStage(
            gc_stage(2 * c, 4 * c, low4, 2, last_act=False),
            gc_stage(2 * c, 2 * c, high4, last_act=False),
            4 * c,
            2 * c,
            1,
            rectified=True,
        )
        self.stage5 = BilateralStage(
            gc_stage(4 * c, 8 * c, low5, 2, last_act=False),
            gc_stage(2 * c, 2 * c, high5, last_act=False),
            8 * c,
            2 * c,
            2,
            rectified=True,
        )
        self.low6 = gc_stage(8 * c, 16 * c, low6, 2, last_act=False)
        self.high6 = gc_stage(2 * c, 4 * c, high6, last_act=False)
        self.context = DAPPM(16 * c, context_channels, 4 * c)
        self.head = SegHead(4 * c, head_channels, num_classes, dropout=dropout)
        self.aux_head = SegHead(2 * c, head_channels, num_classes, dropout=dropout)
        kaiming_init(self, "fan_out")


VARIANTS = {
    "gcnet_s": {},
    "gcnet_m": {"base_channels": 64, "head_channels": 128},
    "gcnet_l": {
        "base_channels": 64,
        "head_channels": 256,
        "blocks_per_stage": (5, 5, (5, 5), (5, 5), (3, 3)),
    },
}
register(GCNet, VARIANTS)
