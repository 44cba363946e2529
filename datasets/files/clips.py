"""Video files -> pictures, one after the other."""

import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from ..meta import DataError
from .foreign import MEDIA, foreign_kind
from .paths import file_problem

_MATROSKA, _RIFF, _AVI = b"\x1a\x45\xdf\xa3", b"RIFF", b"AVI "  # WebM is Matroska, too
_QUICKTIME = (b"moov", b"mdat", b"wide", b"skip", b"free")  # of before there was ftyp
_MPEG = (b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3")
_PACKETS = ((0, 188), (4, 192))  # of MPEG's transport streams: first, and from one to the next
USUAL_RATE = 25.0  # frames per second of a file that states none, or an impossible one
HIGHEST_RATE = 1000.0

# What FFmpeg prints about a damaged file is said in a sentence.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


def is_video(path: str | Path) -> bool:
    """Whether a file begins as MP4, MOV, WebM, MKV, AVI or MPEG files do, whatever its name says.

    Lists of other files and addresses, which FFmpeg would follow, are none of these.
    """
    try:
        with open(path, "rb") as stream:
            start = stream.read(256)
    except OSError:
        return False
    if start.startswith(_RIFF):
        return start[8:12] == _AVI
    if start[4:8] == b"ftyp":
        return foreign_kind(start) == MEDIA  # HEIC and AVIF are pictures
    return start.startswith(_MATROSKA) or start[4:8] in _QUICKTIME or _is_stream(start)


def _is_stream(start: bytes) -> bool:
    """Whether a file begins as MPEG's own do, which can be cut anywhere and know no length."""
    return start.startswith(_MPEG) or any(
        start[first : first + 1] == start[first + step :][:1] == b"G" for first, step in _PACKETS
    )


def usual_rate(rate: float) -> float:
    """Frames per second as a video or a camera states them; USUAL_RATE where that cannot be."""
    return rate if 0 < rate <= HIGHEST_RATE else USUAL_RATE


class Clip:
    """The frames of a video file, (H, W, 3) uint8 RGB, upright. Iterate over it once.

    Attributes:
        rate: frames per second.
        count: frames that the file claims to have; 0 where it does not say.
        size: (height, width).
    """

    def __init__(
        self, path: str | Path, source: str | None = None, most_pixels: int | None = None
    ) -> None:
        """
        Args:
            source: what errors call the file; default: its path.
            most_pixels: of one frame; None: what OpenCV reads.

        Raises:
            DataError: missing, empty, no video of `is_video`, larger, or without a frame that can
                be decoded.
        """
        self._source = source or str(path)
        if problem := file_problem(Path(path)):
            raise DataError(f"{self._source} {problem}")
        if not is_video(path):
            raise DataError(
                f"{self._source} is no video; MP4, MOV, WebM, MKV, AVI and MPEG are read"
            )
        whole = str(Path(path).absolute())  # no part of which is taken for a protocol
        try:
            whole.encode()
        except UnicodeEncodeError:
            raise DataError(
                f"{self._source} is a video whose name is no UTF-8; rename it"
            ) from None
        # By name, so that no other reader takes the path for a pattern of many files.
        self._video = cv2.VideoCapture(whole, cv2.CAP_FFMPEG)
        try:
            self._open(most_pixels)
            with open(path, "rb") as stream:
                if _is_stream(stream.read(256)):
                    self.count = 0  # FFmpeg's guess is often twice as much
        except BaseException:
            self._video.release()
            raise

    def _open(self, most_pixels: int | None) -> None:
        get = self._video.get
        pixels = get(cv2.CAP_PROP_FRAME_HEIGHT) * get(cv2.CAP_PROP_FRAME_WIDTH)
        if most_pixels is not None and pixels > most_pixels:
            raise DataError(
                f"{self._source} has frames of {pixels:.0f} pixels; at most {most_pixels} are read"
            )
        rate, count = get(cv2.CAP_PROP_FPS), get(cv2.CAP_PROP_FRAME_COUNT)
        self.rate = usual_rate(rate)
        self.count = int(count) if 0 < count < 1 << 31 else 0
        first = self._read()
        if first is None:
            raise DataError(
                f"{self._source} cannot be decoded; it is damaged or coded as OpenCV does not read"
            )
        self._first: np.ndarray | None = first
        self.size = first.shape[:2]

    def _read(self) -> np.ndarray | None:
        try:
            there, frame = self._video.read()
        except cv2.error:
            return None
        return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB) if there else None

    def __iter__(self) -> Iterator[np.ndarray]:
        try:
            frame, self._first = self._first, None
            while frame is not None:
                yield frame
                frame = self._read()
        finally:
            self._video.release()
