"""Pyramid context modules on the lowest resolution: DAPPM (DDRNet, Fig. 5) and PAPPM (PIDNet)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .conv import NormActConv
from .resize import resize_like

_POOLS = ((5, 2), (9, 4), (17, 8))  # kernel, stride; padding keeps the grid "same"


class _PyramidContext(nn.Module):
    """Scales shared by both modules: the input itself, three average pools, the global mean.

    Average pools count the zero padding. Every scale is reduced to `channels`. `eps` and `momentum`
    are those of all BatchNorms. `conv` makes the convolutions with norm and ReLU: published in
    front of them (NormActConv), where the norms do not fold; behind them with ConvBNReLU.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        out_channels: int,
        *,
        conv: Callable[..., nn.Module] = NormActConv,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        norm = {"eps": eps, "momentum": momentum}
        pools = [nn.Identity()]
        pools += [nn.AvgPool2d(k, s, k // 2, count_include_pad=True) for k, s in _POOLS]
        pools.append(nn.AdaptiveAvgPool2d(1))
        self.pools = nn.ModuleList(pools)
        self.scales = nn.ModuleList(conv(in_channels, channels, 1, **norm) for _ in pools)
        self.compression = conv(len(pools) * channels, out_channels, 1, **norm)
        self.shortcut = conv(in_channels, out_channels, 1, **norm)


class DAPPM(_PyramidContext):
    """Deep aggregation: each scale adds the one before it, then a 3x3 convolution."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        out_channels: int,
        *,
        conv: Callable[..., nn.Module] = NormActConv,
        **norm: float,
    ) -> None:
        super().__init__(in_channels, channels, out_channels, conv=conv, **norm)
        self.process = nn.ModuleList(conv(channels, channels, 3, **norm) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.scales[0](x)
        levels = [y]
        for pool, scale, process in zip(self.pools[1:], self.scales[1:], self.process, strict=True):
            y = process(resize_like(scale(pool(x)), x) + y)
            levels.append(y)
        return self.compression(torch.cat(levels, 1)) + self.shortcut(x)


class PAPPM(_PyramidContext):
    """Parallel aggregation: each scale adds the first, then one grouped 3x3 for all."""

    def __init__(self, in_channels: int, channels: int, out_channels: int, **norm: float) -> None:
        super().__init__(in_channels, channels, out_channels, **norm)
        self.process = NormActConv(4 * channels, 4 * channels, 3, groups=4, **norm)

    def forward(self, x: Tensor) -> Tensor:
        y = self.scales[0](x)
        pooled = [
            resize_like(scale(pool(x)), x) + y
            for pool, scale in zip(self.pools[1:], self.scales[1:], strict=True)
        ]
        levels = self.process(torch.cat(pooled, 1))
        return self.compression(torch.cat((y, levels), 1)) + self.shortcut(x)
