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
from .layers.conv import ConvBN, ConvBNReLU, NormActConv, NormConv
from .layers.drop_path import DropPath
from .layers.head import DroppedReLU, SegHead
from .layers.init import kaiming_init
from .layers.residual import basic_stage
from .layers.resize import resize_like
from .layers.stem import Stem
from .registry import register

EPS = 1e-4  # 1 / EPS still fits float16
TINY = 1e-22  # of the sums in `focus`
CONTEXT_CONVS = {"behind": ConvBNReLU, "front": NormActConv}


def widen(x: Tensor) -> Tensor:
    """`x` in float32, or as it is in float64."""
    return x if x.dtype == torch.float64 else x.float()


def focus(x: Tensor, power: float) -> Tensor:
    """Channel feature focusing of non-negative `x`: ..., head_dim, tokens; float32 or wider.

    x**power, rescaled so that the norm over the channels of every token is kept: the direction
    moves towards its strongest channels. A dead token stays zero, one below 2e-4 becomes smaller.
    At power 3 float32 holds activations up to a million.
    """
    square = x * x
    sharp = square * x if power == 3 else x.pow(power)
    # Gradients divide by the square of the second sum, which must not overflow.
    sums = (t.sum(-2, keepdim=True).clamp_min(TINY) for t in (square, sharp * sharp))
    return sharp * torch.div(*sums).sqrt()


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
        matrix = torch.einsum("ohi,nhij->nohj", weight, mix.to(weight.dtype)).flatten(2)
        return self.norm(apply_matrix(matrix, x, self.conv.bias))

    def fuse(self) -> "MixConv":
        """The same without its norm."""
        fused = copy.deepcopy(self)
        fused.conv, fused.norm = super().fuse(), nn.Identity()
        return fused


