"""RTLinearFormer: dual-resolution segmentation with two linear attentions.

Paper: Gu, Fu, Song, Wang, Chen. "RTLinearFormer: Semantic segmentation with lightweight linear
attentions". Neurocomputing, 2025, 129489. No code, configuration or weights have been published:
this is a re-implementation from the published description; what that leaves open is an argument.

Skeleton of RTFormer (arXiv 2210.07124) at width c: a stem and three stages of BasicBlocks (c, 2c,
4c), then a high-resolution branch (1/8, 2c) beside a low-resolution one (1/16 to 1/32, 8c), where
stages 4 and 5 hold two attentions of a cost linear in the tokens. Low: multi-scale tokens as in
EfficientViT (arXiv 2205.14756), focused as in FLatten Transformer (arXiv 2308.00442), attention
between channels as in XCiT (arXiv 2106.09681). High: ReLU linear attention to the low tokens.
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import SegModel, TrainOutputs
from .errors import InputError
from .layers.context import DAPPM
from .layers.conv import ConvBN, NormConv
from .layers.drop_path import DropPath
from .layers.head import SegHead
from .layers.init import kaiming_init
from .layers.residual import basic_stage
from .layers.resize import resize_like
from .layers.stem import Stem
from .registry import register

EPS = 1e-4  # 1 / EPS still fits float16


def focus(x: Tensor, power: float, *, bounded: bool = False) -> Tensor:
    """Channel feature focusing of non-negative `x`: ..., head_dim, tokens.

    x**power, rescaled so that the norm over the channels of every token is kept: the direction
    moves towards its strongest channels. Tokens are divided by their strongest channel first; it
    cancels in the rescaling, and float16 could not hold the cube of an activation above 40.
    `bounded`: divided per head so that products summed over the tokens stay below head_dim.
    """
    peak = x.detach().amax(-2, keepdim=True).clamp_min(EPS)
    unit = x / peak
    square = unit * unit
    sharp = square * unit if power == 3 else unit.pow(power)
    # Both sums are at least 1 where any channel is active; a dead token stays zero.
    length = square.sum(-2, keepdim=True).clamp_min(EPS)
    sharp_length = (sharp * sharp).sum(-2, keepdim=True).clamp_min(EPS)
    scale = peak / peak.amax(-1, keepdim=True) * x.shape[-1] ** -0.5 if bounded else peak
    return sharp * (scale * (length / sharp_length).sqrt())


def apply_matrix(matrix: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """1x1 convolution of N, in, h, w by a matrix per image (N or 1, out, in), in x's layout."""
    matrix, tokens = matrix.to(x.dtype), x.flatten(2)
    if not x.is_contiguous(memory_format=torch.channels_last):
        y = matrix @ tokens
    elif x.shape[0] == 1:
        return F.conv2d(x, matrix[0, :, :, None, None], bias)
    else:
        y = (tokens.transpose(1, 2) @ matrix.transpose(1, 2)).transpose(1, 2)
    if bias is not None:
        y += bias[:, None]
    return y.unflatten(2, x.shape[2:])


class MixConv(ConvBN):
    """1x1 ConvBN behind matrices that mix the channels of every head, per image.

    W (A x) = (W A) x: the matrices go into the weight, so the tokens are touched once.
    """

    def forward(self, x: Tensor, mix: Tensor) -> Tensor:
        """x: N, heads * dim, h, w; mix: N, heads, dim, dim, rows are the outputs."""
        weight = self.conv.weight[:, :, 0, 0].unflatten(1, mix.shape[1:3])
        matrix = torch.einsum("ohi,nhij->nohj", weight.to(mix.dtype), mix).flatten(2)
        return self.norm(apply_matrix(matrix, x, self.conv.bias))

    def fuse(self) -> "MixConv":
        """The same without its norm."""
        fused = copy.deepcopy(self)
        fused.conv, fused.norm = super().fuse(), nn.Identity()
        return fused


