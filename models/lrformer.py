"""LRFormer: low-resolution self-attention for semantic segmentation (TPAMI 2025).

Paper: arXiv 2310.05026; official code: github.com/yuhuan-wu/LRFormer, a fork of mmsegmentation
(Apache-2.0).
    backbone    N, 3, H, W -> four stages at strides 4, 8, 16, 32, whose queries, keys and values
                are pooled to a fixed size whatever the image's (Sec. 3.2)
    head        stages 2 to 4 at stride 8, two more attention blocks (Sec. 3.4)
                -> logits N, classes, H/8, W/8
LayerNorm: eps 1e-6, except 1e-5 over keys and values. BatchNorm 1e-5.
Strides round up, so any input size passes; the published code takes only some, with equal results.
"""

import functools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import SegModel, TrainOutputs
from .errors import InputError
from .layers.conv import ConvBN, ConvBNReLU, ResidualDepthwise
from .layers.drop_path import DropPath
from .layers.init import classifier_init, kaiming_init
from .layers.resize import resize, resize_like
from .registry import register, register_backbone

PYRAMID = (11, 8, 6, 4)  # shorter sides of the pooled keys and values for a query side of 16


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of N, C, H, W."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def pooled_grid(height: int, width: int, size: int) -> tuple[int, int]:
    """`size` for the shorter side, the longer in proportion; a half is rounded up."""
    if width >= height:
        return size, round(width * size / height + 0.001)
    return round(height * size / width + 0.001), size


