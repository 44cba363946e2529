"""How the labelled pixels of a dataset share out over its classes, and weights that follow."""

import hashlib
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from .checking.labels import class_counts
from .meta import DataError
from .scenes import SceneDataset

ENET = 1.10  # of 1 / ln(ENET + share): 10.5 for a class that is not there, 1.35 for one alone


def count_pixels(dataset: SceneDataset, workers: int = 0) -> list[int]:
    """Pixels of every class over all labels of `dataset`, ignored ones left out.

    `workers` threads read them. A label that cannot be read counts nothing where the dataset skips
    such; else its DataError is raised.
    """
    meta, total = dataset.meta, np.zeros(dataset.meta.num_classes, np.int64)

    def count(index: int) -> np.ndarray | int:
        try:
            label = dataset.label(index)
        except DataError:
            if dataset.skip_unreadable:
                return 0
            raise
        return class_counts(label, meta.num_classes, meta.ignore_label)[: len(total)]

    with ThreadPoolExecutor(max(1, workers)) as pool:
        for counts in pool.map(count, range(len(dataset))):
            total += counts
    return total.tolist()


def fingerprint(dataset: SceneDataset) -> str:
    """Hexadecimal digits that change whenever the labels, their files or their meaning do.

    Raises OSError where a file is gone.
    """
    digest = hashlib.blake2b(repr(dataset.meta.class_names).encode(), digest_size=16)
    for index in range(len(dataset)):
        source = dataset.source(index)
        digest.update(source.identity.encode() + b"\0" + source.stamp)
    return digest.hexdigest()


def enet_weights(pixels: Sequence[int]) -> tuple[float, ...]:
    """1 / ln(1.1 + share of the class) from its pixels, as ENet weighs classes (there 1.02), scaled
    so that the labelled pixels weigh 1 on average; 1 for every class where there are none.

    Without the scale the weights would be 4 or so on average, and losses that do not divide by them
    (OHEM, a mean over all pixels) that much larger beside the others.
    """
    total = sum(pixels)
    if not total:
        return (1.0,) * len(pixels)
    weights = [1 / math.log(ENET + count / total) for count in pixels]
    mean = sum(weight * count for weight, count in zip(weights, pixels, strict=True)) / total
    return tuple(weight / mean for weight in weights)
