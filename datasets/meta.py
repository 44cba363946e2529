"""What the pixels of a dataset mean: class names, colours, and how label files encode them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np

from .errors import InputError
from .outlines import smoothed_values

Color = tuple[int, int, int]

MOST_NAMED = 6  # values or classes in a sentence


class DataError(ValueError):
    """Bad data, told in one sentence.

    A DataLoader re-raises a worker's exception with the worker's traceback as its message; the
    sentence is cut out again here, so that the user reads the same words with 0 and 8 workers.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rsplit("DataError: ", 1)[-1].strip())


@dataclass(frozen=True)
class IdEncoding:
    """Single-channel label files.

    Args:
        ids: label value (0..255) -> class index.
        ignored: label values that mean "no class"; None = every value outside `ids` does.
    """

    ids: Mapping[int, int]
    ignored: frozenset[int] | None = None

    channels = 1

    def __post_init__(self) -> None:
        for value in [*self.ids, *(self.ignored or ())]:
            if not 0 <= value <= 255:
                raise InputError(f"label value {value} does not fit 8 bits (0..255)")
        both = sorted(set(self.ids) & (self.ignored or frozenset()))
        if both:
            raise InputError(f"label values {format_ranges(both)} are both a class and ignored")

    def classes(self) -> set[int]:
        """The class indices that this encoding can express."""
        return set(self.ids.values())

    def unknown_values(self, label: np.ndarray) -> list[int]:
        """Label values in `label` (H, W, uint8) that are neither a class nor ignored."""
        if self.ignored is None or not cv2.countNonZero(cv2.LUT(label, self._is_unknown)):
            return []
        present = np.flatnonzero(np.bincount(label.ravel(), minlength=256))
        return [int(value) for value in present if self._is_unknown[value]]

    def encode(self, label: np.ndarray, ignore_label: int) -> np.ndarray:
        """Label values (H, W, uint8) -> class indices (H, W, uint8); unknown values are ignored."""
        table = np.full(256, ignore_label, np.uint8)
        for value, index in self.ids.items():
            table[value] = index
        return cv2.LUT(label, table)

    @cached_property
    def _is_unknown(self) -> np.ndarray:
        table = np.ones(256, np.uint8)
        table[[*self.ids, *(self.ignored or ())]] = 0
        return table


@dataclass(frozen=True)
class ColorEncoding:
    """RGB label files: `colors` maps (r, g, b) to a class index, all other colours are ignored."""

    colors: Mapping[Color, int]

    channels = 3

    def __post_init__(self) -> None:
        for color in self.colors:
            _check_color(color)

    def classes(self) -> set[int]:
        """The class indices that this encoding can express."""
        return set(self.colors.values())

    def encode(self, label: np.ndarray, ignore_label: int) -> np.ndarray:
        """Colours (H, W, 3, uint8 RGB) -> class indices (H, W, uint8)."""
        # One 24-bit number per pixel (alpha is masked off) and one table: 10 times faster than a
        # comparison per class.
        packed = cv2.cvtColor(label, cv2.COLOR_RGB2RGBA).view("<u4")[..., 0] & 0xFFFFFF
        return self._table(ignore_label).take(packed)

    def _table(self, ignore_label: int) -> np.ndarray:
        cache = self.__dict__.setdefault("_tables", {})
        if ignore_label not in cache:
            table = np.full(1 << 24, ignore_label, np.uint8)
            for (red, green, blue), index in self.colors.items():
                table[red | green << 8 | blue << 16] = index
            cache[ignore_label] = table
        return cache[ignore_label]

    def __getstate__(self) -> dict:
        # The 16 MiB table is rebuilt faster than it travels to another process.
        return {"colors": self.colors}


LabelEncoding = IdEncoding | ColorEncoding