class ChannelAttention(nn.Module):
    """Channel-wise multi-scale attention with channel feature focusing (low resolution).

    A head compares its `head_dim` channels with one another over all tokens (cross-covariance).
    Every scale beside the plain tokens brings `channels` further ones, taken as more heads.
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
        heads, width = channels // head_dim, 3 * channels
        self.head_dim, self.power = head_dim, power
        self.qkv = NormConv(in_channels, width, stride)
        self.scales = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, s, padding=s // 2, groups=width, bias=False),
                nn.Conv2d(width, width, 1, groups=3 * heads, bias=False),
            )
            for s in scales
        )
        self.temperature = nn.Parameter(torch.ones((1 + len(scales)) * heads, 1, 1))
        self.project = MixConv((1 + len(scales)) * channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        plain = self.qkv(x)
        parts = [u.chunk(3, 1) for u in (plain, *(scale(plain) for scale in self.scales))]
        q, k, v = zip(*parts, strict=True)
        # Queries and keys as N, channels, tokens: the reductions then read along memory.
        qk = torch.cat([u.flatten(2) for u in (*q, *k)], 1)
        return self.project(torch.cat(v, 1), self.attention(qk))

    def attention(self, qk: Tensor) -> Tensor:
        """softmax(temperature * cosine(q_i, k_j)) over j: N, heads, head_dim, head_dim.

        qk: N, 2 * channels, tokens; overwritten. The tokens' L2 norms divide the small matrix.
        """
        qk = F.relu(qk, inplace=True).unflatten(1, (2, -1, self.head_dim))
        qk = focus(qk, self.power, bounded=True)
        norm = torch.linalg.vector_norm(qk, dim=-1, dtype=torch.float32).clamp_min(EPS)
        q, k = qk.unbind(1)  # N, heads, head_dim, tokens
        q_norm, k_norm = norm.unbind(1)
        cosine = q @ k.transpose(-1, -2) / q_norm[..., :, None] / k_norm[..., None, :]
        return torch.softmax(self.temperature * cosine, -1)


class CrossAttention(nn.Module):
    """Cross-resolution ReLU linear attention: high-resolution queries, low-resolution keys.

    out_i = phi(q_i)^T (sum_j phi(k_j) v_j^T) / (phi(q_i)^T sum_j phi(k_j)), phi = ReLU.
    """

    def __init__(
        self, high_channels: int, low_channels: int, *, head_dim: int = 16, kv_pool_size: int = 0
    ) -> None:
        super().__init__()
        self.heads, self.kv_pool_size = high_channels // head_dim, kv_pool_size
        self.query = NormConv(high_channels, high_channels)
        self.key_value = NormConv(low_channels, 2 * high_channels)
        self.project = MixConv(high_channels, high_channels, 1)
        spread = torch.eye(self.heads).repeat_interleave(head_dim, 0)  # channels, heads: 0 or 1
        self.register_buffer("spread", spread, persistent=False)

    def forward(self, high: Tensor, low: Tensor) -> Tensor:
        if self.kv_pool_size:
            # Differs from RTFormer: mean instead of maximum, as the attention sums over tokens.
            low = F.adaptive_avg_pool2d(low, self.kv_pool_size)
        q = F.relu(self.query(high), inplace=True)
        state, total = self.summary(self.key_value(low))
        sums = apply_matrix(self.spread.t() * total.flatten(1)[:, None], q)  # N, heads, h, w
        inverse = (1.0 / (sums.float() + EPS)).to(q.dtype)
        # Spreading over the channels of a head by a matrix beats broadcasting in half precision.
        inverse = apply_matrix(self.spread[None], inverse)
        return self.project(inverse.mul_(q), state)

    def summary(self, kv: Tensor) -> tuple[Tensor, Tensor]:
        """sum_j v_j phi(k_j)^T (N, heads, dim, dim) and sum_j phi(k_j) (N, heads, dim) in float32.

        Both over the mean of the latter: the quotient is the same, and float16 holds them.
        """
        k, v = kv.float().flatten(2).unflatten(1, (2, self.heads, -1)).unbind(1)
        k, device = F.relu(k), k.device.type
        mixed = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        with torch.autocast(device, enabled=False) if mixed else nullcontext():
            total = k.mean(-1)
            state = v @ k.transpose(-1, -2) / k.shape[-1]
            scale = 1.0 / total.mean(-1, keepdim=True).clamp_min(EPS)
        return state * scale[..., None], total * scale


def make_feed_forward(kind: str, expansion: float, channels: int) -> nn.Sequential:
    """1x1, depthwise 3x3, 1x1 ("inverted") or two 3x3 ("conv"); `expansion` is inner to outer."""
    inner = round(channels * expansion)
    if kind == "inverted":
        depthwise = ConvBN(inner, inner, 3, groups=inner)
        convs = (ConvBN(channels, inner, 1), depthwise, ConvBN(inner, channels, 1))
    elif kind == "conv":
        convs = (ConvBN(channels, inner, 3), ConvBN(inner, channels, 3))
    else:
        raise InputError(f'feed_forward is {kind!r}; it must be "inverted" or "conv"')
    layers = [layer for conv in convs for layer in (conv, nn.ReLU(inplace=True))]
    return nn.Sequential(*layers[:-1])


class LinearFormerBlock(nn.Module):
    """One stage of both branches.

    high: N, high, h, w. low: N, low_out, ceil(h / 4), ceil(w / 4); where `low_in` differs from
    `low_out` the low input is twice as fine.
    Differs from RTFormer: norms stand behind the convolutions, where they fold; outputs are ReLUd.
    """

    def __init__(
        self,
        high: int,
        low_in: int,
        low_out: int,
        *,
        attention: Callable[..., nn.Module],
        cross: Callable[..., nn.Module],
        feed_forward: Callable[[int], nn.Module],
        low_to_high: bool,
        high_to_low: bool,
        drop_path: float,
    ) -> None:
        super().__init__()
        stride = 1 if low_in == low_out else 2
        self.low_shortcut = NormConv(low_in, low_out, 2) if stride == 2 else nn.Identity()
        self.low_attention = attention(low_in, low_out, stride=stride)
        self.low_feed_forward = feed_forward(low_out)
        self.low_to_high = ConvBN(low_out, high, 1) if low_to_high else None
        self.high_attention = cross(high, low_out)
        self.high_feed_forward = feed_forward(high)
        inject = (ConvBN(high, 2 * high, 3, 2), nn.ReLU(True), ConvBN(2 * high, low_out, 3, 2))
        self.high_to_low = nn.Sequential(*inject) if high_to_low else None
        self.drop = DropPath(drop_path)

    def forward(self, high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
        low = self.drop(self.low_attention(low)).add_(self.low_shortcut(low))
        low = self.drop(self.low_feed_forward(low)).add_(low)
        if self.low_to_high is not None:
            high = resize_like(self.low_to_high(low), high).add_(high)
        high = self.drop(self.high_attention(high, low)).add_(high)
        high = F.relu(self.drop(self.high_feed_forward(high)).add_(high), inplace=True)
        if self.high_to_low is not None:
            low = low + self.high_to_low(high)
        return high, F.relu(low)


class RTLinearFormer(SegModel):
    """The dual-resolution network; any input size.

    Args:
        num_classes: classes of both heads.
        base_channels: width c.
        feed_forward: "inverted" (1x1, depthwise 3x3, 1x1) or "conv" (two 3x3).
        expansion: inner width of the feed-forward over its outer width.
        attention_channels: channels D of query, key and value at each scale (low resolution).
        attention_head_dim, cross_head_dim: channels of a head of either attention.
        scales: odd kernel sizes of the further token scales; focus_power: exponent p.
        kv_pool_size: side of the pooled key/value grid; 0 keeps the low-resolution grid.
        head_channels, context_channels: inner widths of both heads and of DAPPM.
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
        context_channels: int = 128,
        low_to_high: tuple[bool, bool] = (True, True),
        high_to_low: tuple[bool, bool] = (True, False),
        drop_path: float = 0.1,
    ) -> None:
        super().__init__(num_classes)
        c = base_channels
        for width, dim in ((attention_channels, attention_head_dim), (2 * c, cross_head_dim)):
            if width % dim:
                raise InputError(f"{width} attention channels do not divide into heads of {dim}")
        self.stem = Stem(c, bias=False)
        self.stage1 = basic_stage(c, c, 2)
        self.stage2 = basic_stage(c, 2 * c, 2, 2)
        self.stage3 = basic_stage(2 * c, 4 * c, 2, 2)
        self.low_to_high3 = ConvBN(4 * c, 2 * c, 1)
        self.detail3 = basic_stage(2 * c, 2 * c, 1)
        common = {
            "attention": partial(
                ChannelAttention,
                channels=attention_channels,
                head_dim=attention_head_dim,
                scales=scales,
                power=focus_power,
            ),
            "cross": partial(CrossAttention, head_dim=cross_head_dim, kv_pool_size=kv_pool_size),
            "feed_forward": partial(make_feed_forward, feed_forward, expansion),
            "drop_path": drop_path,
        }
        self.block4, self.block5 = (
            LinearFormerBlock(2 * c, low, 8 * c, low_to_high=up, high_to_low=down, **common)
            for low, up, down in zip((4 * c, 8 * c), low_to_high, high_to_low, strict=True)
        )
        self.context = DAPPM(8 * c, context_channels, 2 * c)
        # Differs from RTFormer: no norm and ReLU in front, they could not be folded.
        self.head = nn.Sequential(
            ConvBN(4 * c, head_channels, 3),
            nn.ReLU(inplace=True),
            nn.Conv2d(head_channels, num_classes, 1),
        )
        self.aux_head = SegHead(2 * c, head_channels, num_classes)
        kaiming_init(self, "fan_in")
        # Residual branches start small: from scratch the loss falls faster so.
        for block in (self.block4, self.block5):
            attentions = (block.low_attention.project, block.high_attention.project)
            for last in (*attentions, block.low_feed_forward[-1], block.high_feed_forward[-1]):
                nn.init.constant_(last.norm.weight, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self._features(x)[0]

    def forward_train(self, x: Tensor) -> TrainOutputs:
        logits, high = self._features(x)
        return TrainOutputs(logits, (self.aux_head(high),))

    def _features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Main logits, and the high branch after stage 3, which the auxiliary head reads."""
        x = F.relu(self.stage1(self.stem(x)), inplace=True)  # 1/4
        x8 = self.stage2(x)
        low = F.relu(self.stage3(F.relu(x8)), inplace=True)  # 1/16
        high3 = self.detail3(F.relu(x8 + resize_like(self.low_to_high3(low), x8), inplace=True))
        high, low = self.block4(high3, low)
        high, low = self.block5(high, low)
        context = resize_like(self.context(low), high)
        return self.head(torch.cat((high, context), 1)), high3


VARIANTS = {
    "rtlinearformer_base": {},
    "rtlinearformer_slim": {"base_channels": 32, "attention_channels": 64, "head_channels": 64},
}
register(RTLinearFormer, VARIANTS, {"rtlinearformer": "rtlinearformer_base"})
