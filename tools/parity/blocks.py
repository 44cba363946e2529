"""Single blocks of published networks, built of ours from what a parity fixture says of them."""

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any

import _init_paths  # noqa: F401
from torch import Tensor, nn

from models.gcnet import GCBlock
from models.layers.conv import ResidualDepthwise
from models.lrformer import Block, LayerNorm2d, LowResolutionAttention, LRHead
from models.rtformer import CrossAttention, GroupedAttention, RTFormerBlock
from models.weights.convert import DIALECTS
from models.weights.gcnet import BLOCK as GCNET_BLOCK
from models.weights.lrformer import ATTENTION, BLOCK, REFINE, head_rules
from models.weights.rtformer import BLOCK as RTFORMER_BLOCK
from models.weights.rtformer import COUNTERS, GROUPED_ATTENTION
from models.weights.rules import PADDLE_LEAVES, Dialect, Rule
from utils.parity import Fixture, parse_constructor


class UnknownError(Exception):
    """The fixture is about something that this project does not have."""


def block_builder(fixture: Fixture) -> Callable[[], nn.Module]:
    """How to build the block of a fixture. Raises UnknownError for one that is not known."""
    text = fixture.entry("official")["constructor"]
    name, arguments = described(text) or parse_constructor(text)
    if name not in BLOCKS:
        raise UnknownError(f"block {name or 'without a class name'}")
    try:
        inspect.signature(BLOCKS[name]).bind(**arguments)
    except TypeError as error:
        raise UnknownError(f"block {name}: {error}") from error
    return lambda: BLOCKS[name](**arguments)


def described(text: str) -> tuple[str, dict[str, Any]] | None:
    """Name and arguments of the blocks whose constructor is told in words."""
    head = re.match(
        r"LRHead .*?in_channels ([\d/]+).*?\bchannels (\d+), num_classes (\d+)", text, re.DOTALL
    )
    if head:
        widths = tuple(map(int, head[1].split("/")))
        return "LRHead", {
            "in_channels": widths, "channels": int(head[2]), "num_outputs": int(head[3])
        }  # fmt: skip
    container = re.match(r"container with attn = .*?\(dim (\d+), (\d+) heads", text)
    if container:
        return "LRSA", {"channels": int(container[1]), "num_heads": int(container[2])}
    blocks = re.findall(r"(\w+) = (GCBlock\([^()]*\))", text)
    if blocks:
        return "GCBlocks", {name: parse_constructor(call)[1] for name, call in blocks}
    return None


class LowResolutionBlocks(nn.Module):
    """LRFormer's attention and block, in the form of the backbone and in that of the decoder."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.refine = nn.ModuleList(ResidualDepthwise(channels) for _ in range(4))
        self.attention = LowResolutionAttention(channels, num_heads, 16)
        self.block = Block(
            channels, num_heads, 4, 16, norm=functools.partial(LayerNorm2d, eps=1e-6)
        )
        self.head_attention = LowResolutionAttention(channels, num_heads, 32)
        self.head_block = Block(channels, num_heads, 4, 32, norm=nn.BatchNorm2d)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (
            self.attention(x, self.refine),
            self.block(x, self.refine),
            self.head_attention(x),
            self.head_block(x),
        )


class GCBlocks(nn.Module):
    """GCNet's blocks side by side, each with the arguments under its name."""

    def __init__(self, **blocks: dict[str, Any]) -> None:
        super().__init__()
        for name, arguments in blocks.items():
            self.add_module(name, GCBlock(**arguments))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(block(x) for block in self.children())


# Blocks alone, as their fixtures name the tensors.
DIALECTS[LRHead] = (Dialect("LRFormer", head_rules("")),)
DIALECTS[LowResolutionBlocks] = (
    Dialect(
        "LRFormer",
        (
            Rule("attn", "attention", ATTENTION),
            Rule("head_attn", "head_attention", ATTENTION),
            Rule("d_convs", "refine", REFINE),
            Rule("block", "block", BLOCK),
            Rule("head_block", "head_block", BLOCK),
        ),
    ),
)
DIALECTS[GCBlocks] = (Dialect("GCNet", (Rule(r"(\w+)", r"\1", GCNET_BLOCK),)),)
for kind, names in (
    (RTFormerBlock, RTFORMER_BLOCK),
    (GroupedAttention, GROUPED_ATTENTION),
    (CrossAttention, {"norm": "norm"}),
):
    rules = (Rule("", "", names),)
    DIALECTS[kind] = (Dialect("PaddleSeg RTFormer", rules, PADDLE_LEAVES, fills=COUNTERS),)


def external_attention(
    in_channels: int, out_channels: int, inter_channels: int, num_heads: int, use_cross_kv: bool
) -> nn.Module:
    if use_cross_kv:
        return CrossAttention(in_channels)
    if inter_channels != out_channels:
        raise UnknownError(f"ExternalAttention of {inter_channels} inner channels")
    return GroupedAttention(in_channels, out_channels, num_heads)


def rtformer_block(
    in_channels: list[int],
    out_channels: list[int],
    num_heads: int = 8,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.2,
    use_injection: bool = True,
    use_cross_kv: bool = True,
    cross_size: int = 12,
) -> nn.Module:
    (high_in, low_in), (high, low) = in_channels, out_channels
    if high_in != high or drop_rate or not use_cross_kv:
        raise UnknownError(f"EABlock of {in_channels} to {out_channels} channels")
    return RTFormerBlock(
        high, low_in, low, num_heads=num_heads, cross_size=cross_size, injection=use_injection,
        drop_path=drop_path_rate,
    )  # fmt: skip


# Published class name -> the same block of ours, from the same arguments.
BLOCKS: dict[str, Callable[..., nn.Module]] = {
    "ExternalAttention": external_attention,
    "EABlock": rtformer_block,
    "GCBlocks": GCBlocks,
    "LRHead": LRHead,
    "LRSA": LowResolutionBlocks,
}
