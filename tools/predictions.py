"""What `tools/predict.py` leaves: pictures, videos, and each class's share of the pixels."""

import csv
import io
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from checks import LONGEST_SIDE, MOST_PIXELS
from tqdm import tqdm

from datasets import DataError, EvalTransform
from datasets.sources import Frame, Source
from utils.errors import InputError
from utils.legend import drawable, with_legend
from utils.names import distinct_files
from utils.predictor import Predictor
from utils.records import atomic_file, write_json
from utils.video_file import video_file
from utils.visualize import side_by_side, write_photograph, write_png

KINDS = ("overlay", "color", "index", "side")
PHOTOGRAPHS = ("overlay", "side")
LEGENDS = ("appearing", "all", "none")
SHARES = ("shares.csv", "shares.json")
LONGEST_NAME = 240  # bytes; file systems take 255


class Places:
    """Where results lie: OUT/<kind>/<name of the source>.jpg, .png, .mp4, or a folder of PNGs.

    png: overlays and what is side by side are PNGs, too.

    Raises ValueError where a result would take the place of a source.
    """

    def __init__(
        self, out: Path, kinds: Sequence[str], sources: Sequence[Source], *, png: bool = False
    ) -> None:
        self.out, self.kinds, self.png = out, tuple(kinds), png
        names = distinct_files(_below_common(sources), "")
        self._names = dict(zip(sources, names, strict=True))
        beside = os.path.realpath(out) + os.sep
        read = {os.path.realpath(source.name) for source in sources}
        read = {path for path in read if path.startswith(beside)}
        for source in sources if read else ():
            for kind in self.kinds:
                place = self.of(source, kind)
                if os.path.realpath(place) in read:
                    raise InputError(f"{place} is a source and would be lost; name another --out")

    @staticmethod
    def own(out: Path) -> list[Path]:
        """What earlier runs with `out` have left, and is no source."""
        return [out / name for name in (*KINDS, *SHARES)]

    def of(self, source: Source, kind: str) -> Path:
        """A file, or a folder for the class maps of a video."""
        suffix = ".jpg" if kind in PHOTOGRAPHS and not self.png else ".png"
        if source.is_moving:
            suffix = "" if kind == "index" else ".mp4"
        return self.out / kind / f"{self._names[source]}{suffix}"


