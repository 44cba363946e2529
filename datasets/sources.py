"""Pictures, videos and cameras as one stream of frames.

Nothing but names and beginnings of files is looked at before a source's turn comes. What cannot be
read then is a frame that says so; the others go on.
"""

import glob
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from .errors import InputError
from .files import file_problem, foreign_kind, read_header, read_image
from .files.headers import JPEG, PNG, TIFF
from .meta import DataError

PICTURES = (
    ".jpg .jpeg .jpe .jfif .png .webp .tif .tiff .bmp .pbm .pgm .ppm .pnm .gif .jp2 .avif .heic "
    ".heif"
).split()
VIDEOS = (
    ".mp4 .m4v .mov .avi .mkv .webm .mpg .mpeg .m2ts .mts .wmv .flv .ogv .3gp .mxf .y4m"
).split()
KNOWN_VIDEOS = "videos are MP4, MOV, AVI, Matroska, WebM, MPEG, ASF, FLV, MXF or Ogg files"
PAGED = ("TIFF", "PNG", "WEBP", "GIF")  # kinds whose further pictures are no previews
USUAL_RATE = 25.0  # frames per second, of cameras and files that state none or nonsense
MOST_RATE = 1000.0
SPARE_FRAMES = 3  # that a whole video may have fewer than it announces
HEAD = 512  # bytes that tell what a file is

_ISO_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"skip", b"free", b"pnot")
_SIGNATURES = (
    b"\x1a\x45\xdf\xa3",  # Matroska and WebM
    b"FLV\x01",
    b"OggS",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",  # ASF
    b"\x00\x00\x01\xba",  # MPEG
    b"\x00\x00\x01\xb3",
    b"\x06\x0e\x2b\x34",  # MXF
    b"YUV4MPEG2 ",
)
_TS = ((0, 188), (4, 192))  # where the packets of MPEG's transport streams begin
_COUNTED = (b"\x1a\x45\xdf\xa3", b"RIFF")  # and ISO files: the number of frames can be relied upon


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
    stored: BGR uint8 of a video or camera; None for a picture, whose file `image` reads.
    rate: frames per second; 0 for a picture.
    announced: frames that the source says it has; 0 = it does not say.
    problem: why there is no frame, as a sentence, or no further one.
    """

    source: Source
    number: int = 0
    stored: np.ndarray | None = None
    rate: float = 0.0
    announced: int = 0
    problem: str = ""

    def image(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB. Raises DataError where there is none."""
        if self.problem:
            raise DataError(self.problem)
        if self.stored is None:
            return read_image(self.source.name)
        return cv2.cvtColor(self.stored, cv2.COLOR_BGR2RGB)


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
    head = _head(path)
    if head.startswith((PNG, JPEG, b"GIF8", *TIFF)) or (
        head.startswith(b"RIFF") and head[8:12] == b"WEBP"
    ):
        return "picture"
    if foreign_kind(head) in ("an AVIF", "a HEIC"):
        return "picture"
    return "video" if _is_video(head) else ""


def _head(path: Path) -> bytes:
    """The first bytes of a file; none where it cannot be read."""
    if file_problem(path):
        return b""
    try:
        with open(path, "rb") as stream:
            return stream.read(HEAD)
    except OSError:
        return b""


def _is_video(head: bytes) -> bool:
    """Whether a file begins as videos do. Playlists, which lead to other files, do not."""
    return (
        head.startswith(_SIGNATURES)
        or head[4:8] in _ISO_BOXES
        or (head.startswith(b"RIFF") and head[8:12] == b"AVI ")
        or any(head[first : first + 1] == head[first + step :][:1] == b"G" for first, step in _TS)
    )


def further_frames(path: str | Path) -> str:
    """What a picture file holds beside the picture that is read, as the end of a sentence."""
    try:
        header = read_header(Path(path).read_bytes())
    except OSError:
        return ""
    if header is None or header.frames < 2 or header.kind not in PAGED:
        return ""
    pages = "pages" if header.kind == "TIFF" else "frames"
    return f"has {header.frames} {pages}, of which the first is read"


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
    is_file, head = source.kind == "video", b""
    if is_file:
        head = _head(Path(source.name))
        if problem := _video_problem(source.name, head):
            yield Frame(source, problem=problem)
            return
    # What FFmpeg prints about a file is said in a sentence.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    capture = (
        # Whole, so that no letter of it is taken for a protocol or a number of a series.
        cv2.VideoCapture(os.path.abspath(source.name), cv2.CAP_FFMPEG)
        if is_file
        else cv2.VideoCapture(int(source.name.removeprefix("camera_")))
    )
    try:
        rate, announced = _rate(capture), _announced(capture, head)
        number, (there, stored) = 0, capture.read()
        while there:
            yield Frame(source, number, stored, rate, min(announced, most or announced))
            number += 1
            if number == most:
                return
            there, stored = capture.read()
    finally:
        capture.release()
    if problem := _end_problem(source, number, announced):
        yield Frame(source, number, problem=problem)


def _video_problem(name: str, head: bytes) -> str:
    """Why a file is no video, as a sentence; "" where it begins as one."""
    if problem := file_problem(Path(name)):
        return f"{name} {problem}"
    if not os.access(name, os.R_OK):
        return f"{name} cannot be read (Permission denied)"
    if not name.isprintable():
        try:
            name.encode()
        except UnicodeEncodeError:
            return f"{name!a} is a video whose name is no UTF-8; rename it"
    if not _is_video(head):
        return f"{name} is {foreign_kind(head) or 'not a video of a known kind'}; {KNOWN_VIDEOS}"
    return ""


def _end_problem(source: Source, number: int, announced: int) -> str:
    """What is wrong with a source that ended after `number` frames, as a sentence."""
    if source.kind == "camera":
        number_of = source.name.removeprefix("camera_")
        if not number:
            return f"camera {number_of} cannot be opened, or gives no picture"
        return f"camera {number_of} gave no more pictures after {number}"
    if not number:
        return f"{source.name} is a damaged video, or cut off: no frame of it can be read"
    if announced - number > max(SPARE_FRAMES, announced // 100):
        return (
            f"{source.name} is damaged or cut off: it ends after {number} of the {announced} "
            "frames that it announces"
        )
    return ""


def _rate(capture: cv2.VideoCapture) -> float:
    rate = capture.get(cv2.CAP_PROP_FPS)
    return rate if 0 < rate <= MOST_RATE else USUAL_RATE


def _announced(capture: cv2.VideoCapture, head: bytes) -> int:
    """Frames that a file says it has; 0 where files of its kind do not know it well."""
    count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    known = head.startswith(_COUNTED) or head[4:8] in _ISO_BOXES
    return int(count) if known and 0 < count < 1e9 else 0
