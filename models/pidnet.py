"""PIDNet: a real-time segmentation network inspired by PID controllers (CVPR 2023).

Paper: arXiv 2206.02066; official code: github.com/XuJiacong/PIDNet (MIT).
Three branches leave the stem at stride 8: P (proportional, details, stays at stride 8),
I (integral, context, down to stride 64) and D (derivative, boundaries, stride 8).
    stem, stage1, stage2   N, 3, H, W -> N, 2C, H/8, W/8
    guide3, guide4         P takes from I where the two agree (Fig. 4)
    context                pyramid pooling on I (Fig. 5)
    merge                  D decides per pixel between P and I (Fig. 6)
    head                   logits N, classes, H/8, W/8
Resize targets are the features' own grids, so any input size passes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import SegModel, TrainOutputs
from .layers.context import DAPPM, PAPPM
from .layers.conv import ConvBN, NormActConv
from .layers.head import SegHead
from .layers.init import kaiming_init
from .layers.residual import BasicBlock, Bottleneck, basic_stage
from .layers.resize import resize_like
from .layers.stem import Stem
from .registry import register


class PixelGuide(nn.Module):
    """Pag: pixel-attention-guided fusion of P (N, C, h, w) and I (N, C, coarser grid)."""

    def __init__(self, channels: int, embed_channels: int) -> None:
        super().__init__()
        self.embed_p = ConvBN(channels, embed_channels, 1)
        self.embed_i = ConvBN(channels, embed_channels, 1)

    def forward(self, p: Tensor, i: Tensor) -> Tensor:
        agreement = self.embed_p(p) * resize_like(self.embed_i(i), p)
        weight = torch.sigmoid(agreement.sum(1, keepdim=True))  # N, 1, h, w
        return _blend(p, resize_like(i, p), weight)


class BoundaryMerge(nn.Module):
    """Bag: P where the boundary branch fires, I elsewhere, then a 3x3 convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = NormActConv(in_channels, out_channels, 3)

    def forward(self, p: Tensor, i: Tensor, d: Tensor) -> Tensor:
        return self.conv(_blend(i, p, torch.sigmoid(d)))


class LightBoundaryMerge(nn.Module):
    """Light-Bag: the same decision with one 1x1 convolution per branch."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv_p = ConvBN(in_channels, out_channels, 1)
        self.conv_i = ConvBN(in_channels, out_channels, 1)

    def forward(self, p: Tensor, i: Tensor, d: Tensor) -> Tensor:
        edge = torch.sigmoid(d)
        return self.conv_p(p + (1 - edge) * i) + self.conv_i(torch.addcmul(i, edge, p))


def _blend(low: Tensor, high: Tensor, weight: Tensor) -> Tensor:
    """`low` where `weight` is 0, `high` where it is 1."""
    return torch.addcmul(low, weight, high - low)


class PIDNet(SegModel):
    """The three-branch network.

    Args:
        num_classes: classes of the main and auxiliary heads.
        base_channels: C; the branches have 2C (P, D) and 4C to 16C (I) channels.
        context_channels: width inside the pyramid.
        head_channels: width inside the main and auxiliary heads.
        stem_blocks: residual blocks in stages 1 and 2 and in each stage of P.
        branch_blocks: residual blocks in stages 3 and 4 of I.
        light: parallel pyramid, light merge and narrow D branch (S and M), or the full ones (L).
        dropout: share of channels that both heads drop before their last layer while training.
    """

    num_aux = 1
    has_boundary = True
    align_corners = True
    training_only = ("aux_head", "boundary_head")

    def __init__(
        self,
        num_classes: int,
        *,
        base_channels: int = 32,
        context_channels: int = 96,
        head_channels: int = 128,
        stem_blocks: int = 2,
        branch_blocks: int = 3,
        light: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(num_classes)
        c = base_channels
        self.stem = Stem(c)
        self.stage1 = basic_stage(c, c, stem_blocks)
        self.stage2 = basic_stage(c, 2 * c, stem_blocks, 2)

        # I: context
        self.stage3 = basic_stage(2 * c, 4 * c, branch_blocks, 2)
        self.stage4 = basic_stage(4 * c, 8 * c, branch_blocks, 2)
        self.stage5 = nn.Sequential(Bottleneck(8 * c, 8 * c, 2), Bottleneck(16 * c, 8 * c))
        pyramid = PAPPM if light else DAPPM
        self.context = pyramid(16 * c, context_channels, 4 * c)

        # P: details
        self.detail3 = basic_stage(2 * c, 2 * c, stem_blocks)
        self.detail4 = basic_stage(2 * c, 2 * c, stem_blocks)
        self.detail5 = Bottleneck(2 * c, 2 * c)
        self.compress3 = ConvBN(4 * c, 2 * c, 1)
        self.compress4 = ConvBN(8 * c, 2 * c, 1)
        self.guide3 = PixelGuide(2 * c, c)
        self.guide4 = PixelGuide(2 * c, c)

        # D: boundaries
        width = c if light else 2 * c
        self.boundary3 = BasicBlock(2 * c, width, last_act=False)
        self.boundary4 = Bottleneck(c, c) if light else BasicBlock(2 * c, 2 * c, last_act=False)
        self.boundary5 = Bottleneck(2 * c, 2 * c)
        self.difference3 = ConvBN(4 * c, width, 3)
        self.difference4 = ConvBN(8 * c, 2 * c, 3)

        self.merge = (LightBoundaryMerge if light else BoundaryMerge)(4 * c, 4 * c)
        self.head = SegHead(4 * c, head_channels, num_classes, dropout=dropout)
        self.aux_head = SegHead(2 * c, head_channels, num_classes, dropout=dropout)
        self.boundary_head = SegHead(2 * c, c, 1)
        kaiming_init(self, "fan_out")

    def forward(self, x: Tensor) -> Tensor:
        return self._features(x)[0]

    def forward_train(self, x: Tensor) -> TrainOutputs:
        logits, p, d = self._features(x)
        return TrainOutputs(logits, (self.aux_head(p),), self.boundary_head(d))

    def _features(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, and the features of P and D that the two training heads read.

        Both are taken after their ReLU: the published training code applies it in place to the
        tensors it had set aside, so the published heads were trained on rectified features.
        """
        x = F.relu(self.stage1(self.stem(x)), inplace=True)
        x8 = F.relu(self.stage2(x), inplace=True)

        i16 = F.relu(self.stage3(x8), inplace=True)
        p3 = F.relu(self.guide3(self.detail3(x8), self.compress3(i16)), inplace=True)
        d = self.boundary3(x8)
        d += resize_like(self.difference3(i16), d)

        i32 = F.relu(self.stage4(i16), inplace=True)
        p = F.relu(self.guide4(self.detail4(p3), self.compress4(i32)), inplace=True)
        d = self.boundary4(F.relu(d, inplace=True))
        d += resize_like(self.difference4(i32), d)
        d4 = F.relu(d, inplace=True)

        i64 = self.context(self.stage5(i32))
        p, d = self.detail5(p), self.boundary5(d4)
        return self.head(self.merge(p, resize_like(i64, p), d)), p3, d4


VARIANTS = {
    "pidnet_s": {},
    "pidnet_m": {"base_channels": 64},
    "pidnet_l": {
        "base_channels": 64,
        "context_channels": 112,
        "head_channels": 256,
        "stem_blocks": 3,
        "branch_blocks": 4,
        "light": False,
    },
}
register(PIDNet, VARIANTS)