class Scale(nn.Sequential):
    """Depthwise convolution, then a grouped 1x1, both without bias."""

    @torch.no_grad()
    def fuse(self) -> nn.Conv2d:
        """The one grouped convolution that computes the same."""
        depthwise, mix = self
        width = mix.weight.shape[1]  # channels of a group
        fused = nn.Conv2d(
            mix.in_channels,
            mix.out_channels,
            depthwise.kernel_size,
            padding=depthwise.padding,
            groups=mix.groups,
            bias=False,
            device=mix.weight.device,
            dtype=mix.weight.dtype,
        )
        taps = depthwise.weight[:, 0].unflatten(0, (mix.groups, 1, width))  # groups, 1, in, s, s
        weight = mix.weight[:, :, 0, 0].unflatten(0, (mix.groups, -1))  # groups, out, in
        fused.weight.copy_((weight[..., None, None] * taps).flatten(0, 1))
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
        scales: Sequence[int] = (3,),
        power: float = 3,
    ) -> None:
        super().__init__()
        heads, width = channels // head_dim, 3 * channels
        self.head_dim, self.power = head_dim, power
        self.qkv = NormConv(in_channels, width, stride)
        self.scales = nn.ModuleList(
            Scale(
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

        qk: N, 2 * channels, tokens; overwritten. Powers and norms are taken in float32; the rows
        then have length 1, so that half precision holds them and every product of two.
        """
        dtype = qk.dtype
        qk = widen(F.relu(qk, inplace=True))
        qk = focus(qk.unflatten(1, (2, -1, self.head_dim)), self.power)
        q, k = F.normalize(qk, dim=-1, eps=EPS).to(dtype).unbind(1)  # N, heads, head_dim, tokens
        return torch.softmax(self.temperature * (q @ k.transpose(-1, -2)), -1)


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
        same_head = (spread @ spread.t() > 0).unflatten(1, (self.heads, head_dim))
        self.register_buffer("same_head", same_head, persistent=False)

    def forward(self, high: Tensor, low: Tensor) -> Tensor:
        if self.kv_pool_size:
            # Differs from RTFormer: mean instead of maximum, as the attention sums over tokens.
            low = F.adaptive_avg_pool2d(low, self.kv_pool_size)
        q = F.relu(self.query(high), inplace=True)
        state, total = self.summary(self.key_value(low))
        sums = apply_matrix(self.spread.t() * total[:, None], q)  # N, heads, h, w
        # Spreading over the channels of a head by a matrix beats broadcasting in half precision.
        inverse = apply_matrix(self.spread[None], (sums + EPS).reciprocal())
        return self.project(inverse.mul_(q), state[:, None])

    def summary(self, kv: Tensor) -> tuple[Tensor, Tensor]:
        """sum_j v_j phi(k_j)^T and sum_j phi(k_j): N, channels, channels and N, channels; float32.

        Products of different heads are zero. Both are divided by the mean of the latter in their
        head: the quotient is the same, and float16 holds them.
        """
        k, v = widen(kv).chunk(2, 1)
        k, device = F.relu(k), k.device.type
        mixed = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        with torch.autocast(device, enabled=False) if mixed else nullcontext():
            total = k.sum((2, 3)).unflatten(1, (self.heads, -1))
            mean = total.mean(-1, keepdim=True).clamp_min(EPS * k.shape[2] * k.shape[3])
            scale = mean.reciprocal()
            # All heads at once, row by row: products of few channels, or over thousands of tokens,
            # would each keep few of a GPU's cores busy.
            state = (v.transpose(1, 2) @ k.permute(0, 2, 3, 1)).sum(1)
            state = state.unflatten(2, total.shape[1:]) * (self.same_head * scale[:, None])
        return state.flatten(2), (total * scale).flatten(1)


def make_feed_forward(channels: int, kind: str, expansion: float) -> nn.Sequential:
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


def of_branches(name: str, value: object) -> tuple:
    """An option of the high and of the low branch, given for both at once or as a pair."""
    if not isinstance(value, (tuple, list)):
        return value, value
    if len(value) != 2:
        raise InputError(f"{name} is {value}; one value or two are needed, high branch and low")
    return tuple(value)


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
        feed_forwards: Sequence[Callable[[int], nn.Module]],
        low_to_high: bool,
        high_to_low: bool,
        residual_relu: bool,
        drop_path: float,
    ) -> None:
        super().__init__()
        stride = 1 if low_in == low_out else 2
        for_high, for_low = feed_forwards
        self.low_shortcut = NormConv(low_in, low_out, 2) if stride == 2 else nn.Identity()
        self.low_attention = attention(low_in, low_out, stride=stride)
        self.low_feed_forward = for_low(low_out)
        self.low_to_high = ConvBN(low_out, high, 1) if low_to_high else None
        self.high_attention = cross(high, low_out)
        self.high_feed_forward = for_high(high)
        inject = (ConvBN(high, 2 * high, 3, 2), nn.ReLU(True), ConvBN(2 * high, low_out, 3, 2))
        self.high_to_low = nn.Sequential(*inject) if high_to_low else None
        self.residual_relu = residual_relu
        self.drop = DropPath(drop_path)

    def forward(self, high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
        low = self._add(self.low_attention(low), self.low_shortcut(low))
        low = self._add(self.low_feed_forward(low), low)
        if self.low_to_high is not None:
            high = resize_like(self.low_to_high(low), high).add_(high)
        high = self._add(self.high_attention(high, low), high)
        high = F.relu(self.drop(self.high_feed_forward(high)).add_(high), inplace=True)
        if self.high_to_low is not None:
            low = self.high_to_low(high).add_(low)
        elif self.residual_relu:
            return high, low
        return high, F.relu(low)

    def _add(self, branch: Tensor, x: Tensor) -> Tensor:
        y = self.drop(branch).add_(x)
        return F.relu(y, inplace=True) if self.residual_relu else y


class Detail(nn.Module):
    """Coarse features on the grid of fine ones: 1x1 each, added, ReLU, 3x3; not activated.

    coarse: N, coarse_channels, h, w; fine: N, fine_channels, H, W, with any H and W; N, channels,
    H, W.
    """

    def __init__(self, coarse_channels: int, fine_channels: int, channels: int) -> None:
        super().__init__()
        self.coarse = ConvBN(coarse_channels, channels, 1)
        self.fine = ConvBN(fine_channels, channels, 1)
        self.mix = ConvBN(channels, channels, 3)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        fine = self.fine(fine)
        return self.mix(F.relu(fine + resize_like(self.coarse(coarse), fine), inplace=True))


class RTLinearFormer(SegModel):
    """The dual-resolution network; any input size.

    Args:
        num_classes: classes of both heads.
        base_channels: width c.
        feed_forward: "inverted" (1x1, depthwise 3x3, 1x1) or "conv" (two 3x3), for both branches
            or as a pair: high, low.
        expansion: inner width of the feed-forward over its outer width, likewise.
        attention_channels: channels D of query, key and value at each scale (low resolution).
        attention_head_dim, cross_head_dim: channels of a head of either attention.
        scales: odd kernel sizes of the further token scales; focus_power: exponent p.
        kv_pool_size: side of the pooled key/value grid; 0 keeps the low-resolution grid.
        head_channels, context_channels: inner widths of both heads and of DAPPM.
        low_to_high, high_to_low: for stages 4 and 5, whether the branches are also added.
        residual_relu: a ReLU behind every residual sum of stages 2, 4 and 5, which inference may
            compute together with the convolution before it; else where a stage ends or is left.
        context_norm: whether DAPPM's norms stand "behind" its convolutions, where they fold, or in
            "front".
        fusion: how the head's input joins the high branch and the context: "add" or "cat".
        drop_path: rate of all residual branches of stages 4 and 5.
        dropout: share of channels that both heads drop before their last layer while training.
        detail_channels: width in which the head takes up stage 1, so that its logits are at 1/4;
            0 is without, at 1/8.
    """

    num_aux = 1
    training_only = ("aux_head",)

    def __init__(
        self,
        num_classes: int,
        *,
        base_channels: int = 64,
        feed_forward: str | Sequence[str] = ("conv", "inverted"),
        expansion: float | Sequence[float] = (0.5, 2.0),
        attention_channels: int = 128,
        attention_head_dim: int = 16,
        scales: Sequence[int] = (3,),
        focus_power: float = 3,
        cross_head_dim: int = 16,
        kv_pool_size: int = 0,
        head_channels: int = 128,
        context_channels: int = 128,
        low_to_high: tuple[bool, bool] = (True, False),
        high_to_low: tuple[bool, bool] = (True, False),
        residual_relu: bool = True,
        context_norm: str = "behind",
        fusion: str = "add",
        drop_path: float = 0.1,
        dropout: float = 0.0,
        detail_channels: int = 0,
    ) -> None:
        super().__init__(num_classes)
        if detail_channels < 0:
            raise InputError(f"detail_channels is {detail_channels}; accepted: 0 or more")
        c = base_channels
        for width, dim in ((attention_channels, attention_head_dim), (2 * c, cross_head_dim)):
            if width % dim:
                raise InputError(f"{width} attention channels do not divide into heads of {dim}")
        if context_norm not in CONTEXT_CONVS:
            raise InputError(f'context_norm is {context_norm!r}; it must be "behind" or "front"')
        if fusion not in ("add", "cat"):
            raise InputError(f'fusion is {fusion!r}; it must be "add" or "cat"')
        self.stem = Stem(c, bias=False)
        self.stage1 = basic_stage(c, c, 2)
        self.stage2 = basic_stage(c, 2 * c, 2, 2, last_act=residual_relu)
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
            "feed_forwards": [
                partial(make_feed_forward, kind=kind, expansion=factor)
                for kind, factor in zip(
                    of_branches("feed_forward", feed_forward),
                    of_branches("expansion", expansion),
                    strict=True,
                )
            ],
            "residual_relu": residual_relu,
            "drop_path": drop_path,
        }
        self.block4, self.block5 = (
            LinearFormerBlock(2 * c, low, 8 * c, low_to_high=up, high_to_low=down, **common)
            for low, up, down in zip((4 * c, 8 * c), low_to_high, high_to_low, strict=True)
        )
        # Differs from RTFormer: norms stand behind convolutions here and in the head, as those in
        # front of a ReLU cannot be folded.
        self.context = DAPPM(8 * c, context_channels, 2 * c, conv=CONTEXT_CONVS[context_norm])
        self.residual_relu, self.fusion = residual_relu, fusion
        self.head = nn.Sequential(
            ConvBN(2 * c if fusion == "add" else 4 * c, head_channels, 3),
            DroppedReLU(dropout) if dropout else nn.ReLU(inplace=True),
            nn.Conv2d(detail_channels or head_channels, num_classes, 1),
        )
        self.detail = Detail(head_channels, c, detail_channels) if detail_channels else None
        self.output_stride = 4 if detail_channels else 8
        self.aux_head = SegHead(2 * c, head_channels, num_classes, dropout=dropout)
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
        x4 = F.relu(self.stage1(self.stem(x)), inplace=True)  # 1/4
        x8 = self.stage2(x4)  # 1/8
        low = self.stage3(x8 if self.residual_relu else F.relu(x8))
        low = F.relu(low, inplace=True)  # 1/16
        high3 = self.detail3(F.relu(x8 + resize_like(self.low_to_high3(low), x8), inplace=True))
        high, low = self.block4(high3, low)
        high, low = self.block5(high, low)
        context = resize_like(self.context(low), high)
        joined = context + high if self.fusion == "add" else torch.cat((high, context), 1)
        conv, act, classify = self.head
        x = conv(joined)
        if self.detail is not None:
            x = self.detail(F.relu(x, inplace=True), x4)
        return classify(act(x)), high3


VARIANTS = {
    "rtlinearformer_base": {},
    "rtlinearformer_slim": {"base_channels": 32, "attention_channels": 64, "head_channels": 64},
}
register(RTLinearFormer, VARIANTS, {"rtlinearformer": "rtlinearformer_base"})
