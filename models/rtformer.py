"""RTFormer: efficient design for real-time semantic segmentation with transformer (NeurIPS 2022).

Paper: arXiv 2210.07124; official code: PaddleSeg, paddleseg/models/rtformer.py (Apache-2.0).
    stem, stage1..stage3   N, 3, H, W -> low stream N, 4C, H/16, W/16
    detail3                high stream N, 2C, H/8, W/8
    block4, block5         RTFormer blocks: low stream to N, 8C, H/32, W/32, high stream as it is
    context                DAPPM on the low stream
    head                   logits N, classes, H/8, W/8 from [high, context]
Every stride rounds up, so any input size passes.
BatchNorm: eps 1e-5 (1e-6 in the feed-forwards); the published training updates the running
statistics with nine parts of the batch to one part of the past, which is torch momentum 0.9.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import SegModel, TrainOutputs
from .errors import InputError
from .layers.context import DAPPM
from .layers.conv import ConvBN, NormActConv, NormConv
from .layers.drop_path import DropPath
from .layers.head import SegHead
from .layers.init import kaiming_init
from .layers.residual import basic_stage
from .layers.resize import resize_like
from .layers.stem import Stem
from .registry import register

MOMENTUM = 0.9


class GroupedAttention(nn.Module):
    """GPU-friendly attention (Sec. 3.1): learned keys and values, double normalisation.

    The scores of N, out_channels, h, w are normalised over the positions (softmax), then over
    the channels of each of `num_heads` groups. Where the channel count changes, the grid halves.
    """

    def __init__(self, in_channels: int, out_channels: int, num_heads: int = 8) -> None:
        super().__init__()
        if out_channels % num_heads:
            raise InputError(f"{out_channels} channels do not split into num_heads={num_heads}")
        stride = 1 if in_channels == out_channels else 2
        self.keys = NormConv(in_channels, out_channels, stride, momentum=MOMENTUM)
        self.values = nn.Conv2d(out_channels, out_channels, 1, bias=False)
        self.num_heads = num_heads

    def forward(self, x: Tensor) -> Tensor:
        scores = self.keys(x)
        n, c, h, w = scores.shape
        a = (
            scores.flatten(2).softmax(-1).view(n, self.num_heads, -1, h * w)
        )  # N, heads, c/heads, hw
        a = a / (a.sum(2, keepdim=True) + 1e-6)
        return self.values(a.reshape(n, c, h, w))


class CrossAttention(nn.Module):
    """Cross-resolution attention (Sec. 3.2): every high-resolution pixel reads T tokens.

    x: N, C, h, w. tokens: N, 2C, t, t with T = t * t; keys, then values. One head; the scores
    are divided by sqrt(T), not by sqrt(C).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, momentum=MOMENTUM)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        key, value = (_tokens(part) for part in tokens.chunk(2, 1))  # N, 1, T, C each
        query = _tokens(self.norm(x))  # N, 1, h*w, C
        y = F.scaled_dot_product_attention(query, key, value, scale=key.shape[2] ** -0.5)
        return y.squeeze(1).transpose(1, 2).unflatten(2, x.shape[2:])


def _tokens(x: Tensor) -> Tensor:
    """N, C, h, w to N, 1, h*w, C, contiguous: the fused attention kernels ask for that."""
    return x.flatten(2).transpose(1, 2).contiguous().unsqueeze(1)


