"""BiSeNet V2: bilateral network with guided aggregation (IJCV 2021).

Paper: arXiv 2004.02147; the published weights are those of mmsegmentation (Apache-2.0).
    detail        N, 3, H, W -> N, 128, H/8, W/8: eight 3x3 convolutions (Table 1)
    semantic      stem and gather-and-expansion stages: strides 4, 8, 16, 32 of 16, 32, 64, 128
                  channels, then context embedding
    aggregation   each branch gates the other (Fig. 6): N, 128, H/8, W/8
    head          logits N, classes, H/8, W/8
Differs from the paper: a ReLU follows the depthwise convolutions, BN and ReLU the last convolution
of the context embedding. Fresh auxiliary classifiers start as the main one, which mmsegmentation
leaves to torch's default. Any input size passes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import SegModel, TrainOutputs
from .errors import InputError
from .layers.conv import ConvBN, ConvBNReLU
from .layers.head import FCNHead
from .layers.init import classifier_init, kaiming_init
from .layers.resize import resize_like
from .registry import register


class SemanticStem(nn.Module):
    """Stem block (Fig. 5a): N, 3, H, W to N, channels, H/4, W/4 by a convolution and a pooling."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = ConvBNReLU(3, channels, 3, 2)
        self.left = nn.Sequential(
            ConvBNReLU(channels, channels // 2, 1), ConvBNReLU(channels // 2, channels, 3, 2)
        )
        self.right = nn.MaxPool2d(3, 2, 1)
        self.merge = ConvBNReLU(2 * channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.merge(torch.cat((self.left(x), self.right(x)), 1))


class GatherExpansion(nn.Module):
    """GE layer (Fig. 5b, c): 3x3, depthwise 3x3 with `expansion`, 1x1, and a shortcut."""

    def __init__(
        self, in_channels: int, channels: int, stride: int = 1, *, expansion: int = 6
    ) -> None:
        super().__init__()
        middle = in_channels * expansion
        self.conv1 = ConvBNReLU(in_channels, in_channels, 3)
        if stride == 1:
            self.expand = ConvBNReLU(in_channels, middle, 3, groups=in_channels)
            self.shortcut = nn.Identity()
        else:
            self.expand = nn.Sequential(
                ConvBN(in_channels, middle, 3, stride, groups=in_channels),
                ConvBNReLU(middle, middle, 3, groups=middle),
            )
            self.shortcut = nn.Sequential(
                ConvBN(in_channels, in_channels, 3, stride, groups=in_channels),
                ConvBN(in_channels, channels, 1),
            )
        self.conv2 = ConvBN(middle, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.expand(self.conv1(x)))
        return F.relu(y + self.shortcut(x), inplace=True)


class ContextEmbedding(nn.Module):
    """CE block (Fig. 5d): the global mean added to every pixel, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv1 = ConvBNReLU(channels, channels, 1)
        self.conv2 = ConvBNReLU(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3), keepdim=True)
        return self.conv2(x + self.conv1(self.norm(mean)))


class GuidedAggregation(nn.Module):
    """BGA layer (Fig. 6): detail N, C, h, w and semantic N, C, h/4, w/4 to N, C, h, w."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        c = channels
        self.detail = nn.Sequential(ConvBN(c, c, 3, groups=c), nn.Conv2d(c, c, 1))
        self.detail_down = nn.Sequential(ConvBN(c, c, 3, 2), nn.AvgPool2d(3, 2, 1))
        self.semantic = nn.Sequential(ConvBN(c, c, 3, groups=c), nn.Conv2d(c, c, 1))
        self.semantic_up = ConvBN(c, c, 3)
        self.conv = ConvBNReLU(c, c, 3)

    def forward(self, detail: Tensor, semantic: Tensor) -> Tensor:
        gate = torch.sigmoid(resize_like(self.semantic_up(semantic), detail))
        fine = self.detail(detail) * gate
        coarse = self.detail_down(detail) * torch.sigmoid(self.semantic(semantic))
        return self.conv(fine + resize_like(coarse, fine))


class BiSeNetV2(SegModel):
    """The bilateral network; its four booster heads exist in training only.

    Args:
        num_classes: classes of the main and auxiliary heads.
        base_channels: of the detail branch, which ends in twice as many; the semantic branch has
            a quarter, half, once and twice as many at its strides.
        head_channels: width inside the main head.
        expansion: of the gather-and-expansion layers.
    """

    num_aux = 4
    training_only = ("aux_heads",)

    def __init__(
        self,
        num_classes: int,
        *,
        base_channels: int = 64,
        head_channels: int = 1024,
        expansion: int = 6,
    ) -> None:
        super().__init__(num_classes)
        c = base_channels
        if c < 8:
            raise InputError(f"base_channels is {c}; at least 8 are needed by the semantic stem")
        self.detail = nn.Sequential(
            nn.Sequential(ConvBNReLU(3, c, 3, 2), ConvBNReLU(c, c, 3)),
            nn.Sequential(ConvBNReLU(c, c, 3, 2), ConvBNReLU(c, c, 3), ConvBNReLU(c, c, 3)),
            nn.Sequential(
                ConvBNReLU(c, 2 * c, 3, 2), ConvBNReLU(2 * c, 2 * c, 3), ConvBNReLU(2 * c, 2 * c, 3)
            ),
        )
        widths = (c // 4, c // 2, c, 2 * c)
        self.stem = SemanticStem(widths[0])
        self.stages = nn.ModuleList(
            nn.Sequential(
                GatherExpansion(w_in, w, 2, expansion=expansion),
                *(GatherExpansion(w, w, expansion=expansion) for _ in range(repeats)),
            )
            for w_in, w, repeats in zip(widths[:-1], widths[1:], (1, 1, 3), strict=True)
        )
        self.embedding = ContextEmbedding(2 * c)
        self.aggregation = GuidedAggregation(2 * c)
        self.head = FCNHead(2 * c, head_channels, num_classes)
        self.aux_heads = nn.ModuleList(
            FCNHead(w, w_head, num_classes, depth=2)
            for w, w_head in zip(widths, (c // 4, c, 4 * c, 16 * c), strict=True)
        )
        kaiming_init(self, "fan_out")
        classifier_init(self)

    def forward(self, x: Tensor) -> Tensor:
        return self._features(x)[0]

    def forward_train(self, x: Tensor) -> TrainOutputs:
        logits, features = self._features(x)
        aux = (head(f) for head, f in zip(self.aux_heads, features, strict=True))
        return TrainOutputs(logits, tuple(aux))

    def _features(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits, and the semantic branch at strides 4 to 32, which the auxiliary heads read."""
        semantic = [self.stem(x)]
        for stage in self.stages:
            semantic.append(stage(semantic[-1]))
        merged = self.aggregation(self.detail(x), self.embedding(semantic[-1]))
        return self.head(merged), semantic


register(BiSeNetV2, {"bisenetv2": {}})
