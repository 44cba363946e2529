"""What a whole list holds, added up from the findings of its entries."""

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from .examine import CheckedList, Finding
from .labels import LabelCounts, judge
from .photographs import Oddity

USUAL = 0.9  # a size that this share of the images has makes other sizes outliers
FAR = 16  # else: so many times more or fewer pixels than the median
MATCHING = 0.5  # share of lines whose names must match before the others are doubted
PROBLEM = "problem"  # the kind of all suspects that have one
LONG = 4  # or a side so many times as long as the other


class Summary:
    """Problems, suspicions and statistics of a list.

    problems make training wrong or impossible; oddities are about one entry and worth a look; notes
    are about the whole list. All are sentences, in list order as far as they are found so.
    pixels, images: (num_classes + 1,) int64, the ignored pixels last.
    suspects: entries to look at, in list order.
    """

    def __init__(self, dataset: CheckedList) -> None:
        self.dataset = dataset
        self.problems: list[str] = list(dataset.list_problems)
        self.oddities: list[Oddity] = []
        self.notes: list[str] = []
        self.suspects: dict[int, None] = {}
        self._first_of: dict[str, int] = {}  # kind of oddity or problem -> entry
        self.sizes: dict[int, tuple[int, int]] = {}
        self.deep = 0
        self.counts = LabelCounts(dataset.meta.num_classes)
        self.images = np.zeros_like(self.counts.classes)

    @property
    def pixels(self) -> np.ndarray:
        """Pixels per class, the ignored ones last."""
        return self.counts.classes

    @property
    def suspicions(self) -> list[str]:
        """The sentences of the oddities."""
        return [oddity.text for oddity in self.oddities]

    def one_of_each_first(self) -> list[str]:
        """`suspicions`, those first that are the first of their kind."""
        first: dict[str, Oddity] = {}
        for oddity in self.oddities:
            first.setdefault(oddity.kind, oddity)
        chosen = set(map(id, first.values()))
        others = [oddity for oddity in self.oddities if id(oddity) not in chosen]
        return [oddity.text for oddity in (*first.values(), *others)]

    def suspects_of_each_kind_first(self) -> list[int]:
        """`suspects`, those first that are the first of a kind of oddity, or have a problem."""
        return list(dict.fromkeys([*self._first_of.values(), *self.suspects]))

    def _suspect(self, index: int, *kinds: str) -> None:
        self.suspects[index] = None
        for kind in kinds:
            self._first_of.setdefault(kind, index)

    def add(self, finding: Finding) -> None:
        """Take one finding in."""
        self.problems += finding.problems
        self.oddities += finding.suspicions
        if finding.problems:
            self._suspect(finding.index, PROBLEM)
        for oddity in finding.suspicions:
            self._suspect(finding.index, oddity.kind)
        if finding.size:
            self.sizes[finding.index] = finding.size
        self.deep += finding.bits > 8
        self.counts.add(finding.values, finding.counts)
        if finding.counts is not None:
            self.images += finding.counts > 0

    def finish(self) -> None:
        """Add what shows only over the whole list."""
        self._look_at_sizes()
        if self.deep:
            images = f"{self.deep} image{'s' if self.deep > 1 else ''}"
            self.notes.append(
                f"{self.dataset.list_path}: {images} with more than 8 bits per value, of which the "
                "upper 8 are read"
            )
        self._look_at_names()
        self._look_at_labels()

    def size_counts(self) -> list[tuple[tuple[int, int], int]]:
        """(height, width) and number of images, most frequent first."""
        return Counter(self.sizes.values()).most_common()

    def to_dict(self) -> dict[str, Any]:
        """All of it for a JSON report; shares are fractions of the labelled list's pixels."""
        meta, total = self.dataset.meta, max(int(self.pixels.sum()), 1)
        names = (*meta.class_names, "(ignored)")
        rows = zip(names, self.pixels.tolist(), self.images.tolist(), strict=True)
        return {
            "list": str(self.dataset.list_path),
            "entries": len(self.dataset),
            "labelled": self.dataset.labelled,
            "problems": self.problems,
            "suspicions": self.suspicions,
            "notes": self.notes,
            "sizes": [{"height": h, "width": w, "images": n} for (h, w), n in self.size_counts()],
            "classes": [
                {"name": name, "pixels": pixels, "share": pixels / total, "images": images}
                for name, pixels, images in rows
            ],
        }

    def _look_at_sizes(self) -> None:
        if len(self.sizes) < 3:
            return
        (usual, count), *_ = self.size_counts()
        areas = [height * width for height, width in self.sizes.values()]
        median = float(np.median(areas))
        for index, (height, width) in self.sizes.items():
            if count >= USUAL * len(self.sizes):
                odd, reference = (height, width) != usual, f"most are {usual[0]}x{usual[1]}"
            else:
                ratio = height * width / median
                odd = not 1 / FAR <= ratio <= FAR or max(height, width) > LONG * min(height, width)
                reference = f"the median has {median:.0f} pixels"
            if odd:
                image = self.dataset.entries[index].image
                text = f"{image} is {height}x{width} (height x width); {reference}"
                self.oddities.append(Oddity("size", self.dataset.place(index) + text))
                self._suspect(index, "size")

    def _look_at_names(self) -> None:
        """Labels that stand in the line of another image, going by names that otherwise match."""
        if not self.dataset.labelled:
            return
        every = self.dataset.entries
        indices = [index for index in range(len(every)) if every.first(index) == index]
        entries = [every[index] for index in indices]  # repeated lines count once
        for label, count in Counter(e.label for e in entries).items():
            if count > 1:
                self.notes.append(
                    f"{self.dataset.list_path}: {label} is the label of {count} images"
                )
        images, labels = _keys([e.image for e in entries]), _keys([e.label for e in entries])
        if len(entries) < 3 or len(set(images)) < len(images):
            return
        place = {key: index for index, key in enumerate(images)}
        apart = [index for index, key in enumerate(labels) if key != images[index]]
        if len(apart) > (1 - MATCHING) * len(entries) and len(apart) > 2:
            return  # names say nothing here
        for index in apart:
            other = place.get(labels[index])
            if other is not None:
                self.problems.append(
                    f"{self.dataset.place(indices[index])}{entries[index].label} belongs by its "
                    f"name to {entries[other].image} of line {entries[other].line}, not to "
                    f"{entries[index].image}"
                )
                self._suspect(indices[index], "name")

    def _look_at_labels(self) -> None:
        dataset, path = self.dataset, self.dataset.list_path
        names = [entry.label for entry in dataset.entries] if dataset.labelled else []
        problems, remarks = judge(
            dataset.meta, dataset.encoding, dataset.encoding_is_named, self.counts, names
        )
        self.problems += [f"{path}: {problem}" for problem in problems]
        self.notes += [f"{path}: {remark}" for remark in remarks]
        pairs = zip(dataset.meta.class_names, self.pixels, strict=False)
        absent = [name for name, count in pairs if not count]
        if absent and self.pixels.any():
            self.notes.append(f"{path}: no pixel of {', '.join(absent)}")


def _keys(files: list[str]) -> list[str]:
    """File names without extension and without the ending that all of them share."""
    stems = [Path(file).stem for file in files]
    ordered = sorted(stem[::-1] for stem in stems)  # first and last differ earliest
    pairs = zip(ordered[0], ordered[-1], strict=False)
    ending = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))
    return [stem[: len(stem) - ending] for stem in stems]