def averaging_matrix(length: int, cells: Sequence[int], like: Tensor) -> Tensor:
    """Means over the windows of adaptive pooling: sum(cells), length.

    Window i of n covers floor(i * length / n) to ceil((i + 1) * length / n). The windows of every
    number in `cells` follow one another. `like` states device and dtype.
    """
    first = torch.cat([torch.arange(n, device=like.device) * length // n for n in cells])
    last = torch.cat([(torch.arange(n, device=like.device) + 1) * length // -n for n in cells])
    place = torch.arange(length, device=like.device)
    inside = (place >= first[:, None]) & (place < -last[:, None])
    return (inside / inside.sum(1, keepdim=True)).to(like.dtype)


Means = tuple[Tensor, Sequence[Tensor]]  # over rows: sum(heights), H; over columns of every grid


class PyramidPool(nn.Module):
    """Average pooling of a map to the grids of queries, keys and values at once.

    The mean over a rectangle is that over its rows, then over its columns: two matrix products,
    which read the map once and need no kernel of their own. Those of pooling read it once per grid,
    and on a GPU large windows slowly; on the CPU they are the faster ones, and are taken there.

    Args:
        query_size: shorter side of the queries' grid; the pyramid's sides follow from it.
    """

    is_pooling = True  # as usual, its products do not count as multiply-adds of the network

    def __init__(self, query_size: int) -> None:
        super().__init__()
        pyramid = (round(side * query_size / 16 + 0.001) for side in PYRAMID)
        self.sizes = (query_size, *pyramid)

    def grids(self, height: int, width: int) -> list[tuple[int, int]]:
        """Of a map of that size, the queries' first."""
        return [pooled_grid(height, width, size) for size in self.sizes]

    def means(self, like: Tensor) -> Means | None:
        """The matrices for all maps of the size, device and dtype of one, N, C, H, W; None on the
        CPU, unless for a program that is to run elsewhere."""
        if like.device.type == "cpu" and not torch.compiler.is_compiling():
            return None
        return self.matrices(like)

    def matrices(self, like: Tensor) -> Means:
        """As `means`, wherever that is."""
        heights, widths = zip(*self.grids(*like.shape[-2:]), strict=True)
        rows, columns = (
            averaging_matrix(length, cells, like)
            for length, cells in zip(like.shape[-2:], (heights, widths), strict=True)
        )
        return rows, columns.split(widths)

    def forward(self, x: Tensor, means: Means | None = None) -> list[Tensor]:
        """N, C, H, W to N, C, height, width of every grid."""
        grids, means = self.grids(*x.shape[-2:]), means or self.means(x)
        if means is None:
            return [F.adaptive_avg_pool2d(x, grid) for grid in grids]
        rows, columns = means
        x = x.permute(0, 2, 3, 1)  # N, H, W, C, as the map lies in memory
        parts = (rows.to(x.dtype) @ x.flatten(2)).unflatten(2, x.shape[2:])
        parts = parts.split([height for height, _ in grids], 1)  # N, height, W, C
        pooled = (m.to(x.dtype) @ part for m, part in zip(columns, parts, strict=True))
        return [level.permute(0, 3, 1, 2) for level in pooled]


class LowResolutionAttention(nn.Module):
    """LRSA (Fig. 2): attention between pooled queries and a pyramid of pooled keys and values.

    N, C, H, W to the same; the result has the pooled grid until it is resized at the end. Where
    the map is smaller than a pooled grid, pooling repeats pixels.

    Args:
        query_size: see `PyramidPool`.
    """

    def __init__(self, channels: int, num_heads: int, query_size: int) -> None:
        super().__init__()
        if channels % num_heads:
            raise InputError(f"{channels} channels do not split into {num_heads} heads")
        self.num_heads = num_heads
        self.pool = PyramidPool(query_size)
        self.query = nn.Linear(channels, channels)
        self.norm = nn.LayerNorm(channels)
        self.key_value = nn.Linear(channels, 2 * channels)
        self.project = nn.Linear(channels, channels)

    def forward(
        self,
        x: Tensor,
        refine: Sequence[nn.Module] | None = None,
        means: Means | None = None,
    ) -> Tensor:
        """`refine`: one module per level of the pyramid, applied to the pooled map; `means`: of
        `pool`, where they are known."""
        pooled, *levels = self.pool(x, means)
        query = self.query(_tokens(pooled))
        if refine is not None:
            levels = [module(level) for module, level in zip(refine, levels, strict=True)]
        tokens = self.norm(torch.cat([_tokens(level) for level in levels], 1))
        key, value = self.key_value(tokens).chunk(2, -1)
        y = F.scaled_dot_product_attention(*map(self._split, (query, key, value)))
        y = self.project(y.transpose(1, 2).flatten(2))  # N, tokens, C
        return resize(y.transpose(1, 2).unflatten(2, pooled.shape[2:]), x.shape[-2:])

    def _split(self, x: Tensor) -> Tensor:
        """N, tokens, C to N, heads, tokens, C / heads."""
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


def _tokens(x: Tensor) -> Tensor:
    """N, C, H, W to N, H*W, C."""
    return x.flatten(2).transpose(1, 2)


class InvertedResidual(nn.Module):
    """Feed-forward: 1x1 convolution, GELU, residual depthwise 3x3, 1x1 convolution."""

    def __init__(self, channels: int, expansion: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(channels, channels * expansion, 1)
        self.depthwise = ResidualDepthwise(channels * expansion)
        self.reduce = nn.Conv2d(channels * expansion, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.reduce(self.depthwise(F.gelu(self.expand(x))))


class Block(nn.Module):
    """Positional convolution, attention and feed-forward, each residual (Fig. 3).

    Args:
        norm: makes a norm over N, C, H, W from the channel count.
        layer_scale: weigh both branches per channel, from 1e-6 on.
        pre_norm: a BatchNorm in the residual stream itself, which keeps deep stages in range.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        expansion: int,
        query_size: int,
        *,
        norm: Callable[[int], nn.Module],
        layer_scale: bool = True,
        pre_norm: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.pre_norm = nn.BatchNorm2d(channels) if pre_norm else nn.Identity()
        self.position = ResidualDepthwise(channels)
        self.norm1 = norm(channels)
        self.attention = LowResolutionAttention(channels, num_heads, query_size)
        self.norm2 = norm(channels)
        self.ffn = InvertedResidual(channels, expansion)
        self.scale1 = nn.Parameter(torch.full((channels,), 1e-6)) if layer_scale else None
        self.scale2 = nn.Parameter(torch.full((channels,), 1e-6)) if layer_scale else None
        self.drop_path = DropPath(drop_path)

    def forward(
        self,
        x: Tensor,
        refine: Sequence[nn.Module] | None = None,
        means: Means | None = None,
    ) -> Tensor:
        x = self.position(self.pre_norm(x))
        x = x + self._branch(self.attention(self.norm1(x), refine, means), self.scale1)
        return x + self._branch(self.ffn(self.norm2(x)), self.scale2)

    def _branch(self, y: Tensor, scale: Tensor | None) -> Tensor:
        return self.drop_path(y if scale is None else y * scale.view(-1, 1, 1))


class Stage(nn.Module):
    """Blocks of one resolution, which share the convolutions on the pooled keys and values."""

    def __init__(self, blocks: Sequence[Block], channels: int) -> None:
        super().__init__()
        self.refine = nn.ModuleList(ResidualDepthwise(channels) for _ in PYRAMID)
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        means = self.blocks[0].attention.pool.means(x)
        for block in self.blocks:
            x = block(x, self.refine, means)
        return x


class Stem(nn.Module):
    """Four 3x3 convolutions, the first and third of stride 2: N, 3, H, W to N, C, H/4, W/4."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = ConvBN(3, half, 3, 2, bias=True)
        self.conv2 = ConvBN(half, half, 3, bias=True)
        self.conv3 = ConvBN(half, channels, 3, 2, bias=True)
        self.conv4 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = LayerNorm2d(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        for conv in (self.conv1, self.conv2, self.conv3):
            x = F.gelu(conv(x))
        return self.norm(self.conv4(x))


class Downsample(nn.Module):
    """3x3 convolution of stride 2, then LayerNorm."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, 2, 1)
        self.norm = LayerNorm2d(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class LRFormerBackbone(nn.Module):
    """The four stages.

    Args:
        embed_dims: channels of each stage.
        depths: blocks of each stage.
        num_heads: attention heads of each stage.
        expansions: of each stage's feed-forwards.
        drop_path: rate of the last block's branches; it grows linearly from 0 at the first.
    """

    def __init__(
        self,
        *,
        embed_dims: Sequence[int] = (64, 128, 320, 512),
        depths: Sequence[int] = (3, 3, 12, 3),
        num_heads: Sequence[int] = (2, 4, 10, 16),
        expansions: Sequence[int] = (8, 8, 4, 4),
        drop_path: float = 0.1,
    ) -> None:
        super().__init__()
        stages = {"embed_dims": embed_dims, "depths": depths}
        stages |= {"num_heads": num_heads, "expansions": expansions}
        for name, numbers in stages.items():
            if len(numbers) != 4 or min(numbers) < 1:
                raise InputError(f"{name} is {numbers}; four numbers of 1 or more are needed")
        if not 0 <= drop_path < 1:
            raise InputError(f"drop_path is {drop_path}; it must be in [0, 1)")
        rates = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())
        norm = functools.partial(LayerNorm2d, eps=1e-6)
        very_deep = depths[2] > 20
        self.channels = tuple(embed_dims)
        self.embeds = nn.ModuleList([Stem(embed_dims[0])])
        self.embeds.extend(Downsample(embed_dims[i], embed_dims[i + 1]) for i in range(3))
        self.stages = nn.ModuleList(
            Stage(
                [
                    Block(
                        embed_dims[i],
                        num_heads[i],
                        expansions[i],
                        16,
                        norm=norm,
                        layer_scale=i >= 2,
                        pre_norm=very_deep and i == 2 and j in (7, 15),
                        drop_path=next(rates),
                    )
                    for j in range(depths[i])
                ],
                embed_dims[i],
            )
            for i in range(4)
        )
        init_linears(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features of the stem and of stages 1 to 4: strides 4, 4, 8, 16, 32."""
        x = self.embeds[0](x)
        features = [x]
        for i, stage in enumerate(self.stages):
            x = stage(self.embeds[i](x) if i else x)
            features.append(x)
        return features


class LRHead(nn.Module):
    """The plain decoder: stages 2 to 4 at the grid of stage 2, twice squeezed and refined."""

    def __init__(self, in_channels: Sequence[int], channels: int, num_outputs: int) -> None:
        super().__init__()
        self.squeeze1 = ConvBNReLU(sum(in_channels), channels, 1)
        self.block1 = Block(channels, 8, 4, 32, norm=nn.BatchNorm2d)
        self.squeeze2 = ConvBNReLU(channels + in_channels[-1], channels, 1)
        self.block2 = Block(channels, 8, 4, 32, norm=nn.BatchNorm2d)
        self.dropout = nn.Dropout2d(0.1)
        self.classify = nn.Conv2d(channels, num_outputs, 1)
        init_linears(self)
        for squeeze in (self.squeeze1, self.squeeze2):
            kaiming_init(squeeze, "fan_out")

    def forward(self, x8: Tensor, x16: Tensor, x32: Tensor) -> Tensor:
        x32 = resize_like(x32, x8)
        x = self.block1(self.squeeze1(torch.cat((x8, resize_like(x16, x8), x32), 1)))
        x = self.block2(self.squeeze2(torch.cat((x, x32), 1)))
        return self.classify(self.dropout(x))


def init_linears(model: nn.Module) -> None:
    """Linear layers: truncated normal with std 0.02, bias 0."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and not module.weight.is_meta:
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)


class LRFormer(SegModel):
    """Backbone and plain decoder.

    Args:
        num_classes: classes of the head.
        head_channels: width of the decoder.
        embed_dims, depths, num_heads, expansions, drop_path: see `LRFormerBackbone`.
    """

    lr_multipliers = {"head": 10.0}  # noqa: RUF012

    def __init__(
        self,
        num_classes: int,
        *,
        head_channels: int = 384,
        embed_dims: Sequence[int] = (64, 128, 320, 512),
        depths: Sequence[int] = (3, 3, 12, 3),
        num_heads: Sequence[int] = (2, 4, 10, 16),
        expansions: Sequence[int] = (8, 8, 4, 4),
        drop_path: float = 0.1,
    ) -> None:
        super().__init__(num_classes)
        self.backbone = LRFormerBackbone(
            embed_dims=embed_dims,
            depths=depths,
            num_heads=num_heads,
            expansions=expansions,
            drop_path=drop_path,
        )
        self.head = LRHead(self.backbone.channels[1:], head_channels, num_classes)
        classifier_init(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(*self.backbone(x)[2:])

    def forward_train(self, x: Tensor) -> TrainOutputs:
        return TrainOutputs(self(x))


BACKBONES = {
    "lrformer_t": {"embed_dims": (48, 96, 240, 384), "depths": (2, 2, 6, 3)},
    "lrformer_s": {"drop_path": 0.2},
    "lrformer_b": {
        "embed_dims": (80, 160, 400, 512),
        "depths": (4, 4, 15, 8),
        "drop_path": 0.4,
    },
    "lrformer_l": {
        "embed_dims": (96, 192, 480, 640),
        "depths": (4, 6, 18, 8),
        "drop_path": 0.6,
    },
    "lrformer_xl": {
        "embed_dims": (128, 256, 640, 768),
        "depths": (4, 8, 22, 8),
        "drop_path": 0.4,
    },
}
HEAD_CHANNELS = {"lrformer_t": 256, "lrformer_s": 384, "lrformer_b": 512, "lrformer_l": 640}
VARIANTS = {
    name: {**BACKBONES[name], "head_channels": width} for name, width in HEAD_CHANNELS.items()
}
register_backbone(LRFormerBackbone, BACKBONES)
register(LRFormer, VARIANTS)