def max_pool_in_turn(x: Tensor, size: int) -> Tensor:
    """Adaptive maximum pooling of N, C, h, w to N, C, size, size, by operators of other runtimes.

    Equal to PyTorch's: the maximum over a window is that over its rows, then over its columns.
    Windows differ in length by one at most; the shorter ones take their last row twice.
    """
    for axis in (2, 3):
        length = x.shape[axis]
        windows = [(i * length // size, -((i + 1) * length // -size)) for i in range(size)]
        longest = max(last - first for first, last in windows)
        rows = [min(first + i, last - 1) for first, last in windows for i in range(longest)]
        x = x.index_select(axis, torch.tensor(rows, device=x.device))
        x = x.unflatten(axis, (size, longest)).amax(axis + 1)
    return x


class CrossTokens(nn.Module):
    """Keys and values of the cross attention: N, low, h, w to N, 2 * high, size, size."""

    def __init__(self, low_channels: int, high_channels: int, size: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(low_channels, momentum=MOMENTUM)
        self.pool = nn.AdaptiveMaxPool2d(size)
        self.conv = nn.Conv2d(low_channels, 2 * high_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        if torch.compiler.is_exporting():  # runtimes know no adaptive maximum
            return self.conv(max_pool_in_turn(x, self.pool.output_size))
        return self.conv(self.pool(x))


class FeedForward(nn.Module):
    """BN, 3x3 convolution, GELU, 3x3 convolution; no expansion."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, eps=1e-6, momentum=MOMENTUM)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.gelu(self.conv1(self.norm(x))))


class Injection(nn.Module):
    """High stream to the low one's grid: two pre-activated 3x3 convolutions of stride 2."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        middle = out_channels // 2
        self.norm = nn.BatchNorm2d(in_channels, momentum=MOMENTUM)
        self.conv1 = ConvBN(in_channels, middle, 3, 2, momentum=MOMENTUM)
        self.conv2 = nn.Conv2d(middle, out_channels, 3, 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(F.relu(self.norm(x), inplace=True))
        return self.conv2(F.relu(x, inplace=True))


class RTFormerBlock(nn.Module):
    """Fig. 2: attention and feed-forward on the low stream, then on the high one, then back.

    high: N, high_channels, h, w. low: N, low_channels, ceil(h / 4), ceil(w / 4); where
    `in_channels` differs from `low_channels` the block's low input is twice as fine.
    """

    def __init__(
        self,
        high_channels: int,
        in_channels: int,
        low_channels: int,
        *,
        num_heads: int = 8,
        cross_size: int = 12,
        injection: bool = True,
        drop_path: float = 0.2,
    ) -> None:
        super().__init__()
        self.low_shortcut = (
            nn.Identity()
            if in_channels == low_channels
            else NormConv(in_channels, low_channels, 2, momentum=MOMENTUM)
        )
        self.low_attention = GroupedAttention(in_channels, low_channels, num_heads)
        self.low_ffn = FeedForward(low_channels)
        self.low_to_high = NormActConv(low_channels, high_channels, 1, momentum=MOMENTUM)
        self.cross_tokens = CrossTokens(low_channels, high_channels, cross_size)
        self.high_attention = CrossAttention(high_channels)
        self.high_ffn = FeedForward(high_channels)
        self.injection = Injection(high_channels, low_channels) if injection else None
        self.drop_path = DropPath(drop_path)

    def forward(self, high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
        low = self.low_shortcut(low) + self.drop_path(self.low_attention(low))
        low = low + self.drop_path(self.low_ffn(low))
        high = high + resize_like(self.low_to_high(low), high)
        high = high + self.drop_path(self.high_attention(high, self.cross_tokens(low)))
        high = high + self.drop_path(self.high_ffn(high))
        if self.injection is not None:
            low = low + self.injection(high)
        return high, low


class RTFormer(SegModel):
    """The dual-resolution network.

    Args:
        num_classes: classes of both heads.
        base_channels: C of the table above.
        context_channels: width inside DAPPM.
        head_channels: width inside the auxiliary head; the main head has twice as many.
        cross_size: the cross attention reads cross_size x cross_size tokens.
        injection: for each block, whether the high stream is fed back into the low one.
        num_heads: channel groups of the second normalisation on the low stream.
        drop_path: rate of all eight residual branches of the blocks.
        dropout: share of channels that both heads drop before their last layer while training.
    """

    num_aux = 1
    training_only = ("aux_head",)
    lr_multipliers = {"context": 10.0, "head": 10.0, "aux_head": 10.0}  # noqa: RUF012

    def __init__(
        self,
        num_classes: int,
        *,
        base_channels: int = 32,
        context_channels: int = 128,
        head_channels: int = 64,
        cross_size: int = 12,
        injection: tuple[bool, bool] = (True, True),
        num_heads: int = 8,
        drop_path: float = 0.2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(num_classes)
        c, m = base_channels, MOMENTUM
        self.stem = Stem(c, momentum=m)
        self.stage1 = basic_stage(c, c, 2, momentum=m)
        self.stage2 = basic_stage(c, 2 * c, 2, 2, momentum=m)
        self.stage3 = basic_stage(2 * c, 4 * c, 2, 2, momentum=m)
        self.low_to_high3 = NormActConv(4 * c, 2 * c, 1, momentum=m)
        self.detail3 = basic_stage(2 * c, 2 * c, 1, momentum=m)

        shared = {"num_heads": num_heads, "cross_size": cross_size, "drop_path": drop_path}
        if len(injection) != 2:
            raise InputError(f"injection is {injection}; two flags are needed, one per block")
        inject4, inject5 = injection
        self.block4 = RTFormerBlock(2 * c, 4 * c, 8 * c, injection=inject4, **shared)
        self.block5 = RTFormerBlock(2 * c, 8 * c, 8 * c, injection=inject5, **shared)

        self.context = DAPPM(8 * c, context_channels, 2 * c, momentum=m)
        self.head = SegHead(4 * c, 2 * head_channels, num_classes, momentum=m, dropout=dropout)
        self.aux_head = SegHead(2 * c, head_channels, num_classes, momentum=m, dropout=dropout)
        self._init_weights()

    def _init_weights(self) -> None:
        kaiming_init(self, "fan_in")
        for block in (self.block4, self.block5):
            nn.init.normal_(block.low_attention.keys.conv.weight, std=0.001)
            nn.init.normal_(block.low_attention.values.weight, std=0.001)
            nn.init.trunc_normal_(block.cross_tokens.conv.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return self._features(x)[0]

    def forward_train(self, x: Tensor) -> TrainOutputs:
        logits, high3 = self._features(x)
        return TrainOutputs(logits, (self.aux_head(high3),))

    def _features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and the high stream after stage 3, which the auxiliary head reads."""
        x = F.relu(self.stage1(self.stem(x)), inplace=True)
        x8 = self.stage2(x)  # N, 2C, H/8, W/8
        x16 = self.stage3(F.relu(x8))  # N, 4C, H/16, W/16
        high = F.relu(x8 + resize_like(self.low_to_high3(x16), x8), inplace=True)
        high3 = self.detail3(high)

        # The streams are still needed by norms that read them, so these ReLUs are not in place.
        high, low = self.block4(high3, F.relu(x16))  # detail3 ends with a ReLU
        high, low = self.block5(F.relu(high), F.relu(low))
        context = resize_like(self.context(low), high)
        return self.head(torch.cat((high, context), 1)), high3


VARIANTS = {
    "rtformer_slim": {},
    "rtformer_base": {"base_channels": 64, "head_channels": 128, "injection": (True, False)},
}
register(RTFormer, VARIANTS)
