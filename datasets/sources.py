"""Pictures, videos and cameras as one stream of frames.

Nothing but names and beginnings of files is looked at before a source's turn comes. What cannot be
read then is a frame that says so; the others go on.
"""

import glob
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from .errors import InputError
from .files import Clip, file_problem, foreign_kind, is_video, read_header, read_image
from .files.clips import usual_rate
from .files.headers import JPEG, PNG, TIFF, further_pictures
from .meta import DataError

PICTURES = (
    ".jpg .jpeg .jpe .jfif .png .webp .tif .tiff .bmp .pbm .pgm .ppm .pnm .gif .jp2 .avif .heic "
    ".heif"
).split()
VIDEOS = (".mp4 .m4v .mov .3gp .avi .mkv .webm .mpg .mpeg .mts .m2ts .wmv .flv .ogv").split()
SPARE_FRAMES = 3  # that a whole video may have fewer than it announces


@dataclass(frozen=True)
class Source:
    """Where frames come from.

    Attributes:
        name: of messages and results: the path as it was reached, or "camera_0".
        kind: "picture", "video" or "camera".
    """

    name: str
    kind: str

    @property
    def camera(self) -> int:
        """The number of a camera."""
        return int(self.name.removeprefix("camera_"))

    @property
    def is_moving(self) -> bool:
        """Whether its frames belong together, in their order."""
        return self.kind != "picture"


@dataclass
class Found:
    """What `find_sources` found.

    Attributes:
        sources: in the order of the words, folders sorted by name.
        others: files in folders that are neither picture nor video.
        own: how many folders and files were left out because `own` named them.
        closed: sentences about folders that cannot be read.
    """

    sources: list[Source] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    own: int = 0
    closed: list[str] = field(default_factory=list)


