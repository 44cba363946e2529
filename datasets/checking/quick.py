"""The part of the check that takes seconds, before any training or evaluation."""

from collections import Counter

import numpy as np

from ..files import read_header
from ..meta import DataError
from ..scenes import FIND_ALL, SceneDataset
from ..segmentation import SegmentationDataset
from ..transforms import Sample, TrainTransform, check_crop
from .label_files import label_oddities
from .labels import LabelCounts, class_counts, judge
from .photographs import photograph_oddities


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
        raise DataError(f"{unreadable[0]}; {FIND_ALL}")
    if training:
        check_crop(dataset.transform, [scene.image.shape[:2] for scene in scenes.values()])
    if not isinstance(dataset, SegmentationDataset):
        return []
    labelled = scenes if dataset.labelled else {}
    values = {index: dataset.label_values(index) for index in labelled}
    remarks = _check_labels(dataset, scenes, values) if labelled else []
    return remarks + _oddities(dataset, scenes, values)


def shared_images(train_set: SceneDataset, test_set: SceneDataset) -> list[str]:
    """A sentence where images that are scored are trained on; [] for drawn scenes."""
    if not all(isinstance(dataset, SegmentationDataset) for dataset in (train_set, test_set)):
        return []
    trained, scored = ({e.image for e in dataset.entries} for dataset in (train_set, test_set))
    common = trained & scored
    if not common:
        return []
    return [
        f"{len(common)} of {len(scored)} images of {test_set.list_path} are in "
        f"{train_set.list_path} too, {min(common)} for one; a score on images that were trained on "
        "says nothing about others"
    ]


def _check_files(dataset: SegmentationDataset, training: bool) -> None:
    if training and not dataset.labelled:
        raise DataError(f"{dataset.list_path} names no labels; training needs image<TAB>label")
    if problem := dataset.folder_problem():
        raise DataError(problem)
    problems = [] if dataset.skip_unreadable else dataset.missing_files()
    if problems:
        more = f" (and {len(problems) - 1} more like it)" if len(problems) > 1 else ""
        raise DataError(problems[0] + more)


def _check_labels(
    dataset: SegmentationDataset, scenes: dict[int, Sample], values: dict[int, np.ndarray]
) -> list[str]:
    """What the labels of the samples, scenes and label values by entry, say together."""
    meta, scheme = dataset.meta, dataset.meta.encoding(dataset.encoding)
    counts, names = LabelCounts(meta.num_classes), []
    for index, scene in scenes.items():
        names.append(dataset.entries[index].label)
        by_value = scheme.channels == 1
        counts.add(
            np.bincount(values[index].ravel(), minlength=256) if by_value else None,
            class_counts(scene.label, meta.num_classes, meta.ignore_label),
        )
    problems, remarks = judge(meta, dataset.encoding, dataset.encoding_is_named, counts, names)
    if problems:
        raise DataError(f"{dataset.list_path}: {problems[0]}")
    return [f"{dataset.list_path}: {remark}" for remark in remarks]


def _oddities(
    dataset: SegmentationDataset, scenes: dict[int, Sample], values: dict[int, np.ndarray]
) -> list[str]:
    """One sentence for each kind of oddity that the files of the samples have."""
    meta, scheme = dataset.meta, dataset.meta.encoding(dataset.encoding)
    counts: Counter[tuple[str, str]] = Counter()
    first: dict[tuple[str, str], str] = {}
    for index, scene in scenes.items():
        entry = dataset.entries[index]
        data = (dataset.folder / entry.image).read_bytes()
        found = {"images": photograph_oddities(data, read_header(data))}
        if scene.label is not None:
            data = (dataset.folder / entry.label).read_bytes()
            ignored = scene.label == meta.ignore_label
            found["labels"] = label_oddities(data, values[index], ignored, meta, scheme)
        for part, oddities in found.items():
            name = entry.image if part == "images" else entry.label
            for kind, text in oddities:
                counts[part, kind] += 1
                first.setdefault((part, kind), f"{dataset.list_path}: {name} {text}")
    return [
        f"{text} ({counts[part, kind]} of {len(scenes)} {part} looked at)"
        for (part, kind), text in first.items()
    ]
