"""LRFormer+: LRFormer's backbone with the decoder of Mask2Former.

Papers: arXiv 2310.05026 (LRFormer), 2112.01527 (Mask2Former); official code:
github.com/yuhuan-wu/LRFormer on mmdetection's head.
    backbone    N, 3, H, W -> four stages at strides 4, 8, 16, 32
    head        a pixel decoder over them, then queries that look at its three coarse levels in
                turn: each query gives class logits and a mask at H/4, W/4
    forward     the published prediction: every pixel's class scores are the queries' class
                probabilities weighed by their masks, at the size of the image
The decoder's modules are those of the library transformers, the same as the published ones tensor
by tensor; it is imported when a network is built. Written here are only the deformable attention,
for its positions in 16 bits, and the way through the pixel decoder, for CUDA graphs.
Any input size passes; the published test pads images to multiples of 32.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import SegModel
from .errors import InputError
from .layers.resize import resize
from .lrformer import BACKBONES, LRFormerBackbone
from .registry import Extra, register

DECODER = Extra("query", "transformers")
HEADS = 8


class QueryOutputs(NamedTuple):
    """What every round of the decoder predicts, that of the untouched queries first.

    classes: logits of the queries, each N, queries, num_classes + 1; the last is "no object".
    masks: logits of where the query's class is, each N, queries, H/4, W/4.
    """

    classes: tuple[Tensor, ...]
    masks: tuple[Tensor, ...]


def semantic_logits(classes: Tensor, masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Class scores of every pixel, N, num_classes, *size, from the predictions of one round."""
    probabilities = classes.softmax(-1)[..., :-1]
    return torch.einsum("nqc,nqhw->nchw", probabilities, resize(masks, size).sigmoid())


class DeformableAttention(nn.Module):
    """Attention of every pixel to a few points around it on all levels (arXiv 2010.04159).

    Parameters and arguments are those of the library's. It samples in float32 also where the
    network is narrower: bfloat16 knows no place between two pixels of a large map, and PyTorch's
    sampling in it gives NaN on the CPU at times.
    """

    def __init__(self, channels: int, num_heads: int, levels: int = 3, points: int = 4) -> None:
        super().__init__()
        self.num_heads, self.levels, self.points = num_heads, levels, points
        each = num_heads * levels * points
        self.sampling_offsets = nn.Linear(channels, 2 * each)
        self.attention_weights = nn.Linear(channels, each)
        self.value_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: Tensor,
        spatial_shapes_list: Sequence[tuple[int, int]],
        **_: Any,
    ) -> tuple[Tensor, None]:
        """N, tokens, channels to the same; the tokens are the pixels of all levels in turn.

        `spatial_shapes_list` has the levels' heights and widths. The library passes more, such as
        masks in which nothing is masked, and takes a second result, here None.
        """
        asking = hidden_states + position_embeddings
        wide = torch.promote_types(hidden_states.dtype, torch.float32)
        offsets = self.sampling_offsets(asking).to(wide)
        offsets = offsets.unflatten(2, (self.num_heads, self.levels, self.points, 2))
        weights = self.attention_weights(asking).to(wide).unflatten(2, (self.num_heads, -1))
        weights = weights.softmax(-1).transpose(1, 2).flatten(0, 1)  # N*heads, tokens, all points
        values = self.value_proj(hidden_states).to(wide).unflatten(2, (self.num_heads, -1))
        values = values.permute(0, 2, 3, 1).flatten(0, 1)  # N*heads, channels / heads, tokens
        levels = values.split([height * width for height, width in spatial_shapes_list], 2)
        x, y = (c[:, None, None] for c in pixel_centres(spatial_shapes_list, values))
        sampled = []
        for i, (height, width) in enumerate(spatial_shapes_list):
            to_x, to_y = offsets[:, :, :, i].unbind(-1)  # N, tokens, heads, points
            grid = 2 * torch.stack((x + to_x / width, y + to_y / height), -1) - 1
            level = levels[i].unflatten(2, (height, width))
            grid = grid.transpose(1, 2).flatten(0, 1)
            sampled.append(F.grid_sample(level, grid, align_corners=False))
        y = (torch.cat(sampled, -1) * weights[:, None]).sum(-1)  # N*heads, channels/heads, tokens
        y = y.unflatten(0, (-1, self.num_heads)).flatten(1, 2).transpose(1, 2)
        return self.output_proj(y.to(hidden_states.dtype)), None


