"""Networks: tensor in, tensor out. Importing this package registers every family."""

from models import pidnet, rtformer, rtlinearformer  # noqa: F401  (each registers its variants)
from models.base import SegModel, TrainOutputs
from models.layers.reparam import fuse
from models.registry import build_model, list_models, resolve_name

__all__ = ["SegModel", "TrainOutputs", "build_model", "fuse", "list_models", "resolve_name"]
