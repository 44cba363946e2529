"""BiSeNet: bilateral segmentation network for real-time semantic segmentation (ECCV 2018).

Paper: arXiv 1808.00897; the published weights are those of mmsegmentation (Apache-2.0).
    spatial     N, 3, H, W -> N, 128, H/8, W/8: three strided convolutions, wide and shallow
    context     ResNet-18, then attention refinement at strides 32 and 16 (Fig. 2)
                -> N, 128, H/8, W/8 and N, 128, H/16, W/16
    fusion      feature fusion of both paths: N, 256, H/8, W/8
    head        logits N, classes, H/8, W/8
Differs from the paper: the fusion's attention is one 1x1 convolution, not two. The context path
resizes with nearest neighbours. Fresh weights differ from mmsegmentation's: the last norm of a
residual block starts at 1 (there 0), auxiliary classifiers start as the main one. Any input size
passes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import SegModel, TrainOutputs
from .layers.conv import ConvBN, ConvBNReLU
from .layers.head import FCNHead
from .layers.init import classifier_init, kaiming_init
from .layers.residual import basic_stage
from .registry import register


class ResNet18(nn.Module):
    """ResNet-18 without its classifier: N, 3, H, W to features of strides 16 and 32."""

    def __init__(self, base_channels: int) -> None:
        super().__init__()
        c = base_channels
        self.stem = ConvBN(3, c, 7, 2)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.stage1 = basic_stage(c, c, 2, last_act=True)
        self.stage2 = basic_stage(c, 2 * c, 2, 2, last_act=True)
        self.stage3 = basic_stage(2 * c, 4 * c, 2, 2, last_act=True)
        self.stage4 = basic_stage(4 * c, 8 * c, 2, 2, last_act=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.pool(F.relu(self.stem(x), inplace=True))
        x16 = self.stage3(self.stage2(self.stage1(x)))
        return x16, self.stage4(x16)


class AttentionRefinement(nn.Module):
    """ARM (Fig. 2b): a 3x3 convolution, then every channel is weighed by its global mean."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = ConvBNReLU(in_channels, channels, 3)
        self.attention = ConvBN(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x * torch.sigmoid(self.attention(_mean(x)))


class ContextPath(nn.Module):
    """Backbone and refinement: N, 3, H, W to N, channels at strides 8 and 16."""

    def __init__(self, base_channels: int, channels: int) -> None:
        super().__init__()
        self.backbone = ResNet18(base_channels)
        self.refine16 = AttentionRefinement(4 * base_channels, channels)
        self.refine32 = AttentionRefinement(8 * base_channels, channels)
        self.tail = ConvBNReLU(8 * base_channels, channels, 1)
        self.conv16 = ConvBNReLU(channels, channels, 3)
        self.conv32 = ConvBNReLU(channels, channels, 3)

    def forward(self, x: Tensor, size: torch.Size) -> tuple[Tensor, Tensor]:
        """`size`: height and width of the spatial path's grid, at stride 8."""
        x16, x32 = self.backbone(x)
        x32 = self.refine32(x32) + self.tail(_mean(x32))
        context16 = self.conv32(F.interpolate(x32, size=x16.shape[-2:]))
        x16 = self.refine16(x16) + context16
        return self.conv16(F.interpolate(x16, size=size)), context16


class FeatureFusion(nn.Module):
    """FFM (Fig. 2c): both paths concatenated, then channels weighed by their global means."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = ConvBNReLU(in_channels, channels, 1)
        self.attention = ConvBNReLU(channels, channels, 1)

    def forward(self, spatial: Tensor, context: Tensor) -> Tensor:
        x = self.conv(torch.cat((spatial, context), 1))
        return x + x * torch.sigmoid(self.attention(_mean(x)))


def _mean(x: Tensor) -> Tensor:
    return x.mean((2, 3), keepdim=True)


class BiSeNetV1(SegModel):
    """The bilateral network with ResNet-18 as context path.

    Args:
        num_classes: classes of the main and auxiliary heads.
        base_channels: of the ResNet's stem and the spatial path; the paths end in twice as many.
        head_channels: width inside the main head and of the fused feature.
        aux_channels: width inside the auxiliary heads.
    """

    num_aux = 2
    training_only = ("aux_heads",)

    def __init__(
        self,
        num_classes: int,
        *,
        base_channels: int = 64,
        head_channels: int = 256,
        aux_channels: int = 64,
    ) -> None:
        super().__init__(num_classes)
        c = base_channels
        self.spatial = nn.Sequential(
            ConvBNReLU(3, c, 7, 2),
            ConvBNReLU(c, c, 3, 2),
            ConvBNReLU(c, c, 3, 2),
            ConvBNReLU(c, 2 * c, 1),
        )
        self.context = ContextPath(c, 2 * c)
        self.fusion = FeatureFusion(4 * c, head_channels)
        self.head = FCNHead(head_channels, head_channels, num_classes)
        self.aux_heads = nn.ModuleList(FCNHead(2 * c, aux_channels, num_classes) for _ in range(2))
        kaiming_init(self, "fan_out")
        classifier_init(self)

    def forward(self, x: Tensor) -> Tensor:
        return self._features(x)[0]

    def forward_train(self, x: Tensor) -> TrainOutputs:
        logits, *features = self._features(x)
        aux = (head(f) for head, f in zip(self.aux_heads, features, strict=True))
        return TrainOutputs(logits, tuple(aux))

    def _features(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, and the context at strides 8 and 16, which the auxiliary heads read."""
        spatial = self.spatial(x)
        context8, context16 = self.context(x, spatial.shape[-2:])
        return self.head(self.fusion(spatial, context8)), context8, context16


register(BiSeNetV1, {"bisenetv1_r18": {}})
