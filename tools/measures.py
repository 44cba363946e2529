"""What an evaluation measures beside its confusion matrix: boundaries, and parts of the list."""

from pathlib import PurePosixPath
from typing import Any

import torch
from torch import Tensor
from yacs.config import CfgNode

from datasets import DatasetMeta, SceneDataset
from utils.boundary_score import BoundaryScore
from utils.errors import InputError
from utils.metrics import ConfusionMatrix


class Measures:
    """Called with every batch and its prediction, as `evaluate` does.

    Raises ValueError where TEST.PER parts no images of the list.
    """

    def __init__(self, config: CfgNode, dataset: SceneDataset) -> None:
        test, self.meta = config.TEST, dataset.meta
        self.boundary = _boundary(self.meta) if test.BOUNDARY and dataset.labelled else None
        self.groups: dict[str, Group] = {}
        self.rule = test.PER if dataset.labelled else "none"
        if self.rule != "none":
            names = [dataset.name(index) for index in range(len(dataset))]
            if len({group_of(name, self.rule) for name in names}) == len(names) > 1:
                raise InputError(
                    f"TEST.PER {self.rule}: every image of {config.DATASET.TEST_SET}, such as "
                    f"{names[0]}, is a part by itself; accepted: none, or folder or prefix (up to "
                    "the first _ of the name) where images share one"
                )

    def __call__(self, batch: dict[str, Any], prediction: Tensor) -> None:
        if self.boundary is None and self.rule == "none":
            return
        guess = prediction.to(torch.uint8).cpu()
        for name, classes, label in zip(batch["name"], guess, batch["label"], strict=True):
            if self.boundary is not None:
                self.boundary.update(classes.numpy(), label.numpy())
            if self.rule != "none":
                key = group_of(name, self.rule)
                if key not in self.groups:
                    self.groups[key] = Group(self.meta, self.boundary is not None)
                self.groups[key].update(classes, label)

    def text(self) -> str:
        """What is printed below the scores; "" where nothing was asked for."""
        lines = [self.boundary.summary()] if self.boundary is not None else []
        if self.groups:
            width = max(len("part"), *map(len, self.groups))
            outlines = "   boundary" if self.boundary is not None else ""
            lines += ["", f"{'part':{width}}     images       mIoU   accuracy{outlines}"]
            lines += [f"{k:{width}}{group.row()}" for k, group in sorted(self.groups.items())]
        return "\n".join(lines)

    def record(self) -> dict[str, Any]:
        """For the record; fractions in 0..1."""
        found: dict[str, Any] = {}
        if self.boundary is not None:
            found["boundary"] = self.boundary.to_dict()
        if self.groups:
            parts = {key: group.record() for key, group in sorted(self.groups.items())}
            found["parts"] = {"by": self.rule, "scores": parts}
        return found


class Group:
    """The scores of the images of one sequence or folder."""

    def __init__(self, meta: DatasetMeta, outlines: bool) -> None:
        self.confusion = ConfusionMatrix(meta.num_classes, meta.class_names, meta.ignore_label)
        self.boundary = _boundary(meta) if outlines else None
        self.images = 0

    def update(self, classes: Tensor, label: Tensor) -> None:
        """Count one image."""
        self.images += 1
        self.confusion.update(classes[None], label[None])
        if self.boundary is not None:
            self.boundary.update(classes.numpy(), label.numpy())

    def row(self) -> str:
        """Number of images and scores in percent."""
        overall = self.confusion.overall()
        scores = [overall["mIoU"], overall["pixel_accuracy"]]
        scores += [] if self.boundary is None else [self.boundary.mean()]
        cells = ["-" if score != score else f"{100 * score:.2f}" for score in scores]
        return "".join(f"{cell:>11}" for cell in (self.images, *cells))

    def record(self) -> dict[str, Any]:
        """As of the whole list, without the matrix."""
        scores = self.confusion.to_dict()
        del scores["confusion_matrix"]
        boundary = {} if self.boundary is None else {"boundary": self.boundary.to_dict()}
        return {"images": self.images, **scores, **boundary}


def group_of(name: str, rule: str) -> str:
    """The part of the list that image `name` belongs to, by `rule`: folder or prefix.

    Prefix is what stands before the first _ of the file's name, as CamVid's sequences do.
    """
    path = PurePosixPath(name)
    return path.parent.as_posix() if rule == "folder" else path.stem.partition("_")[0]


def _boundary(meta: DatasetMeta) -> BoundaryScore:
    return BoundaryScore(meta.num_classes, meta.class_names, meta.ignore_label)
