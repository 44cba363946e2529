"""The pictures on which an exported file is calibrated and checked."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from datasets import (
    DatasetMeta,
    EvalTransform,
    Normalize,
    Sample,
    SegmentationDataset,
    read_image,
    read_list,
)
from datasets.sources import PICTURES, find_sources
from datasets.synthetic import draw_scene
from datasets.transforms import resized
from utils.errors import InputError
from utils.gate import Scene

DRAWN = 4  # scenes where no pictures are named
FIRST_DRAWN = 200_000  # that no configuration trains on


class Pictures:
    """Pictures with labels where there are some; they are read when they are asked for.

    labelled: whether `load` gives labels. named: how sentences call them.
    """

    labelled = False

    def __init__(self, files: list[Path], named: str) -> None:
        self.files, self.named = files, named

    def __len__(self) -> int:
        return len(self.files)

    def load(self, index: int) -> Sample:
        """Image and label as they are stored. Raises DataError."""
        return Sample(read_image(self.files[index]))

    def checked(self, option: str) -> "Pictures":
        """Itself. Raises FileNotFoundError or DataError for a file that cannot be read."""
        for index, file in enumerate(self.files):
            if not file.is_file():
                raise FileNotFoundError(
                    f"{option}: {file} does not exist; --root names the folder that a list's files "
                    "lie below"
                )
            self.load(index)
        return self


class Listed(Pictures):
    """The pairs of a list file."""

    def __init__(self, dataset: SegmentationDataset, named: str) -> None:
        super().__init__([], named)
        self.dataset, self.labelled, self.load = dataset, dataset.labelled, dataset.load

    def __len__(self) -> int:
        return len(self.dataset)


class Drawn(Pictures):
    """Scenes that the project draws itself; labels where the classes are those of the drawing."""

    def __init__(self, *, labelled: bool) -> None:
        super().__init__([], f"{DRAWN} drawn scenes")
        self.labelled = labelled

    def __len__(self) -> int:
        return DRAWN

    def load(self, index: int) -> Sample:
        """A scene."""
        image, label = draw_scene(FIRST_DRAWN + index)
        return Sample(image, label if self.labelled else None)


def find_pictures(
    path: Path, option: str, root: Path, meta: DatasetMeta | None, encoding: str
) -> Pictures:
    """The pictures of a folder, with all below it, or of a list file, with its labels.

    Args:
        option: that names `path`.
        root: that the list's files lie below, as DATASET.ROOT.
        meta: what its labels mean; None = not known, and they are not read.
        encoding: of the labels, --labels; "" = the first of `meta`.

    Raises:
        FileNotFoundError, ValueError: there are none.
    """
    if path.is_dir() or path.suffix.lower() in PICTURES:
        found = find_sources([str(path)]).sources
        files = [Path(source.name) for source in found if source.kind == "picture"]
        if not files:
            raise InputError(f"{option} {path} holds no picture")
        return Pictures(files, f"{len(files)} pictures of {path}").checked(option)
    if not path.is_file() and not (root / path).is_file():
        raise FileNotFoundError(f"{option} {path} is neither a folder nor a list file")
    if meta is None:
        listed = path if path.is_file() else root / path
        entries = read_list(listed, folder=root)
        if encoding:
            raise InputError(f"--labels {encoding} needs --classes, a data set or a .yaml file")
        unread = " without their labels, whose meaning --classes would tell"
        named = f"{len(entries)} pictures of {path}{unread if entries[0].label else ''}"
        return Pictures([root / entry.image for entry in entries], named).checked(option)
    listed = path.resolve() if path.is_file() else path
    dataset = SegmentationDataset(root, listed, meta, encoding, transform=EvalTransform())
    if problem := dataset.folder_problem() or next(iter(dataset.missing_files()), None):
        raise FileNotFoundError(f"{option} {problem}")
    return Listed(dataset, f"{len(dataset)} pictures of {path}")


def frames(pictures: Pictures, size: tuple[int, int], most: int | None = None) -> Iterator[Sample]:
    """Pictures brought to `size` (height, width), labels as they are; `most` evenly spaced ones."""
    chosen = range(len(pictures))
    if most is not None and most < len(pictures):
        chosen = np.linspace(0, len(pictures) - 1, most).round().astype(int).tolist()
    for index in chosen:
        sample = pictures.load(index)
        if sample.image.shape[:2] != size:
            sample.image = resized(sample.image, size, cv2.INTER_LINEAR)
        yield sample


def scenes(
    pictures: Pictures, sizes: list[tuple[int, int]], normalize: Normalize
) -> Iterator[Scene]:
    """What the gate runs: all pictures at the first of `sizes`, one more at each other."""
    for number, size in enumerate(sizes):
        for sample in frames(pictures, size, 1 if number else None):
            yield Scene(sample.image, normalize(sample.image), sample.label)