def pixel_centres(shapes: Sequence[tuple[int, int]], like: Tensor) -> tuple[Tensor, Tensor]:
    """x and y of all pixels of maps of `shapes`, row by row; every map reaches from 0 to 1.

    `like` states device and dtype.
    """
    places = []
    for sides in shapes:
        height, width = sides
        y, x = ((torch.arange(n, device=like.device).to(like.dtype) + 0.5) / n for n in sides)
        places.append((x.repeat(height), y.repeat_interleave(width)))
    x, y = zip(*places, strict=True)
    return torch.cat(x), torch.cat(y)


class QueryHead(nn.Module):
    """Mask2Former's decoder: four features to the predictions of every round.

    Args:
        in_channels: of the features, the finest first.
        channels: width of both decoders; feed-forwards have 4 and 8 times as many.
        num_queries: masks that are predicted.
        encoder_layers: deformable attention layers over the three coarse features.
        decoder_layers: rounds of the queries.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        num_outputs: int,
        num_queries: int,
        encoder_layers: int,
        decoder_layers: int,
    ) -> None:
        super().__init__()
        try:
            from transformers import Mask2FormerConfig
            from transformers.models.mask2former import modeling_mask2former as library
        except ImportError as error:
            raise InputError(
                f"the transformers that is installed has no Mask2Former here ({error}); pip "
                f"install -e .[{DECODER.name}] brings a version that is tested"
            ) from error

        config = Mask2FormerConfig(
            feature_size=channels,
            mask_feature_size=channels,
            hidden_dim=channels,
            num_attention_heads=HEADS,
            num_queries=num_queries,
            encoder_layers=encoder_layers,
            encoder_feedforward_dim=4 * channels,
            decoder_layers=decoder_layers + 1,  # which counts the untouched queries
            dim_feedforward=8 * channels,
            dropout=0.0,
            pre_norm=False,
            common_stride=4,
            feature_strides=(4, 8, 16, 32),
        )
        self.pixel_decoder = library.Mask2FormerPixelDecoder(config, list(in_channels))
        self.transformer_module = library.Mask2FormerTransformerModule(channels, config)
        self.classify = nn.Linear(channels, num_outputs)
        for layer in self.pixel_decoder.encoder.layers:
            layer.self_attn = DeformableAttention(channels, HEADS)
        self.pixel_decoder.level_embed = nn.Parameter(torch.empty(3, channels))  # holds anything
        if not self.classify.weight.is_meta:
            init_decoder(self)
        self.train()

    def train(self, mode: bool = True) -> "QueryHead":
        """Training mode, which changes nothing in the head: it drops nothing.

        Only, the library's encoder layers would look for overflows then, and the host wait; that of
        version 5.20 would draw which layers of the decoder to leave out, which is none.
        """
        super().train(mode)
        for part in (*self.pixel_decoder.encoder.layers, self.transformer_module.decoder):
            part.training = False
        return self

    def forward(self, features: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Of every round the queries, N, queries, channels, and their masks."""
        rounds = self.transformer_module(*self.pixels(features))
        queries = [state.transpose(0, 1) for state in rounds.intermediate_hidden_states]
        return queries, rounds.masks_queries_logits

    def pixels(self, features: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """The three coarse features, the coarsest first, after looking at each other, and the map
        at H/4, W/4 that masks are made of.

        What the library's own forward computes; that sends the sizes of the maps to the device,
        which cannot be recorded as a CUDA graph.
        """
        decoder, (fine, *coarse) = self.pixel_decoder, features
        coarse = coarse[::-1]
        maps = [project(x) for project, x in zip(decoder.input_projections, coarse, strict=True)]
        codes = [
            tokens(decoder.position_embedding(x.shape, x.device, x.dtype)) + level
            for x, level in zip(coarse, decoder.level_embed, strict=True)
        ]
        shapes = [tuple(x.shape[2:]) for x in coarse]
        x, code = torch.cat(list(map(tokens, maps)), 1), torch.cat(codes, 1)
        for layer in decoder.encoder.layers:
            x, *_ = layer(x, None, position_embeddings=code, spatial_shapes_list=shapes)
        parts = x.split([height * width for height, width in shapes], 1)
        levels = [
            part.transpose(1, 2).unflatten(2, shape)
            for part, shape in zip(parts, shapes, strict=True)
        ]
        x = decoder.layer_1(decoder.adapter_1(fine) + resize(levels[-1], fine.shape[2:]))
        return levels, decoder.mask_projection(x)


def tokens(x: Tensor) -> Tensor:
    """N, channels, H, W to N, H * W, channels."""
    return x.flatten(2).transpose(1, 2)


def init_decoder(head: QueryHead) -> None:
    """Start of training: what the library leaves to its own wrapper of whole networks.

    Projections and attention: Xavier uniform, biases 0. Level codes and queries: normal with std 1.
    Deformable attention starts out on rings around the pixel, a direction for each of its heads,
    and weighs all points alike. Norms, classes and the masks' perceptron: as PyTorch has them.
    """
    pixels, transformer = head.pixel_decoder, head.transformer_module
    nn.init.normal_(pixels.level_embed)
    for embedding in (transformer.level_embed, *_queries(transformer)):
        nn.init.normal_(embedding.weight)
    projections = [m for m in pixels.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    for module in (*projections, *transformer.decoder.layers.modules()):
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.MultiheadAttention):
            nn.init.xavier_uniform_(module.in_proj_weight)
            nn.init.zeros_(module.in_proj_bias)
    for layer in pixels.encoder.layers:
        attention = layer.self_attn
        nn.init.zeros_(attention.attention_weights.weight)
        nn.init.zeros_(attention.sampling_offsets.weight)
        with torch.no_grad():
            attention.sampling_offsets.bias.copy_(_rings(attention).flatten())


def _queries(transformer: Any) -> tuple[nn.Embedding, nn.Embedding]:
    return transformer.queries_embedder, transformer.queries_features


def _rings(attention: DeformableAttention) -> Tensor:
    """heads, levels, points, 2: x and y offsets; point i is i + 1 pixels away in one direction."""
    angles = torch.arange(attention.num_heads) * (2 * math.pi / attention.num_heads)
    directions = torch.stack((angles.cos(), angles.sin()), -1)
    directions = directions / directions.abs().amax(-1, keepdim=True)
    distances = torch.arange(1, attention.points + 1)
    rings = directions[:, None, None] * distances[:, None]
    return rings.expand(-1, attention.levels, -1, -1)


class LRFormerPlus(SegModel):
    """Backbone and query decoder. `forward` gives logits at the size of the image.

    Args:
        num_classes: classes of the head, without "no object".
        decoder_channels: width of the decoder, a multiple of 32.
        num_queries, encoder_layers, decoder_layers: see `QueryHead`.
        embed_dims, depths, num_heads, expansions, drop_path: see `LRFormerBackbone`.
    """

    output_stride = 1
    size_divisor = 32  # to which the published test pads; any size passes
    learns_by = "queries"
    lr_multipliers = {"backbone": 0.1}  # noqa: RUF012
    # As published: the pixel decoder's code of its levels decays.
    no_decay = tuple(
        f"head.transformer_module.{name}"
        for name in ("queries_embedder", "queries_features", "level_embed")
    )

    def __init__(
        self,
        num_classes: int,
        *,
        decoder_channels: int = 256,
        num_queries: int = 100,
        encoder_layers: int = 6,
        decoder_layers: int = 9,
        embed_dims: Sequence[int] = (64, 128, 320, 512),
        depths: Sequence[int] = (3, 3, 12, 3),
        num_heads: Sequence[int] = (2, 4, 10, 16),
        expansions: Sequence[int] = (8, 8, 4, 4),
        drop_path: float = 0.3,
    ) -> None:
        super().__init__(num_classes)
        self.num_outputs = num_classes + 1
        if type(decoder_channels) is not int or decoder_channels < 1 or decoder_channels % 32:
            raise InputError(
                f"decoder_channels is {decoder_channels!r}; a multiple of 32 is needed"
            )
        counts = {"num_queries": num_queries, "encoder_layers": encoder_layers}
        for name, number in {**counts, "decoder_layers": decoder_layers}.items():
            if type(number) is not int or number < 1:
                raise InputError(f"{name} is {number!r}; a number of 1 or more is needed")
        self.backbone = LRFormerBackbone(
            embed_dims=embed_dims,
            depths=depths,
            num_heads=num_heads,
            expansions=expansions,
            drop_path=drop_path,
        )
        self.head = QueryHead(
            self.backbone.channels,
            decoder_channels,
            self.num_outputs,
            num_queries,
            encoder_layers,
            decoder_layers,
        )

    def check_size(self, height: int, width: int) -> None:
        """Any size passes."""

    def forward(self, x: Tensor) -> Tensor:
        queries, masks = self.head(self.backbone(x)[1:])
        return semantic_logits(self.head.classify(queries[-1]), masks[-1], x.shape[-2:])

    def forward_train(self, x: Tensor) -> QueryOutputs:
        queries, masks = self.head(self.backbone(x)[1:])
        return QueryOutputs(tuple(map(self.head.classify, queries)), tuple(masks))


DROP_PATH = {"t": 0.2, "s": 0.3, "b": 0.4, "l": 0.6, "xl": 0.4}
VARIANTS = {
    f"lrformer_{size}_plus": {**BACKBONES[f"lrformer_{size}"], "drop_path": rate}
    for size, rate in DROP_PATH.items()
}
register(LRFormerPlus, VARIANTS, needs=DECODER)
