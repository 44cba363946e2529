"""Labelled images: a list file -> items for a batch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from datasets.files import Entry, find_list, read_image, read_label, read_list
from datasets.meta import DataError, DatasetMeta
from datasets.sampler import Draw
from datasets.transforms import Sample

Transform = Callable[[Sample, np.random.Generator], Sample]


class SceneDataset(Dataset):
    """What every dataset shares: scene -> transform -> item.

    A subclass gives `__len__`, `load(index)` (the untransformed Sample) and `name(index)`.

    Args:
        meta: classes.
        transform: (Sample, Generator) -> normalised Sample.
        need_boundary: items carry `boundary`; the transform must make it.
    """

    def __init__(
        self, meta: DatasetMeta, transform: Transform, need_boundary: bool = False
    ) -> None:
        self.meta, self.transform, self.need_boundary = meta, transform, need_boundary

    def load(self, index: int) -> Sample:
        """The untransformed scene: RGB image and class indices, uint8."""
        raise NotImplementedError

    def name(self, index: int) -> str:
        """What identifies scene `index`, for example its image path."""
        raise NotImplementedError

    def __getitem__(self, draw: int | Draw) -> dict[str, Any]:
        """One item.

        Args:
            draw: `Draw(index, seed)`; a bare index means seed 0.

        Returns:
            image (3, h, w) float32; label (h, w) uint8, where there is one; boundary (h, w) uint8
            0/1, where asked for; name; size (H, W) before the transform.
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
        root: DATASET.ROOT; images and labels lie under `root/<meta.name>`.
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
        self.root, self.folder = Path(root), Path(root) / meta.name
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
        entry = self.entries[index]
        image = read_image(self.folder / entry.image, entry.image)
        label = None if entry.label is None else self.load_label(index)
        if label is not None and label.shape != image.shape[:2]:
            raise DataError(
                f"{entry.label} is {_size(label)} and its image {entry.image} is {_size(image)} "
                f"(height x width); they must be equal"
            )
        return Sample(image, label)

    def load_label(self, index: int) -> np.ndarray:
        """The label of entry `index` as class indices (H, W) uint8. Raises DataError as `load`."""
        file = self.entries[index].label
        values = read_label(self.folder / file, self.meta.encoding(self.encoding), file)
        label = self.meta.encode(values, self.encoding, file)
        # labelTrainIds are valid labelIds: only the file's name tells them apart.
        suffix = Path(file).stem.rsplit("_", 1)[-1]
        if suffix != self.encoding and suffix in self.meta.encodings:
            raise DataError(
                f"{file} holds {suffix} by its name and is read as {self.encoding}; "
                f"set DATASET.LABELS {suffix}"
            )
        return label


def _size(array: np.ndarray) -> str:
    return f"{array.shape[0]}x{array.shape[1]}"
