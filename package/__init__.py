"""RTSeg as a package: real-time semantic segmentation networks, and trained ones ready to use.

    import rtseg

    predictor = rtseg.load("best.pt")
    classes = predictor(image)  # (H, W, 3) uint8 RGB -> (H, W) uint8, places in predictor.names

`rtseg.models`, `rtseg.datasets` and `rtseg.utils` are the folders of the same names.
"""

from pathlib import Path
from typing import Any

from .datasets import EvalTransform, get_meta
from .models import fuse
from .models.weights import load_trained
from .utils.predictor import Predictor

__version__ = "0.1.0"
__all__ = ["Predictor", "load"]


def load(
    path: str | Path,
    architecture: str | None = None,
    classes: str | Path | None = None,
    *,
    options: dict[str, Any] | None = None,
    **run: Any,
) -> Predictor:
    """A trained network, ready for pictures.

    Args:
        path: best.pt or last.pt of a run, or a converted file, which need nothing else; or
            published weights, with `architecture` and `classes`.
        architecture: a name of `rtseg.models.list_models()`.
        classes: a name of `rtseg.datasets.list_datasets()`, or a yaml file of one's own.
        options: of the network's constructor, where the file does not state them.
        run: device, precision, runtime, size and slide of `rtseg.utils.predictor.Predictor`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, does not fit, or does not say enough.
    """
    meta = None if classes is None else get_meta(str(classes))
    named = {} if meta is None else {
        "class_names": meta.class_names, "palette": meta.palette, "dataset": meta.name
    }  # fmt: skip
    trained = load_trained(path, architecture, **named, **(options or {}))
    transform = EvalTransform.from_facts(trained.input, str(path))
    return Predictor(fuse(trained.model), transform, trained.class_names, trained.palette, **run)
