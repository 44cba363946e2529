"""The two linear attentions of RTLinearFormer; its module tells what they follow.

Low resolution: multi-scale tokens as in EfficientViT (arXiv 2205.14756), focused as in FLatten
Transformer (arXiv 2308.00442), attention between channels as in XCiT (arXiv 2106.09681). High
resolution: ReLU linear attention to the low tokens. Costs are linear in the tokens.
"""

import copy
from collections.abc import Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers.conv import ConvBN, NormConv

EPS = 1e-4  # 1 / EPS still fits float16
TINY = 1e-22  # of the sums in `focus`


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