def _below_common(sources: Sequence[Source]) -> list[str]:
    """Names of sources without the folders that all of them share."""
    files = [os.path.abspath(source.name) for source in sources if source.kind != "camera"]
    try:
        common = os.path.commonpath([os.path.dirname(file) for file in files]) if files else ""
    except ValueError:  # they lie on several drives
        common = ""
    names = []
    for source in sources:
        below = source.kind != "camera" and common
        name = os.path.relpath(source.name, common) if below else source.name
        folder, file = os.path.split(name)
        if len(os.fsencode(file)) > LONGEST_NAME:  # with another ending it might not be allowed
            stem, suffix = os.path.splitext(file)
            name = os.path.join(folder, stem[: LONGEST_NAME // 4 - 9] + suffix[:9])
        names.append(name)
    return names


def check_scale(transform: EvalTransform, image: np.ndarray, frame: Frame) -> None:
    """Raise DataError if a picture would be enlarged beyond reason."""
    (height, width), old = transform.target_size(image.shape[:2]), image.shape[:2]
    large = max(height, width) > LONGEST_SIDE or height * width > MOST_PIXELS
    if large and height * width > old[0] * old[1]:
        raise DataError(
            f"{frame.source.name} would be brought from {old[0]}x{old[1]} to {height}x{width} "
            f"(height x width) for the network; accepted: sides of up to {LONGEST_SIDE}"
        )


class Result(NamedTuple):
    """One frame, predicted and drawn.

    shares: of the classes, 0..1; None where there was nothing to predict.
    size: (height, width).
    moving: by kind, the next frame of a video.
    view: the overlay, where it is shown.
    """

    frame: Frame
    shares: np.ndarray | None = None
    size: tuple[int, int] = (0, 0)
    moving: dict[str, np.ndarray] = {}  # noqa: RUF012  (never changed)
    view: np.ndarray | None = None
    problem: str = ""
    remark: str = ""


class Drawer:
    """Draws frames; any number of threads may do so at once.

    Pictures are written, frames of videos are left to `Results`. The legend stands below overlays
    and what is side by side. In videos it names all classes, so that all frames have one size.
    """

    def __init__(
        self,
        predictor: Predictor,
        places: Places | None,
        *,
        opacity: float,
        legend: str,
        view: bool,
    ) -> None:
        self.predictor, self.places = predictor, places
        self.opacity, self.legend, self.view = opacity, legend, view
        colors = [tuple(color) for color in predictor.palette.tolist()]
        self._entries = list(zip(drawable(predictor.names), colors, strict=True))

    def __call__(self, frame: Frame, image: np.ndarray, classes: np.ndarray) -> Result:
        """`image` is (H, W, 3) uint8 RGB, `classes` (H, W) uint8."""
        counts = np.bincount(classes.ravel(), minlength=len(self._entries))
        moving, kinds = {}, () if self.places is None else self.places.kinds
        for kind in kinds:
            picture = self.draw(kind, frame, image, classes, counts)
            path = self.places.of(frame.source, kind)
            if frame.source.is_moving and kind != "index":
                moving[kind] = picture
                continue
            if frame.source.is_moving:
                path = path / f"{frame.number:06d}.png"
            (write_photograph if kind in PHOTOGRAPHS else write_png)(path, picture)
        view = self.draw("overlay", frame, image, classes, counts) if self.view else None
        return Result(frame, counts / classes.size, classes.shape, moving, view)

    def draw(
        self, kind: str, frame: Frame, image: np.ndarray, classes: np.ndarray, counts: np.ndarray
    ) -> np.ndarray:
        """The picture of one kind; `counts` are the pixels of every class."""
        if kind == "index":
            return classes
        if kind == "color":
            return self.predictor.colorize(classes)
        if kind == "side":
            colors = self.predictor.colorize(classes)
            picture = side_by_side(image, [colors], self.opacity)
        else:
            picture = self.predictor.overlay(image, classes, self.opacity)
        if self.legend == "none":
            return picture
        every = self.legend == "all" or frame.source.is_moving
        entries = [e for e, count in zip(self._entries, counts, strict=True) if every or count]
        return with_legend(picture, entries)


class Results:
    """Keeps results in their order: videos, shares.csv, and what could not be read.

    Args:
        stack: ends what is open when it is left: by an error, the video and the table that are not
            whole are taken away.
    """

    def __init__(self, places: Places | None, names: Sequence[str], stack: ExitStack) -> None:
        self.places, self.names = places, tuple(names)
        self.frames, self.problems = 0, 0
        self.sources: list[dict[str, Any]] = []
        self._source: Source | None = None
        self._sum = np.zeros(len(names))
        self._add: dict[str, Callable[[np.ndarray], None]] = {}  # a frame to a video, by kind
        self._row: Callable[[Sequence[Any]], Any] | None = None  # to the table
        if places is not None:
            stream = stack.enter_context(atomic_file(places.out / SHARES[0]))
            # Names of files that are no UTF-8 keep their bytes.
            text = io.TextIOWrapper(stream, "utf-8", "surrogateescape", "", write_through=True)
            stack.callback(text.detach)
            self._row = csv.writer(text).writerow
            self._row(["file", "frame", *self.names])
        self._videos = stack.enter_context(ExitStack())

    def keep(self, result: Result) -> None:
        """Add what is drawn to its video, and its shares to the table."""
        source = result.frame.source
        if source != self._source:
            self.finish()
            self._source = source
            self.sources.append({"file": source.name, "frames": 0})
        known = self.sources[-1]
        if result.problem:
            self.problems += 1
            known["problem"] = result.problem
            tqdm.write(f"problem: {result.problem}", sys.stdout)
            return
        if result.remark:
            tqdm.write(f"note: {result.remark}", sys.stdout)
        self.frames += 1
        known["frames"] += 1
        known["size"] = list(result.size)
        self._sum += result.shares
        for kind, picture in result.moving.items():
            if kind not in self._add:
                path = self.places.of(source, kind)
                self._add[kind] = self._videos.enter_context(video_file(path, result.frame.rate))
            self._add[kind](picture)
        if self._row is not None:
            shares = (f"{share:.6f}" for share in result.shares)
            self._row([source.name, result.frame.number, *shares])

    def finish(self) -> None:
        """Close what belongs to the last source."""
        self._videos.close()
        self._add = {}
        if self.sources and self.sources[-1]["frames"]:
            mean = self._sum / self.sources[-1]["frames"]
            shares = zip(self.names, (round(float(share), 6) for share in mean), strict=True)
            self.sources[-1]["shares"] = dict(shares)
            if self.places is not None:
                self.sources[-1]["files"] = {
                    kind: self.places.of(self._source, kind).relative_to(self.places.out).as_posix()
                    for kind in self.places.kinds
                }
        self._sum = np.zeros(len(self.names))

    def write_json(self, record: dict[str, Any]) -> None:
        """shares.json: `record`, and what is known of every source."""
        write_json(self.places.out / SHARES[1], {**record, "sources": self.sources})
