"""Convolutions with their batch normalisation, and how the two fold into one."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


class ConvBN(nn.Module):
    """Convolution ("same" padding), then BatchNorm. No activation: callers place it."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        *,
        groups: int = 1,
        bias: bool = False,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            kernel_size // 2,
            groups=groups,
            bias=bias,
        )
        self.norm = nn.BatchNorm2d(out_channels, eps=eps, momentum=momentum)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))

    def fuse(self) -> nn.Conv2d:
        """The single biased convolution that computes the same in eval mode."""
        return fuse_conv_bn_eval(self.conv, self.norm)


class ConvBNReLU(ConvBN):
    """Convolution, BatchNorm, ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x), inplace=True)

    def fuse(self) -> nn.Sequential:
        """A biased convolution and the ReLU."""
        return nn.Sequential(super().fuse(), nn.ReLU(inplace=True))


class ResidualDepthwise(nn.Module):
    """x plus a biased depthwise 3x3 convolution of x; in the deployed form one convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)

    @torch.no_grad()
    def fuse(self) -> nn.Conv2d:
        """The convolution with 1 added at its centre."""
        self.conv.weight[:, :, 1, 1] += 1
        return self.conv


class NormConv(nn.Module):
    """BatchNorm, then a 1x1 convolution with no activation between, so that both fold."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        bias: bool = False,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels, eps=eps, momentum=momentum)
        self.conv = nn.Conv2d(in_channels, out_channels, 1, stride, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(x))

    def fuse(self) -> nn.Conv2d:
        """The single biased 1x1 convolution that computes the same in eval mode."""
        norm, conv = self.norm, self.conv
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        shift = norm.bias - norm.running_mean * scale
        fused = nn.Conv2d(
            conv.in_channels, conv.out_channels, 1, conv.stride, device=conv.weight.device
        ).to(conv.weight.dtype)
        with torch.no_grad():
            fused.weight.copy_(conv.weight * scale[None, :, None, None])
            fused.bias.copy_(conv.weight[:, :, 0, 0] @ shift)
            if conv.bias is not None:
                fused.bias += conv.bias
        return fused


class NormActConv(nn.Module):
    """BatchNorm, ReLU, convolution (pre-activation order): the norm cannot be folded."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        *,
        groups: int = 1,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels, eps=eps, momentum=momentum)
        self.act = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            kernel_size // 2,
            groups=groups,
            bias=False,
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.act(self.norm(x)))
