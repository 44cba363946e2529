"""Networks: tensor in, tensor out. Importing this package registers every family."""

from . import (  # noqa: F401  (each registers its variants)
    bisenetv1,
    bisenetv2,
    ddrnet,
    gcnet,
    lrformer,
    lrformer_plus,
    pidnet,
    rdrnet,
    rtformer,
    rtlinearformer,
)
from .base import SegModel, TrainOutputs
from .layers.reparam import fuse
from .registry import (
    accepted_options,
    build_backbone,
    build_model,
    list_backbones,
    list_models,
    resolve_name,
)

__all__ = [
    "SegModel",
    "TrainOutputs",
    "accepted_options",
    "build_backbone",
    "build_model",
    "fuse",
    "list_backbones",
    "list_models",
    "resolve_name",
]