@dataclass(frozen=True)
class DatasetMeta:
    """Names, colours and label encodings of a dataset; checked when made (ValueError).

    Args:
        name: also the folder of the dataset under DATASET.ROOT, unless `folders` says otherwise.
        class_names: the order is the order of the logits.
        palette: one RGB colour per class.
        encodings: by name; the first is the default.
        ignore_label: marks pixels that neither train nor count.
        class_weights: of the cross entropy, one per class, finite, 0 or more; None = all equal.
        folders: where the dataset may lie under DATASET.ROOT; the first that exists is taken.
        origin: the file that declares it; "" = built in.
    """

    name: str
    class_names: tuple[str, ...]
    palette: tuple[Color, ...]
    encodings: Mapping[str, LabelEncoding]
    ignore_label: int = 255
    class_weights: tuple[float, ...] | None = None
    folders: tuple[str, ...] = ()
    origin: str = ""

    def __post_init__(self) -> None:
        count = len(self.class_names)
        if not 2 <= count <= 255:
            raise InputError(f"{self.name}: {count} classes; 2 to 255 are possible (binary = 2)")
        if len(set(self.class_names)) != count:
            raise InputError(f"{self.name}: a class name occurs twice in {self.class_names}")
        if len(self.palette) != count:
            raise InputError(f"{self.name}: {len(self.palette)} colours for {count} classes")
        for color in self.palette:
            _check_color(color)
        if not count <= self.ignore_label <= 255:
            raise InputError(
                f"{self.name}: ignore label {self.ignore_label}; accepted: {count}..255"
            )
        self._check_weights()
        if not self.encodings:
            raise InputError(f"{self.name}: no label encoding")
        for name, encoding in self.encodings.items():
            if encoding.classes() != set(range(count)):
                found = format_ranges(encoding.classes())
                raise InputError(
                    f"{self.name}: label encoding {name} leads to the classes {found}; "
                    f"it must lead to each of 0..{count - 1}"
                )

    def _check_weights(self) -> None:
        weights = self.class_weights
        if weights is None:
            return
        if len(weights) != self.num_classes:
            raise InputError(
                f"{self.name}: {len(weights)} class weights for {self.num_classes} classes"
            )
        with np.errstate(over="ignore"):
            used = np.array(weights, np.float32)  # as the loss takes them
        if not np.isfinite(used).all() or used.min() < 0 or not used.any():
            raise InputError(
                f"{self.name}: class weights {', '.join(f'{weight:g}' for weight in weights)}; "
                "accepted: finite numbers of 0 or more, at least one of them above 0"
            )

    def folder_under(self, root: str | Path) -> Path:
        """The dataset's folder, to which its lists are relative; `root`/name if there is none."""
        places = (Path(root) / folder for folder in self.folders)
        return next((place for place in places if place.is_dir()), Path(root) / self.name)

    @property
    def num_classes(self) -> int:
        """Number of classes, the ignored one not counted."""
        return len(self.class_names)

    def encoding(self, name: str = "") -> LabelEncoding:
        """The encoding called `name` ("" = the default). Raises ValueError on a miss."""
        if name and name not in self.encodings:
            raise InputError(
                f"DATASET.LABELS is {name!r}, which {self.name} does not have; "
                f"accepted: {', '.join(self.encodings)}"
            )
        return self.encodings[name or next(iter(self.encodings))]

    def encode(
        self, label: np.ndarray, encoding: str = "", source: str = "the label"
    ) -> np.ndarray:
        """Label file content -> class indices (H, W, uint8, `ignore_label` where no class is).

        Args:
            label: (H, W) values or (H, W, 3) RGB colours, uint8, as the encoding asks.
            encoding: its name; "" = the default.
            source: the file, for the error text.

        Raises:
            DataError: a value is neither a class nor ignored.
        """
        scheme = self.encoding(encoding)
        if isinstance(scheme, IdEncoding):
            unknown = scheme.unknown_values(label)
            if unknown:
                many = len(unknown) > 1
                raise DataError(
                    f"label value{'s' if many else ''} {_some_ranges(unknown)} in {source} "
                    f"{'are' if many else 'is'} neither a class of {self.name} "
                    f"({format_ranges(scheme.ids)}) nor ignore "
                    f"({format_ranges(scheme.ignored) or 'none'})"
                    f"{self._advice(label, scheme, unknown)}"
                )
        return scheme.encode(label, self.ignore_label)

    def _advice(self, label: np.ndarray, tried: IdEncoding, unknown: list[int]) -> str:
        """How else `label` may be meant, as the end of a sentence; "" if nothing is known."""
        for name, scheme in self.encodings.items():
            fits = isinstance(scheme, IdEncoding) and scheme is not tried
            if fits and not scheme.unknown_values(label):
                return f"; as DATASET.LABELS {name} all its values would be known"
        present = np.unique(label).tolist()
        smoothed = smoothed_values(label, unknown)
        if smoothed:
            meant = {*present} - {*smoothed_values(label, present)}
            return (
                f"; {len(smoothed)} of these values stand on outlines only and look like smoothed "
                "edges (the label was resized or drawn with anti-aliasing): export it again "
                f"without smoothing{self._declaration(meant, tried)}"
            )
        declare = self._declaration({*present}, tried)
        if self.origin and not declare:
            return (
                f"; every value of the labels is declared in {self.origin}, with its class under "
                "encoding or as one of ignored (a background is a class, too)"
            )
        return declare

    def _declaration(self, values: set[int], tried: IdEncoding) -> str:
        """How labels of such `values` are declared, as the end of a sentence; else ""."""
        if values <= {*tried.ids, *(tried.ignored or ())}:
            return ""
        if self.num_classes == 2 and len(values) == 2 and 0 in values:
            pairs = ", ".join(map("{}: {}".format, sorted(values), self.class_names))
            return f"; a mask of 0 and {max(values)} is declared as encoding: {{{pairs}}}"
        ignored = values & (tried.ignored or frozenset())
        seen, count = values - ignored, self.num_classes
        plain = all(value == index for value, index in tried.ids.items())
        if not self.origin or not plain or max(seen) != count:
            return ""
        names = [f"{number}: {name}" for number, name in enumerate(self.class_names, start=1)]
        if count > MOST_NAMED:
            names[2:-1] = ["..."]
        encoding = f"encoding: {{{', '.join(names)}}}"
        if 0 not in seen:
            return f"; its values seem to count from 1; declare {encoding} in {self.origin}"
        rest = ", ".join(map(str, sorted({0, *ignored})))
        return (
            "; its classes seem to count from 1, with 0 for all else; declare "
            f"{encoding} and ignored: [{rest}] in {self.origin}, or give 0 a class of its own "
            "there, the first of class_names"
        )

    def decode(self, classes: np.ndarray, encoding: str = "") -> np.ndarray:
        """Class indices (uint8) -> the content of a label file, as submission files hold it.

        Values (H, W) or RGB colours (H, W, 3), as the encoding says; ignored pixels are 0.
        """
        scheme = self.encoding(encoding)
        by_value = isinstance(scheme, IdEncoding)
        spelling = scheme.ids if by_value else scheme.colors
        table = np.zeros((256,) if by_value else (256, 3), np.uint8)
        for written in sorted(spelling, reverse=True):  # the smallest value of a class wins
            table[spelling[written]] = written
        return table[classes]

    def colorize(self, classes: np.ndarray) -> np.ndarray:
        """Class indices (H, W, uint8) -> RGB picture (H, W, 3, uint8); ignored pixels are black."""
        table = np.zeros((256, 3), np.uint8)
        table[: self.num_classes] = self.palette
        return table[classes]


def format_ranges(values: Iterable[int] | None) -> str:
    """Integers as short text: {0, 1, 2, 5} -> "0..2, 5"."""
    runs: list[list[int]] = []
    for value in sorted(set(values or ())):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(
        str(a) if a == b else f"{a}, {b}" if b == a + 1 else f"{a}..{b}" for a, b in runs
    )


def _some_ranges(values: list[int]) -> str:
    """As `format_ranges`, cut short."""
    runs = format_ranges(values).split(", ")
    if len(runs) <= MOST_NAMED:
        return ", ".join(runs)
    return f"{', '.join(runs[:MOST_NAMED])} and others, {len(values)} in all,"


def _check_color(color: Color) -> None:
    if len(color) != 3 or not all(0 <= value <= 255 for value in color):
        raise InputError(f"{color} is not an RGB colour (three values in 0..255)")
