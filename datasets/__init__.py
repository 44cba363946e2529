"""Files -> (image, label, boundary). numpy, cv2, Pillow and torch only."""

import difflib
from pathlib import Path

from .ade20k import ADE20K
from .balance import count_pixels, enet_weights, fingerprint
from .boundary import label_boundary
from .cache import make_cache
from .camvid import CAMVID, SYNTHETIC
from .checking import quick_check, shared_images
from .cityscapes import CITYSCAPES
from .cocostuff import COCOSTUFF10K, COCOSTUFF164K
from .device.loader import DeviceLoader
from .errors import InputError
from .eval_transform import EvalTransform
from .files import read_image, read_list
from .loading import collate, make_loader
from .meta import ColorEncoding, DataError, DatasetMeta, IdEncoding
from .private import read_meta
from .sampler import Draw, EpochBatchSampler
from .scenes import SceneDataset
from .segmentation import SegmentationDataset
from .transforms import Normalize, Sample, TrainTransform, check_crop
from .voc2012 import VOC2012

__all__ = [
    "ColorEncoding",
    "DataError",
    "DatasetMeta",
    "DeviceLoader",
    "Draw",
    "EpochBatchSampler",
    "EvalTransform",
    "IdEncoding",
    "Normalize",
    "Sample",
    "SceneDataset",
    "SegmentationDataset",
    "TrainTransform",
    "check_crop",
    "collate",
    "count_pixels",
    "enet_weights",
    "fingerprint",
    "get_meta",
    "label_boundary",
    "list_datasets",
    "make_cache",
    "make_loader",
    "quick_check",
    "read_image",
    "read_list",
    "shared_images",
]

_METAS = {
    meta.name: meta
    for meta in (ADE20K, CAMVID, CITYSCAPES, COCOSTUFF10K, COCOSTUFF164K, VOC2012, SYNTHETIC)
}


def list_datasets() -> list[str]:
    """Names of all datasets, sorted."""
    return sorted(_METAS)


def get_meta(name: str) -> DatasetMeta:
    """The classes of dataset `name`, or of the yaml file that `name` is (see datasets.private).

    Raises ValueError that names the nearest match on a miss; see also `read_meta`.
    """
    if name in _METAS:
        return _METAS[name]
    if name.lower().endswith((".yaml", ".yml")):
        meta = read_meta(name)
        if meta.name in _METAS:
            raise InputError(f"{name}: {meta.name} is a dataset that is built in; rename the file")
        return meta
    if files := sorted(Path(name).glob("*.y*ml")) if Path(name).is_dir() else []:
        raise InputError(f"{name} is a folder; the data set is described by {files[0]}")
    near = difflib.get_close_matches(name.lower(), list(_METAS), n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]}?" if near else ";"
    raise InputError(
        f"unknown dataset {name!r}{hint} accepted: {', '.join(list_datasets())}, or a .yaml file"
    )
