"""RTLinearFormer: dual-resolution segmentation with two linear attentions.

Paper: Gu, Fu, Song, Wang, Chen. "RTLinearFormer: Semantic segmentation with lightweight linear
attentions". Neurocomputing, 2025, 129489. No code, configuration or weights have been published:
this is a re-implementation from the published description, and what the description leaves open
is a constructor argument here.

Skeleton of RTFormer (arXiv 2210.07124) at width c: a stem and three stages of BasicBlocks (c, 2c,
4c), then a high-resolution branch (1/8, 2c) beside a low-resolution branch (1/16 to 1/32, 8c).
Stages 4 and 5 are blocks of two attentions whose cost is linear in the number of tokens:

- low resolution: multi-scale tokens as in EfficientViT (arXiv 2205.14756), focused as in FLatten
  Transformer (ICCV 2023), attention between channels as in XCiT (arXiv 2106.09681);
- high resolution: ReLU linear attention to the tokens of the low-resolution branch.
"""

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.base import SegModel, TrainOutputs
from models.layers.context import DAPPM
from models.layers.conv import ConvBN, NormConv
from models.layers.drop_path import DropPath
from models.layers.head import SegHead
from models.layers.init import kaiming_init
from models.layers.residual import BasicBlock, basic_stage
from models.layers.resize import resize_like
from models.layers.stem import Stem
from models.registry import register

EPS = 1e-6


def focus(x: Tensor, power: float) -> Tensor:
    """Channel feature focusing of non-negative `x`: ..., head_dim, tokens.

    x**power, rescaled so that the norm over the channels of every token is kept: the direction
    moves towards its strongest channels. The power is taken of unit vectors, because the cube of
    a plain activation above 40 is beyond the range of float16.
    """
    norm = torch.linalg.vector_norm(x, dim=-2, keepdim=True, dtype=torch.float32)
    unit = x / norm.clamp_min(EPS).to(x.dtype)
    sharp = unit * unit * unit if power == 3 else unit.pow(power)
    length = torch.linalg.vector_norm(sharp, dim=-2, keepdim=True, dtype=torch.float32)
    return sharp * (norm / length.clamp_min(EPS)).to(x.dtype)


def without_autocast(device: str) -> AbstractContextManager:
    """Full precision inside; no trace of it in a graph exported without autocast."""
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def apply_matrix(matrix: Tensor, x: Tensor) -> Tensor:
    """Per-image 1x1 convolution: N, out, in applied to N, in, h, w, in the memory layout of x."""
    matrix, tokens = matrix.to(x.dtype), x.flatten(2)
    if x.is_contiguous(memory_format=torch.channels_last):
        y = (tokens.transpose(1, 2) @ matrix.transpose(1, 2)).transpose(1, 2)
    else:
        y = matrix @ tokens
    return y.unflatten(2, x.shape[2:])


