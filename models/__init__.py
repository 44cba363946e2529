"""Networks: tensor in, tensor out. Importing this package registers every family."""

from models import (  # noqa: F401  (each registers its variants)
    bisenetv1,
    bisenetv2,
    ddrnet,
    lrformer,
    pidnet,
    rdrnet,
    rtformer,
    rtlinearformer,
)
from models.base import SegModel, TrainOutputs
from models.layers.reparam import fuse
from models.registry import (
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
