"""What the page of tools/web.py shows, computed without it: pictures and clips in, class maps of
one or two networks out, and of those overlays, shares and differences."""

import dataclasses
import functools
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from datasets import EvalTransform
from datasets.files import Clip, is_video, read_image
from datasets.synthetic import draw_scene
from models import fuse
from models.weights import Found, find_trained, load_trained
from utils import comparing
from utils.errors import InputError
from utils.predictor import Predictor
from utils.video_file import write_video

MOST_BYTES = 50_000_000  # of an upload
MOST_PIXELS = 40_000_000  # of a picture, or of a frame
SHOWN_PIXELS, LONGEST = 1 << 22, 8192  # a larger picture is reduced to this, and this side
FED_PIXELS = 1 << 24  # that a network is given at most, once it has scaled a picture
CLIP_PIXELS, CLIP_FRAMES, CLIP_SECONDS = 640 * 360, 600, 20  # of a clip, what is beyond is left out
WHOLE = 0.95  # of the frames that a clip claims; many a file only estimates them
CLIP_PATIENCE = 120.0  # seconds after which a network looks at no further frame
REPEATS, REPEAT_SECONDS = 5, 1.0  # of a picture, to tell how long a network takes
LOADED = 3  # networks kept in memory
SCENES = range(100_000, 100_004)  # drawn scenes, which the demo does not train on, of its
SCENE_SIZE = (180, 240)  # (height, width)

Progress = Callable[[float], object]  # told which part (0..1) is done


