"""RTLinearFormer: dual-resolution segmentation with two linear attentions.

Paper: Gu, Fu, Song, Wang, Chen. "RTLinearFormer: Semantic segmentation with lightweight linear
attentions". Neurocomputing, 2025, 129489. No code, configuration or weights have been published:
this is a re-implementation from the published description; what that leaves open is an argument.

Skeleton of RTFormer (arXiv 2210.07124) at width c: a stem and three stages of BasicBlocks (c, 2c,
4c), then a high-resolution branch (1/8, 2c) beside a low-resolution one (1/16 to 1/32, 8c), where
stages 4 and 5 hold two attentions of a cost linear in the tokens (linear_attention.py).
"""

from collections.abc import Callable, Sequence
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
from .linear_attention import ChannelAttention, CrossAttention
from .registry import register

CONTEXT_CONVS = {"behind": ConvBNReLU, "front": NormActConv}


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


def feed_forwards(
    kinds: str | Sequence[str], expansions: float | Sequence[float]
) -> list[Callable[[int], nn.Sequential]]:
    """What makes the feed-forward of the high and of the low branch."""
    pairs = zip(
        of_branches("feed_forward", kinds), of_branches("expansion", expansions), strict=True
    )
    return [partial(make_feed_forward, kind=kind, expansion=factor) for kind, factor in pairs]


def require_widths(*pairs: tuple[int, int]) -> None:
    """Raise ValueError if channels do not divide into heads; pairs: channels, those of a head."""
    for width, dim in pairs:
        if width % dim:
            raise InputError(f"{width} attention channels do not divide into heads of {dim}")


def require_choice(name: str, value: str, accepted: tuple[str, str]) -> None:
    """Raise ValueError if an option is neither of two words."""
    if value not in accepted:
        raise InputError(f'{name} is {value!r}; it must be "{accepted[0]}" or "{accepted[1]}"')


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

    def start_small(self) -> None:
        """Weaken the residual branches: from scratch the loss falls faster so."""
        attentions = (self.low_attention.project, self.high_attention.project)
        for last in (*attentions, self.low_feed_forward[-1], self.high_feed_forward[-1]):
            nn.init.constant_(last.norm.weight, 0.1)

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
        c = base_channels
        require_widths((attention_channels, attention_head_dim), (2 * c, cross_head_dim))
        require_choice("context_norm", context_norm, tuple(CONTEXT_CONVS))
        require_choice("fusion", fusion, ("add", "cat"))
        if detail_channels < 0:
            raise InputError(f"detail_channels is {detail_channels}; accepted: 0 or more")
        self.stem = Stem(c, bias=False)
        self.stage1 = basic_stage(c, c, 2)
        self.stage2 = basic_stage(c, 2 * c, 2, 2, last_act=residual_relu)
        self.stage3 = basic_stage(2 * c, 4 * c, 2, 2)
        self.low_to_high3 = ConvBN(4 * c, 2 * c, 1)
        self.detail3 = basic_stage(2 * c, 2 * c, 1)
        stage = partial(
            LinearFormerBlock,
            2 * c,
            low_out=8 * c,
            attention=partial(
                ChannelAttention,
                channels=attention_channels,
                head_dim=attention_head_dim,
                scales=scales,
                power=focus_power,
            ),
            cross=partial(CrossAttention, head_dim=cross_head_dim, kv_pool_size=kv_pool_size),
            feed_forwards=feed_forwards(feed_forward, expansion),
            residual_relu=residual_relu,
            drop_path=drop_path,
        )
        self.block4, self.block5 = (
            stage(low_in=low, low_to_high=up, high_to_low=down)
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
        self.block4.start_small()
        self.block5.start_small()

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