class MixConv(ConvBN):
    """1x1 ConvBN behind per-image matrices that mix the channels of every head.

    W (A x) = (W A) x: the matrices go into the weight, so the tokens are touched once.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x: Tensor, mix: Tensor) -> Tensor:
        """x: N, heads * dim, h, w; mix: N, heads, dim, dim, rows are the outputs."""
        weight = self.conv.weight[:, :, 0, 0].unflatten(1, mix.shape[1:3])
        matrix = torch.einsum("ohi,nhij->nohj", weight.to(mix.dtype), mix).flatten(2)
        y = apply_matrix(matrix, x)
        if self.conv.bias is not None:
            y = y + self.conv.bias[:, None, None].to(y.dtype)
        return self.norm(y)

    def fuse(self) -> "MixConv":
        """The same without its norm."""
        fused = copy.deepcopy(self)
        fused.conv, fused.norm = super().fuse(), nn.Identity()
        return fused


class ChannelAttention(nn.Module):
    """Channel-wise multi-scale attention with channel feature focusing (low resolution).

    A head compares its `head_dim` channels with one another over all tokens (cross-covariance),
    so time and memory are linear in the number of tokens. Every scale beside the plain tokens
    brings `channels` further ones, taken as more heads.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: int,
        *,
        stride: int = 1,
        head_dim: int = 16,
        scales: Sequence[int] = (3, 5),
        power: float = 3,
    ) -> None:
        super().__init__()
        heads = channels // head_dim
        self.head_dim, self.power = head_dim, power
        self.qkv = NormConv(in_channels, 3 * channels, stride)
        self.scales = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(
                    3 * channels, 3 * channels, s, padding=s // 2, groups=3 * channels, bias=False
                ),
                nn.Conv2d(3 * channels, 3 * channels, 1, groups=3 * heads, bias=False),
            )
            for s in scales
        )
        self.temperature = nn.Parameter(torch.ones((1 + len(scales)) * heads, 1, 1))
        self.project = MixConv((1 + len(scales)) * channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        plain = self.qkv(x)
        parts = [u.chunk(3, 1) for u in (plain, *(scale(plain) for scale in self.scales))]
        q, k, v = (torch.cat(group, 1) for group in zip(*parts, strict=True))
        return self.project(v, self.attention(q, k))

    def attention(self, q: Tensor, k: Tensor) -> Tensor:
        """softmax(temperature * cosine(q_i, k_j)) over j: N, heads, head_dim, head_dim.

        The L2 normalisation along the tokens is applied to the small matrix. Tokens are scaled by
        1 / sqrt(tokens) so that no sum over them leaves the range of float16.
        """
        q, k = (
            focus(F.relu(u).flatten(2).unflatten(1, (-1, self.head_dim)), self.power)
            for u in (q, k)
        )
        scale = q.shape[-1] ** -0.5
        q, k = q * scale, k * scale
        product = (q @ k.transpose(-1, -2)).float()
        q_norm, k_norm = (
            torch.linalg.vector_norm(u, dim=-1, dtype=torch.float32).clamp_min(EPS) for u in (q, k)
        )
        cosine = product / (q_norm[..., :, None] * k_norm[..., None, :])
        return torch.softmax(self.temperature * cosine, -1)


class CrossAttention(nn.Module):
    """Cross-resolution ReLU linear attention: high-resolution queries, low-resolution keys.

    out_i = phi(q_i)^T (sum_j phi(k_j) v_j^T) / (phi(q_i)^T sum_j phi(k_j)), phi = ReLU.
    """

    def __init__(
        self, high_channels: int, low_channels: int, *, head_dim: int = 16, kv_pool_size: int = 0
    ) -> None:
        super().__init__()
        self.head_dim, self.kv_pool_size = head_dim, kv_pool_size
        self.query = NormConv(high_channels, high_channels)
        self.key_value = NormConv(low_channels, 2 * high_channels)
        self.project = MixConv(high_channels, high_channels)

    def forward(self, high: Tensor, low: Tensor) -> Tensor:
        if self.kv_pool_size:
            # Differs from RTFormer: mean instead of maximum, as the attention sums over tokens.
            low = F.adaptive_avg_pool2d(low, self.kv_pool_size)
        q = F.relu(self.query(high), inplace=True)
        state, total = self.summary(self.key_value(low))
        heads = total.shape[1]
        eye = torch.eye(heads, dtype=total.dtype, device=total.device)
        sums = apply_matrix((eye[:, :, None] * total[:, None]).flatten(2), q)  # N, heads, h, w
        inverse = (1.0 / (sums.float() + EPS)).to(q.dtype)
        q = (q.unflatten(1, (heads, self.head_dim)) * inverse[:, :, None]).flatten(1, 2)
        return self.project(q, state)

    def summary(self, kv: Tensor) -> tuple[Tensor, Tensor]:
        """sum_j v_j phi(k_j)^T and sum_j phi(k_j) in float32, both over the mean of the latter.

        Returns: N, heads, head_dim, head_dim and N, heads, head_dim.
        """
        with without_autocast(kv.device.type):
            k, v = kv.float().flatten(2).unflatten(1, (2, -1, self.head_dim)).unbind(1)
            k = F.relu(k)
            total = k.mean(-1)
            state = v @ k.transpose(-1, -2) / k.shape[-1]
            scale = 1.0 / total.mean(-1).clamp_min(EPS)
        return state * scale[..., None, None], total * scale[..., None]


class ConvFeedForward(nn.Sequential):
    """Two 3x3 convolutions; `expansion` is the inner width over the outer."""

    def __init__(self, channels: int, expansion: float) -> None:
        inner = round(channels * expansion)
        super().__init__(
            ConvBN(channels, inner, 3), nn.ReLU(inplace=True), ConvBN(inner, channels, 3)
        )


class InvertedBottleneck(nn.Sequential):
    """1x1 to `expansion` times the width, depthwise 3x3, 1x1 back."""

    def __init__(self, channels: int, expansion: float) -> None:
        inner = round(channels * expansion)
        super().__init__(
            ConvBN(channels, inner, 1),
            nn.ReLU(inplace=True),
            ConvBN(inner, inner, 3, groups=inner),
            nn.ReLU(inplace=True),
            ConvBN(inner, channels, 1),
        )


FEED_FORWARDS = {"conv": ConvFeedForward, "inverted": InvertedBottleneck}


class LinearFormerBlock(nn.Module):
    """One stage of both branches: N, high, H, W and N, low_in, h, w to the same with `low_out`.

    The low branch halves its resolution where its width changes.
    """

    def __init__(
        self,
        high: int,
        low_in: int,
        low_out: int,
        *,
        attention: dict,
        cross: dict,
        feed_forward: type[nn.Module],
        expansion: float,
        drop_path: float,
        low_to_high: bool,
        high_to_low: bool,
    ) -> None:
        super().__init__()
        stride = 1 if low_in == low_out else 2
        self.low_shortcut = NormConv(low_in, low_out, 2) if stride == 2 else nn.Identity()
        self.low_attention = ChannelAttention(low_in, low_out, stride=stride, **attention)
        self.low_feed_forward = feed_forward(low_out, expansion)
        self.low_to_high = ConvBN(low_out, high, 1) if low_to_high else None
        self.high_attention = CrossAttention(high, low_out, **cross)
        self.high_feed_forward = feed_forward(high, expansion)
        self.high_to_low = None
        if high_to_low:
            self.high_to_low = nn.Sequential(
                ConvBN(high, 2 * high, 3, 2),
                nn.ReLU(inplace=True),
                ConvBN(2 * high, low_out, 3, 2),
            )
        self.drop = DropPath(drop_path)

    def forward(self, high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
        low = self.low_shortcut(low) + self.drop(self.low_attention(low))
        low = low + self.drop(self.low_feed_forward(low))
        if self.low_to_high is not None:
            high = high + resize_like(self.low_to_high(low), high)
        high = high + self.drop(self.high_attention(high, low))
        high = high + self.drop(self.high_feed_forward(high))
        if self.high_to_low is not None:
            low = low + self.high_to_low(high)
        return high, low


class RTLinearFormer(SegModel):
    """RTLinearFormer; any input size.

    Args:
        num_classes: classes of both heads.
        base_channels: width c of the stem.
        feed_forward: "inverted" (1x1, depthwise 3x3, 1x1) or "conv" (two 3x3).
        expansion: inner width of the feed-forward over its outer width.
        attention_channels: channels D of query, key and value per scale (low resolution).
        attention_head_dim: channels of a head of the channel-wise attention.
        scales: odd kernel sizes of the token scales beside the plain tokens.
        focus_power: exponent p of the channel feature focusing.
        cross_head_dim: channels of a head of the cross-resolution attention.
        kv_pool_size: side of the pooled key/value grid; 0 keeps the low-resolution grid.
        head_channels, aux_channels, context_channels: inner widths of both heads and of DAPPM.
        low_to_high, high_to_low: for stages 4 and 5, whether the branches are also added.
        drop_path: rate of all residual branches of stages 4 and 5.
    """

    num_aux = 1
    training_only = ("aux_head",)

    def __init__(
        self,
        num_classes: int,
        *,
        base_channels: int = 64,
        feed_forward: str = "inverted",
        expansion: float = 2.0,
        attention_channels: int = 128,
        attention_head_dim: int = 16,
        scales: Sequence[int] = (3, 5),
        focus_power: float = 3,
        cross_head_dim: int = 16,
        kv_pool_size: int = 0,
        head_channels: int = 128,
        aux_channels: int = 128,
        context_channels: int = 128,
        low_to_high: tuple[bool, bool] = (True, True),
        high_to_low: tuple[bool, bool] = (True, False),
        drop_path: float = 0.1,
    ) -> None:
        super().__init__(num_classes)
        c = base_channels
        self.stem = Stem(c, bias=False)
        self.stage1 = basic_stage(c, c, 2)
        self.stage2 = basic_stage(c, 2 * c, 2, 2)
        self.stage3 = basic_stage(2 * c, 4 * c, 2, 2)
        self.low_to_high3 = ConvBN(4 * c, 2 * c, 1)
        self.detail3 = BasicBlock(2 * c, 2 * c)
        common = {
            "attention": {
                "channels": attention_channels,
                "head_dim": attention_head_dim,
                "scales": scales,
                "power": focus_power,
            },
            "cross": {"head_dim": cross_head_dim, "kv_pool_size": kv_pool_size},
            "feed_forward": FEED_FORWARDS[feed_forward],
            "expansion": expansion,
            "drop_path": drop_path,
        }
        self.block4, self.block5 = (
            LinearFormerBlock(
                2 * c, low, 8 * c, low_to_high=low_to_high[i], high_to_low=high_to_low[i], **common
            )
            for i, low in enumerate((4 * c, 8 * c))
        )
        self.context = DAPPM(8 * c, context_channels, 2 * c)
        self.head = nn.Sequential(
            ConvBN(4 * c, head_channels, 3),
            nn.ReLU(inplace=True),
            nn.Conv2d(head_channels, num_classes, 1),
        )
        self.aux_head = SegHead(2 * c, aux_channels, num_classes)
        kaiming_init(self, "fan_in")

    def forward(self, x: Tensor) -> Tensor:
        return self._features(x)[0]

    def forward_train(self, x: Tensor) -> TrainOutputs:
        logits, high = self._features(x)
        return TrainOutputs(logits, (self.aux_head(high),))

    def _features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Main logits and the high-resolution output of stage 3, which the aux head reads."""
        x = F.relu(self.stage1(self.stem(x)), inplace=True)  # 1/4
        x8 = self.stage2(x)
        low = F.relu(self.stage3(F.relu(x8)), inplace=True)  # 1/16
        high3 = self.detail3(F.relu(x8 + resize_like(self.low_to_high3(low), x8)))
        high, low = self.block4(high3, low)
        high, low = self.block5(F.relu(high), F.relu(low))
        context = resize_like(self.context(low), high)
        return self.head(torch.cat((high, context), 1)), high3


VARIANTS = {
    "rtlinearformer_base": {"base_channels": 64},
    "rtlinearformer_slim": {
        "base_channels": 32,
        "attention_channels": 64,
        "head_channels": 64,
        "aux_channels": 64,
    },
}

register(RTLinearFormer, VARIANTS, {"rtlinearformer": "rtlinearformer_base"})
