"""Narrow networks of LRFormer+, and what is said where they cannot be built."""

import torch
from torch import Tensor

from models import SegModel, build_model

SENTENCE = "lrformer_t_plus needs transformers, which is not installed: pip install -e .[query]"
NARROW = {
    "embed_dims": (4, 8, 20, 32),
    "expansions": (2, 2, 2, 2),
    "decoder_channels": 32,
    "num_queries": 10,
}
SHALLOW = {"depths": (1, 1, 2, 1), "encoder_layers": 2, "decoder_layers": 4}
LAYERS = {"depths": (2, 2, 6, 3), "encoder_layers": 6, "decoder_layers": 9}  # as published


def meta(name: str = "lrformer_t_plus", classes: int = 150, **options) -> SegModel:
    """Names and shapes, without values."""
    with torch.device("meta"):
        return build_model(name, classes, **options)


def small(classes: int = 7, seed: int = 0, **options) -> SegModel:
    """A narrow and shallow network in which every tensor does something, in eval mode."""
    torch.manual_seed(seed)
    model = build_model("lrformer_t_plus", classes, **{**NARROW, **SHALLOW, **options})
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith(("sampling_offsets.weight", "attention_weights.weight")):
                value.normal_(0, 0.1)  # 0 at the start
            elif value.ndim == 1 and name.endswith(("weight", "var", "scale1", "scale2")):
                value.uniform_(0.5, 1.5)
            elif value.ndim == 1 and "sampling_offsets" not in name:
                value.normal_(0, 0.1)
    return model.eval()


def image(height: int = 64, width: int = 96, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))
