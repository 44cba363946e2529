"""Predict pictures, folders, videos or a camera with trained weights.

    python tools/predict.py best.pt photographs/ drive.mp4 --out predicted --save overlay index

A checkpoint of this project says what it is; published or bare weights need --arch and --classes.
Sources are files, folders with all below them, patterns in quotes, or the number of a camera. The
folder --out then holds OUT/<kind>/<name> for every one of them (overlays as JPEG, colours and class
ids as PNG, videos as MP4), and each class's share of the pixels in shares.csv. Of files with
several pages or frames (GIF, TIFF) the first is read. Ctrl-C ends after the frame at hand; a video
ends there and is whole.

Exit status 0: done; 1: something could not be read, the rest is done; 2: nothing was begun, or the
disk is full; 130: Ctrl-C.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import _init_paths
import cv2
import numpy as np
from checks import LONGEST_SIDE, check_folder
from predictions import KINDS, LEGENDS, Drawer, Places, Result, Results, check_scale
from torch import Tensor
from tqdm import tqdm

from datasets import DataError, EvalTransform, get_meta
from datasets.machine import cpu_count
from datasets.sources import Found, Frame, find_sources, further_frames, read_frames
from models import fuse
from models.weights import load_trained
from utils.ahead import ahead, behind
from utils.deploy import DTYPES, RUNTIMES
from utils.errors import InputError
from utils.failures import memory_failure
from utils.predictor import Fed, Predictor
from utils.stopping import StopRequest
from utils.window import Window

MOST_THREADS = 8  # that read, and as many that draw
NAMED = 5  # files in a sentence


def main() -> int:
    args = parse_args()
    if args.out is not None:
        check_folder(args.out, "--out")
    found = find_sources(args.sources, () if args.out is None else Places.own(args.out))
    report(found, args.sources)
    places = None if args.out is None else Places(args.out, args.save, found.sources, png=args.png)
    window = Window() if args.view else None
    predictor = load(args)
    print(f"{args.weights}: {len(predictor.names)} classes; {predictor.deployment}")
    drawer = Drawer(
        predictor, places, opacity=args.opacity, legend=args.legend, view=window is not None
    )
    stop, began = StopRequest(when="after this frame"), time.perf_counter()
    with ExitStack() as stack:
        results = Results(places, predictor.names, stack)
        frames = read_frames(found.sources, args.frames)
        drawn = predict(
            predictor, drawer, frames, stack, lambda: bool(stop or (window and window.closed))
        )
        for result in counted(drawn, found, stack):
            results.keep(result)
            if window and result.view is not None:
                window.show(result.view, waits=not result.frame.source.is_moving, stop=stop)
        results.finish()
    if args.json:
        results.write_json({"weights": str(args.weights), "classes": list(predictor.names)})
    seconds = time.perf_counter() - began
    speed = results.frames / seconds
    where = f"; {args.out}: {', '.join((*args.save, 'shares.csv'))}" if places else ""
    print(f"{results.frames} frames in {seconds:.1f} s, {speed:.1f} frames/s{where}")
    problems, all_of_them = (n + len(found.closed) for n in (results.problems, len(found.sources)))
    if problems:
        print(f"{problems} of {all_of_them} sources could not be read, or not to their end")
    return stop.status if stop else int(problems > 0)


class Step(NamedTuple):
    """A frame on its way through the network, or why it has none."""

    frame: Frame
    image: np.ndarray | None = None
    fed: Fed | None = None
    classes: Tensor | None = None
    problem: str = ""
    remark: str = ""


def predict(
    predictor: Predictor,
    drawer: Drawer,
    frames: Iterator[Frame],
    stack: ExitStack,
    ended: Callable[[], bool],
) -> Iterator[Result]:
    """Results in the order of the frames; reading, the network and drawing overlap.

    What is between them is bounded. `stack` ends the threads. Once it has `ended`, no frame goes
    into the network any more, and what has come out of it is drawn and given.
    """
    transform, threads = predictor.transform, max(1, min(MOST_THREADS, cpu_count() // 2))
    cv2.setNumThreads(0)  # the threads here are enough

    def prepare(frame: Frame) -> Step:
        try:
            image = frame.image()
            check_scale(transform, image, frame)
            fed = predictor.prepare(image)
        except DataError as error:
            return Step(frame, problem=str(error))
        more = "" if frame.source.is_moving else further_frames(frame.source.name)
        return Step(frame, image, fed, remark=more and f"{frame.source.name} {more}")

    def run(step: Step) -> Step:
        try:
            classes = predictor.run(step.fed) if step.fed else None
        except (RuntimeError, MemoryError) as error:
            if (failure := memory_failure(error)) is None:
                raise
            problem = f"{step.frame.source.name}: {failure}; --long-side or --slide need less"
            if step.frame.source.is_moving:  # the next frame is as large
                raise InputError(problem) from None
            return Step(step.frame, problem=problem)
        return step._replace(fed=None, classes=classes)

    def draw(step: Step) -> Result:
        if step.problem:
            return Result(step.frame, problem=step.problem)
        try:
            result = drawer(step.frame, step.image, step.classes.cpu().numpy())
        except InputError as error:  # larger than JPEG can be
            return Result(step.frame, problem=str(error))
        return result._replace(remark=step.remark)

    steps = stack.enter_context(closing(ahead(frames, prepare, threads)))
    computed = map(run, takewhile(lambda _: not ended(), steps))
    return stack.enter_context(closing(behind(computed, draw, threads)))


def counted(results: Iterator[Result], found: Found, stack: ExitStack) -> Iterator[Result]:
    """The results behind a bar, whose total grows by what videos announce."""
    pictures = sum(not source.is_moving for source in found.sources)
    bar = stack.enter_context(tqdm(total=pictures, unit="frame", disable=None, leave=False))
    for result in results:
        if result.frame.number == 0:
            bar.total += result.frame.announced
        yield result
        bar.update()


def report(found: Found, words: list[str]) -> None:
    """Say what is left out. Raises ValueError where nothing is left."""
    for problem in found.closed:
        print(f"problem: {problem}")
    others = ", ".join(found.others[:NAMED]) + (", ..." if len(found.others) > NAMED else "")
    if not found.sources:
        why = f" (other files: {others})" if others else ""
        why += " (the folders of --out are left out)" if found.own else ""
        raise InputError(f"{', '.join(words)}: no picture and no video there{why}")
    if found.others:
        print(f"note: left out {len(found.others)} that are no picture and no video: {others}")
    if found.own:
        print("note: left out what lies in the folders of --out")


def load(args: argparse.Namespace) -> Predictor:
    """The predictor that the arguments describe."""
    named: dict[str, Any] = {}
    if args.classes:
        meta = get_meta(args.classes)
        named = {
            "class_names": meta.class_names, "palette": meta.palette, "dataset": meta.name
        }  # fmt: skip
    trained = load_trained(args.weights, args.arch, **named)
    facts = trained.input
    if args.short_side or args.long_side:
        facts = {**facts, "short_side": args.short_side, "long_side": args.long_side}
    return Predictor(
        fuse(trained.model),
        EvalTransform.from_facts(facts, str(args.weights)),
        trained.class_names,
        trained.palette,
        device=args.device,
        precision=args.precision,
        runtime=args.runtime,
        slide=None if args.slide is None else tuple(args.slide),
    )


def parse_args(words: list[str] | None = None) -> argparse.Namespace:
    """The arguments of the command line, or `words`. Raises ValueError for values out of range."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("weights", type=Path, help="best.pt or last.pt of a run, or another file of weights")
    add("sources", nargs="+", help="pictures, videos, folders, patterns, a camera's number")
    add("--out", type=Path, metavar="FOLDER", help="where results go; without, --view only")
    add("--save", nargs="+", choices=KINDS, default=["overlay"], help="default: overlay")
    add("--png", action="store_true", help="overlays as PNG, too, which takes more time")
    add("--view", action="store_true", help="show the overlays in a window; q quits")
    add("--json", action="store_true", help="also write shares.json")
    add("--legend", choices=LEGENDS, default="appearing", help="classes named below a picture")
    add("--opacity", type=float, default=0.5, help="of the colours, 0..1 (default: 0.5)")
    add("--frames", type=int, default=0, metavar="N", help="of a video or camera; default: all")
    add("--short-side", type=int, default=0, metavar="N", help="scale to this before the network")
    add("--long-side", type=int, default=0, metavar="N", help="or to this, whichever comes first")
    add("--slide", type=int, nargs=2, metavar=("H", "W"), help="cover pictures by such windows")
    add("--arch", metavar="NAME", help="architecture, where the weights do not say it")
    add("--classes", metavar="NAME", help="data set or .yaml file, where they do not say these")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    add("--precision", choices=DTYPES, default="fp32")
    add("--runtime", choices=RUNTIMES, default="torch", help="compiled takes a minute per size")
    args = parser.parse_args(words)
    args.save = list(dict.fromkeys(args.save))
    if args.out is None and (not args.view or args.json):
        raise InputError("--out FOLDER is needed, where results go")
    if not 0 <= args.opacity <= 1:
        raise InputError(f"--opacity is {args.opacity}; accepted: 0..1")
    if args.frames < 0:
        raise InputError(f"--frames is {args.frames}; accepted: 1 and above, or 0 for all")
    for side in ("short", "long"):
        if not 0 <= (value := getattr(args, f"{side}_side")) <= LONGEST_SIDE:
            raise InputError(
                f"--{side}-side is {value}; accepted: up to {LONGEST_SIDE}, 0 for none"
            )
    return args


if __name__ == "__main__":
    _init_paths.run_main(main)