@dataclasses.dataclass(frozen=True, eq=False)
class Footage:
    """What was given: one picture, or the frames of a clip, coded to take less memory.

    rate: frames per second; 0 for a picture. remark: a sentence on what was left out, or "".
    """

    frames: tuple[np.ndarray, ...]
    rate: float = 0.0
    remark: str = ""

    def frame(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB; the last one for a larger index."""
        coded = self.frames[min(index, len(self.frames) - 1)]
        return cv2.imdecode(coded, cv2.IMREAD_COLOR_RGB)


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    """What a network makes of the first frames. milliseconds: the median from a frame in memory to
    its class map. deployment: where and how it ran."""

    title: str
    predictor: Predictor
    classes: tuple[np.ndarray, ...]
    milliseconds: float
    deployment: str


@dataclasses.dataclass(frozen=True, eq=False)
class Sight:
    """What is shown of one frame for one or two networks.

    overlays: a picture per network. shares: its classes, the largest first. difference, differing
    (0..1) and swaps: of two.
    """

    overlays: list[np.ndarray]
    shares: list[list[comparing.Share]]
    difference: np.ndarray | None = None
    differing: float = 0.0
    swaps: Sequence[comparing.Swap] = ()


class Viewer:
    """The networks below some folders. All methods may be called from several threads."""

    def __init__(
        self, folders: Sequence[Path], root: Path, device: str = "cpu", precision: str = "fp32"
    ) -> None:
        self.folders, self.root = folders, root
        self.device, self.precision = device, precision
        self._lock = threading.Lock()  # one thing is computed at a time
        self._closed = False
        self._load = functools.lru_cache(maxsize=LOADED)(self._load_file)

    def networks(self) -> tuple[dict[str, Found], list[str]]:
        """Those that are there now by their titles, and why other files are none."""
        found, left_out = find_trained(self.folders)
        return {each.title(self.root): each for each in found}, left_out

    def _load_file(self, path: Path, changed: int) -> Predictor:
        trained = load_trained(path)
        transform = EvalTransform.from_facts(trained.input, str(path))
        names, palette = trained.class_names, trained.palette
        run = {"device": self.device, "precision": self.precision}
        return Predictor(fuse(trained.model), transform, names, palette, **run)

    def answers(
        self, footage: Footage, titles: Sequence[str], progress: Progress = lambda *_: None
    ) -> list[Answer]:
        """What the networks of these `titles` make of it.

        Raises:
            ValueError: there is no such network any more, or its file is damaged.
        """
        known, _ = self.networks()
        for title in titles:
            if title not in known:
                raise InputError(f"there is no {title} any more; choose another network")
        with self._lock:
            paths = [known[title].path for title in titles]
            predictors = [self._load(path, path.stat().st_mtime_ns) for path in paths]
            return [
                _answer(title, predictor, footage, self._part(progress, n, len(titles)))
                for n, (title, predictor) in enumerate(zip(titles, predictors, strict=True))
            ]

    def write_film(
        self, path: Path, footage: Footage, answers: Sequence[Answer], opacity: float
    ) -> None:
        """Write the overlays of all frames as a clip; those of two networks side by side."""
        with self._lock:
            write_video(path, self._until_closed(film(footage, answers, opacity)), footage.rate)

    def close(self) -> None:
        """End what is being computed, and wait for its end."""
        self._closed = True
        with self._lock:
            pass

    def _until_closed(self, frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        for frame in frames:
            self._check_open()
            yield frame

    def _part(self, progress: Progress, n: int, count: int) -> Progress:
        """The progress of the `n`th of `count` equal parts of something."""

        def tell(part: float) -> None:
            self._check_open()
            progress((n + part) / count)

        return tell

    def _check_open(self) -> None:
        if self._closed:
            raise InputError("the server is about to end")


def _answer(title: str, predictor: Predictor, footage: Footage, progress: Progress) -> Answer:
    size = footage.frame(0).shape[:2]
    fed = predictor.transform.target_size(size)
    if fed[0] * fed[1] > FED_PIXELS:  # a long and thin one whose short side is scaled up
        raise InputError(
            f"{title} would be given {fed[0]}x{fed[1]} pixels for this picture of "
            f"{size[0]}x{size[1]}; take one that is less long"
        )
    count, began = len(footage.frames), time.monotonic()
    classes, times = [], []
    for index in range(count):
        frame, start = footage.frame(index), time.perf_counter()
        result = predictor(frame)
        times.append(time.perf_counter() - start)
        classes.append(_coded(result, ".png"))
        progress((index + 1) / count)
        if time.monotonic() - began > CLIP_PATIENCE:
            break
    while count == 1 and len(times) <= REPEATS and sum(times) < REPEAT_SECONDS:
        start = time.perf_counter()
        predictor(frame)
        times.append(time.perf_counter() - start)
    # A first call also asks for memory that later ones find.
    milliseconds = 1000 * statistics.median(times[1:] or times)
    return Answer(title, predictor, tuple(classes), milliseconds, str(predictor.deployment))


def sight(footage: Footage, answers: Sequence[Answer], index: int, opacity: float) -> Sight:
    """What is shown of frame `index`. No network runs. opacity: of the colours, 0..1."""
    index = min(index, seen_frames(answers) - 1)
    image = footage.frame(index)
    maps = [cv2.imdecode(a.classes[index], cv2.IMREAD_UNCHANGED) for a in answers]
    predictors = [answer.predictor for answer in answers]
    overlays = [p.overlay(image, m, opacity) for p, m in zip(predictors, maps, strict=True)]
    shares = [
        comparing.largest_shares(p.shares(m), p.palette)
        for p, m in zip(predictors, maps, strict=True)
    ]
    if len(answers) == 1:
        return Sight(overlays, shares)
    names = [predictor.names for predictor in predictors]
    differs = comparing.disagreement(*maps, *names)
    return Sight(
        overlays,
        shares,
        comparing.difference_map(image, differs),
        float(differs.mean()),
        comparing.largest_swaps(*maps, *names),
    )


def seen_frames(answers: Sequence[Answer]) -> int:
    """Frames of which there is a class map of every network."""
    return min(len(answer.classes) for answer in answers)


def film(footage: Footage, answers: Sequence[Answer], opacity: float) -> Iterator[np.ndarray]:
    """The overlays of each frame, those of two networks beside one another."""
    for index in range(seen_frames(answers)):
        image = footage.frame(index)
        maps = [cv2.imdecode(a.classes[index], cv2.IMREAD_UNCHANGED) for a in answers]
        yield np.hstack(
            [a.predictor.overlay(image, m, opacity) for a, m in zip(answers, maps, strict=True)]
        )


def scene(number: int) -> Footage:
    """A drawn street scene, for who has no picture at hand."""
    return Footage((_coded(draw_scene(SCENES[number], 0, *SCENE_SIZE)[0], ".png"),))


def read_footage(path: str | Path, source: str) -> Footage:
    """A picture or a clip from a file of whatever content. source: what sentences call the file.

    Raises:
        DataError: it is neither, damaged or too large.
    """
    if is_video(path):
        return _read_clip(path, source)
    image = read_image(path, source, MOST_PIXELS)
    small, remark = comparing.reduced(image, SHOWN_PIXELS, LONGEST), ""
    if small is not image:
        remark = (
            f"{source} has {image.shape[1]} x {image.shape[0]} pixels; shown and computed is a "
            f"copy of {small.shape[1]} x {small.shape[0]}."
        )
    return Footage((_coded(small, ".png"),), remark=remark)


def _read_clip(path: str | Path, source: str) -> Footage:
    clip = Clip(path, source, MOST_PIXELS)
    most = min(CLIP_FRAMES, max(int(CLIP_SECONDS * clip.rate), 1))
    frames, more = [], False
    for frame in clip:
        if len(frames) == most:
            more = True
            break
        frames.append(_coded(comparing.reduced(frame, CLIP_PIXELS, LONGEST), ".jpg"))
    remark = ""
    if more:
        remark = f"Of {source} the first {most} frames are taken ({most / clip.rate:.1f} s)."
    elif len(frames) < WHOLE * min(clip.count, most):
        remark = (
            f"{source} breaks off after {len(frames)} of some {clip.count} frames; the rest is "
            "missing or damaged."
        )
    return Footage(tuple(frames), clip.rate, remark)


def _coded(picture: np.ndarray, ending: str) -> np.ndarray:
    """The bytes of a PNG or JPEG file, of which the first keeps every value."""
    bgr = picture[..., ::-1] if picture.ndim == 3 else picture
    how = [cv2.IMWRITE_PNG_COMPRESSION, 1] if ending == ".png" else [cv2.IMWRITE_JPEG_QUALITY, 95]
    return cv2.imencode(ending, bgr, how)[1]
