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
USUAL_RATE = 25.0  # frames per second of a file that states none, or an impossible one
HIGHEST_RATE = 1000.0

# What FFmpeg prints about a damaged file is said in a sentence.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


def is_video(path: str | Path) -> bool:
    """Whether a file begins as MP4, MOV, WebM, MKV or AVI files do, whatever its name says.

    Lists of other files and addresses, which FFmpeg would follow, are none of these.
    """
    try:
        with open(path, "rb") as stream:
            start = stream.read(64)
    except OSError:
        return False
    if start.startswith(_RIFF):
        return start[8:12] == _AVI
    return start.startswith(_MATROSKA) or (
        start[4:8] == b"ftyp" and foreign_kind(start) == MEDIA  # HEIC and AVIF are pictures
    )


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
            raise DataError(f"{self._source} is no video; MP4, MOV, WebM, MKV and AVI are read")
        # By name, so that no other reader takes the path for a pattern of many files.
        self._video = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
        try:
            self._open(most_pixels)
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
        self.rate = rate if 0 < rate <= HIGHEST_RATE else USUAL_RATE
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