class Frame(NamedTuple):
    """A picture, or one of a video or camera.

    number: within its source, from 0.
    pixels: RGB uint8 of a video or camera; None for a picture, whose file `image` reads.
    rate: frames per second; 0 for a picture.
    announced: frames that the source says it has; 0 = it does not say.
    problem: why there is no frame, as a sentence, or no further one.
    """

    source: Source
    number: int = 0
    pixels: np.ndarray | None = None
    rate: float = 0.0
    announced: int = 0
    problem: str = ""

    def image(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB. Raises DataError where there is none."""
        if self.problem:
            raise DataError(self.problem)
        return read_image(self.source.name) if self.pixels is None else self.pixels


def find_sources(words: Sequence[str], own: Collection[str | Path] = ()) -> Found:
    """The sources that `words` name, each once.

    Args:
        words: files; folders, with all below them but for names that begin with a dot; patterns
            ("frames/**/*.png"); numbers of cameras, unless a file is called so.
        own: folders and files that are left out where a folder or a pattern leads to them.

    Raises:
        ValueError: a word that leads to nothing.
    """
    found, left = Found(), {os.path.realpath(path) for path in own}
    for word in words:
        if os.path.isdir(word):
            _add_folder(word, left, found)
        elif os.path.lexists(word):
            found.sources.append(Source(word, _kind(Path(word)) or "picture"))
        elif word.isdecimal():
            found.sources.append(Source(f"camera_{int(word)}", "camera"))
        elif glob.has_magic(word):
            for match in _matches(word):
                (_add_folder if os.path.isdir(match) else _add_file)(match, left, found)
        else:
            raise InputError(f"{word} {file_problem(Path(word))}")
    first: dict[str, Source] = {}
    for source in found.sources:
        first.setdefault(os.path.abspath(source.name), source)
    found.sources = list(first.values())
    found.others = list(dict.fromkeys(found.others))
    return found


def _matches(pattern: str) -> list[str]:
    """Files and folders that fit, sorted. Names that begin with a dot fit no wildcard."""
    parts = Path(pattern).parts
    fixed = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    start, rest = Path(*parts[:fixed]), parts[fixed:]
    # Unlike glob.glob, this follows no link into a folder, which may lead in circles.
    found = [m for m in start.glob(str(Path(*rest))) if m != start and not _is_circle(str(m))]
    if not any(part.startswith(".") for part in rest):
        found = [m for m in found if not any(p.startswith(".") for p in m.parts[fixed:])]
    if not found:
        raise InputError(f"no file or folder fits {pattern}")
    return sorted(map(str, found))


def _add_folder(folder: str, own: set[str], found: Found) -> None:
    def note(error: OSError) -> None:
        found.closed.append(f"{error.filename} cannot be read ({error.strerror})")

    seen = set()  # folders may be reached by several links
    for here, folders, names in os.walk(folder, onerror=note, followlinks=True):
        real = os.path.realpath(here)
        hidden = _is_own(here, own)
        found.own += hidden
        if hidden or real in seen or (here != folder and _is_circle(here)):
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                _add_file(os.path.join(here, name), own, found)


def _is_circle(path: str) -> bool:
    """Whether `path` is a link to a folder that it lies in."""
    if not os.path.islink(path):
        return False
    home = os.path.realpath(os.path.dirname(os.path.abspath(path)))
    return _is_below(home, os.path.realpath(path))


def _is_below(path: str, folder: str) -> bool:
    return (path + os.sep).startswith(folder + os.sep)


def _is_own(path: str, own: set[str]) -> bool:
    """Whether `path`, or what it links to, is one of `own` or lies in one."""
    ways = (os.path.realpath(path), os.path.abspath(path))
    return any(_is_below(way, mine) for way in ways for mine in own)


def _add_file(path: str, own: set[str], found: Found) -> None:
    if _is_own(path, own):
        found.own += 1
    elif kind := _kind(Path(path)):
        found.sources.append(Source(path, kind))
    else:
        found.others.append(path)


def _kind(path: Path) -> str:
    """ "picture" or "video" by the name, or else by the beginning of the file; "" for others."""
    suffix = path.suffix.lower()
    if suffix in PICTURES:
        return "picture"
    if suffix in VIDEOS:
        return "video"
    if file_problem(path):
        return ""
    if is_video(path):
        return "video"
    try:
        with open(path, "rb") as stream:
            head = stream.read(64)
    except OSError:
        return ""
    known = head.startswith((PNG, JPEG, b"GIF8", *TIFF)) or (
        head.startswith(b"RIFF") and head[8:12] == b"WEBP"
    )
    return "picture" if known or foreign_kind(head) in ("an AVIF", "a HEIC") else ""


def further_frames(path: str | Path) -> str:
    """What a picture file holds beside what is read of it, as the end of a sentence, or ""."""
    try:
        return further_pictures(read_header(Path(path).read_bytes()))
    except OSError:
        return ""


def read_frames(sources: Sequence[Source], most: int = 0) -> Iterator[Frame]:
    """The frames of `sources`, one source after the other.

    Args:
        most: frames of a video or camera that are read; 0 = all.
    """
    for source in sources:
        if source.is_moving:
            yield from _moving_frames(source, most)
        else:
            yield Frame(source)


def _moving_frames(source: Source, most: int) -> Iterator[Frame]:
    """Frames as they come; where something is wrong, a last one that says it."""
    try:
        moving = Clip(source.name) if source.kind == "video" else _Camera(source.camera)
    except DataError as error:
        yield Frame(source, problem=str(error))
        return
    announced, number = moving.count, 0
    with closing(iter(moving)) as pictures:
        for pixels in pictures:
            yield Frame(source, number, pixels, moving.rate, min(announced, most or announced))
            number += 1
            if number == most:
                return
    if source.kind == "camera":
        problem = f"camera {source.camera} gave no further picture after {number}"
        yield Frame(source, number, problem=problem)
    elif announced - number > max(SPARE_FRAMES, announced // 100):
        problem = (
            f"{source.name} is damaged or cut off: it ends after {number} of the {announced} "
            "frames that it announces"
        )
        yield Frame(source, number, problem=problem)


class _Camera:
    """The pictures of a camera, as those of a `Clip`."""

    count = 0

    def __init__(self, number: int) -> None:
        self._capture = cv2.VideoCapture(number)
        if not self._capture.isOpened():
            raise DataError(f"camera {number} cannot be opened; is there one, and is it free?")
        self.rate = usual_rate(self._capture.get(cv2.CAP_PROP_FPS))

    def __iter__(self) -> Iterator[np.ndarray]:
        try:
            while (got := self._capture.read())[0]:
                yield cv2.cvtColor(got[1], cv2.COLOR_BGR2RGB)
        finally:
            self._capture.release()
