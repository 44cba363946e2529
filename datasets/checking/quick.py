"""The part of the check that takes seconds, before any training or evaluation."""

import numpy as np

from ..meta import DataError
from ..segmentation import SceneDataset, SegmentationDataset
from ..transforms import TrainTransform, check_crop
from .labels import LabelCounts, class_counts, judge, smooth_colors


def quick_check(dataset: SceneDataset, samples: int = 8) -> list[str]:
    """What takes seconds and finds most mistakes, before any training or evaluation.

    Every listed file exists and is not empty; some samples (the first ones and others spread over
    the list) decode, match in size and hold known label values in the right encoding; the crop of
    a TrainTransform fits (see `check_crop`), and there are labels to train with.

    With `skip_unreadable` a file may be missing or damaged as long as one sample can be read.

    Returns sentences about what is possible, but worth a look.

    Raises ValueError with one sentence about the first problem.
    """
    training = isinstance(dataset.transform, TrainTransform)
    if isinstance(dataset, SegmentationDataset):
        _check_files(dataset, training)
    first = range(min(samples // 2, len(dataset)))
    spread = np.linspace(0, len(dataset) - 1, num=samples - samples // 2, dtype=int)
    chosen = sorted({*first, *(int(index) for index in spread)})
    scenes, unreadable = {}, []
    for index in chosen:
        try:
            scenes[index] = dataset.load(index)
        except DataError as error:
            if not dataset.skip_unreadable:
                raise
            unreadable.append(error)
    if not scenes:
        raise unreadable[0]
    if training:
        check_crop(dataset.transform, [scene.image.shape[:2] for scene in scenes.values()])
    if isinstance(dataset, SegmentationDataset) and dataset.labelled:
        return _check_labels(dataset, {index: scene.label for index, scene in scenes.items()})
    return []


def _check_files(dataset: SegmentationDataset, training: bool) -> None:
    if training and not dataset.labelled:
        raise DataError(f"{dataset.list_path} names no labels; training needs image<TAB>label")
    if not dataset.folder.is_dir():
        raise DataError(
            f"{dataset.folder} is not a folder; DATASET.ROOT is {dataset.root} and must hold "
            f"{dataset.meta.name}/ as data/README.md shows"
        )
    problems = [] if dataset.skip_unreadable else dataset.missing_files()
    if problems:
        more = f" (and {len(problems) - 1} more like it)" if len(problems) > 1 else ""
        raise DataError(problems[0] + more)


def _check_labels(dataset: SegmentationDataset, labels: dict[int, np.ndarray]) -> list[str]:
    """What the labels of the samples, class indices by entry, say together."""
    meta, scheme = dataset.meta, dataset.meta.encoding(dataset.encoding)
    counts, names = LabelCounts(meta.num_classes), []
    smooth: dict[str, str] = {}
    for index, label in labels.items():
        values, name = dataset.label_values(index), dataset.entries[index].label
        names.append(name)
        counts.add(
            np.bincount(values.ravel(), minlength=256) if scheme.channels == 1 else None,
            class_counts(label, meta.num_classes, meta.ignore_label),
        )
        oddity = smooth_colors(values, label == meta.ignore_label, scheme)
        if oddity:
            smooth[name] = oddity
    problems, remarks = judge(meta, dataset.encoding, dataset.encoding_is_named, counts, names)
    if problems:
        raise DataError(f"{dataset.list_path}: {problems[0]}")
    remarks = [f"{dataset.list_path}: {remark}" for remark in remarks]
    if smooth:
        name, oddity = next(iter(smooth.items()))
        remarks.append(f"{name} {oddity} ({len(smooth)} of {len(labels)} labels looked at)")
    return remarks
