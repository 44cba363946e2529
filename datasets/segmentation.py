"""Labelled images: a list file -> items for a batch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from datasets.files import Entry, file_problem, find_list, read_image, read_label, read_list
from datasets.meta import DataError, DatasetMeta
from datasets.sampler import Draw
from datasets.transforms import Sample, TrainTransform, check_crop

Transform = Callable[[Sample, np.random.Generator], Sample]


class SceneDataset(Dataset):
    """What every dataset shares: scene -> transform -> item.

    A subclass gives `__len__`, `load(index)` and `name(index)`.

    Args:
        meta: classes.
        transform: TrainTransform, EvalTransform or the like.
        need_boundary: items carry the boundary target, which the transform has to make.
    """

    labelled = True  # whether scenes have labels

    def __init__(
        self, meta: DatasetMeta, transform: Transform, need_boundary: bool = False
    ) -> None:
        self.meta, self.transform, self.need_boundary = meta, transform, need_boundary

    def __len__(self) -> int:
        raise NotImplementedError(f"{type(self).__name__} defines no __len__")

    def load(self, index: int) -> Sample:
        """The untransformed scene: RGB image and class indices, uint8."""
        raise NotImplementedError(f"{type(self).__name__} defines no load")

    def name(self, index: int) -> str:
        """What identifies scene `index`, for example its image path."""
        raise NotImplementedError(f"{type(self).__name__} defines no name")

    def __getitem__(self, draw: int | Draw) -> dict[str, Any]:
        """One item.

        Args:
            draw: `Draw(index, seed)`; a bare index means seed 0.

        Returns:
            image (3, h, w) float32; label (h, w) uint8 where there is one; boundary (h, w) uint8
            0/1 where asked for; name; size (H, W) before the transform.
        """
        index, seed = draw if isinstance(draw, tuple) else (draw, 0)
        scene = self.load(index)
        sample = self.transform(scene, np.random.default_rng(seed))
        item: dict[str, Any] = {"image": torch.from_numpy(sample.image)}
        if sample.label is not None:
            item["label"] = torch.from_numpy(sample.label)
        if self.need_boundary:
            if sample.boundary is None:
                raise ValueError(f"{self.name(index)}: the transform makes no boundary target")
            item["boundary"] = torch.from_numpy(sample.boundary)
        return item | {"name": self.name(index), "size": scene.image.shape[:2]}


class SegmentationDataset(SceneDataset):
    """The pairs of a list file.

    Args:
        root: DATASET.ROOT; images and labels lie under `meta.folder_under(root)`.
        list_file: relative to `root`, else to the repository's `data/`.
        meta: classes and label encodings.
        encoding: name of the label encoding; "" = the dataset's default.
        transform, need_boundary: see SceneDataset.

    Raises:
        FileNotFoundError: no such list.
        DataError: bad lines in it (see `read_list`).
        ValueError: unknown encoding.
    """

    def __init__(
        self,
        root: str | Path,
        list_file: str | Path,
        meta: DatasetMeta,
        encoding: str = "",
        *,
        transform: Transform,
        need_boundary: bool = False,
    ) -> None:
        super().__init__(meta, transform, need_boundary)
        self.root, self.folder = Path(root), meta.folder_under(root)
        self.encoding = encoding or next(iter(meta.encodings))
        meta.encoding(self.encoding)
        self.list_path = find_list(root, list_file)
        self.entries: list[Entry] = read_list(self.list_path)

    @property
    def labelled(self) -> bool:
        """Whether the list names labels."""
        return self.entries[0].label is not None

    def __len__(self) -> int:
        return len(self.entries)

    def name(self, index: int) -> str:
        """The image path as the list writes it."""
        return self.entries[index].image

    def load(self, index: int) -> Sample:
        """Read and check one pair.

        Raises:
            DataError: an unreadable file, a label of another kind or size than it should be, or
                a label value that the encoding does not know.
        """
        image = self.load_image(index)
        label = self.load_label(index) if self.labelled else None
        if label is not None and label.shape != image.shape[:2]:
            raise DataError(self.size_problem(index, image.shape[:2], label.shape))
        return Sample(image, label)

    def load_image(self, index: int) -> np.ndarray:
        """The photograph of entry `index`, (H, W, 3) uint8 RGB. Raises DataError."""
        file = self.entries[index].image
        return read_image(self.folder / file, file)

    def load_label(self, index: int) -> np.ndarray:
        """The class indices of entry `index`, (H, W) uint8. Raises DataError."""
        file = self.entries[index].label
        values = read_label(
            self.folder / file, self.meta.encoding(self.encoding), file, f"; {self._labels_hint}"
        )
        label = self.meta.encode(values, self.encoding, file)
        # labelTrainIds are valid labelIds: only the file's name tells them apart.
        suffix = Path(file).stem.rsplit("_", 1)[-1]
        if suffix != self.encoding and suffix in self.meta.encodings:
            raise DataError(
                f"{file} holds {suffix} by its name but is read as {self.encoding}; "
                f"set DATASET.LABELS {suffix}"
            )
        return label

    @property
    def _labels_hint(self) -> str:
        return f"DATASET.LABELS is {self.encoding}, accepted: {', '.join(self.meta.encodings)}"

    def size_problem(self, index: int, image: tuple[int, ...], label: tuple[int, ...]) -> str:
        """The sentence for sizes (height, width) that differ."""
        entry = self.entries[index]
        return (
            f"{entry.label} is {label[0]}x{label[1]} but its image {entry.image} is "
            f"{image[0]}x{image[1]} (height x width); they must be equal"
        )

    def missing_files(self) -> list[str]:
        """One sentence for every listed file that is absent, not a file, or empty."""
        problems = []
        for entry in self.entries:
            for file in filter(None, (entry.image, entry.label)):
                under = f" under {self.folder} (DATASET.ROOT={self.root})"
                problem = file_problem(self.folder / file, under)
                if problem:
                    problems.append(f"{self.list_path}:{entry.line}: {file} {problem}")
        return problems


def quick_check(dataset: SceneDataset, samples: int = 8) -> None:
    """What takes seconds and finds most mistakes, before any training or evaluation.

    Every listed file exists and is not empty; some samples (the first ones and others spread over
    the list) decode, match in size and hold known label values, one of a class at least; the crop
    of a TrainTransform fits (see `check_crop`), and there are labels to train with.

    Raises ValueError with one sentence about the first problem.
    """
    training = isinstance(dataset.transform, TrainTransform)
    if isinstance(dataset, SegmentationDataset):
        if training and not dataset.labelled:
            raise DataError(f"{dataset.list_path} names no labels; training needs image<TAB>label")
        if not dataset.folder.is_dir():
            raise DataError(
                f"{dataset.folder} is not a folder; DATASET.ROOT is {dataset.root} and must hold "
                f"{dataset.meta.name}/ as data/README.md shows"
            )
        problems = dataset.missing_files()
        if problems:
            more = f" (and {len(problems) - 1} more like it)" if len(problems) > 1 else ""
            raise DataError(problems[0] + more)
    first = range(min(samples // 2, len(dataset)))
    spread = np.linspace(0, len(dataset) - 1, num=samples - samples // 2, dtype=int)
    chosen = sorted({*first, *(int(index) for index in spread)})
    scenes = [dataset.load(index) for index in chosen]
    if training:
        check_crop(dataset.transform, [scene.image.shape[:2] for scene in scenes])
    labels = [scene.label for scene in scenes if scene.label is not None]
    if labels and not any((label != dataset.meta.ignore_label).any() for label in labels):
        raise DataError(
            f"none of {len(labels)} labels, {dataset.name(0)} the first, has a pixel of a class of "
            f"{dataset.meta.name}; DATASET.LABELS says how labels are encoded"
        )
