"""Check every pair that a configuration names, before training.

    python tools/check_data.py --cfg configs/camvid/pidnet_s_camvid.yaml DATASET.ROOT data/

Reads all files of DATASET.TRAIN_SET and DATASET.TEST_SET in --workers processes and prints every
problem with its list line, what looks suspicious, and what each class holds. The folder --out then
has report.json and a contact sheet per list, sheet_<list>.png: suspicious pairs first, one of
each kind before further ones, with a red frame, then others spread over the list. Exit status 0:
sound; 1: problems; 2: nothing could be checked.
"""

import argparse
import contextlib
import sys
import time
from pathlib import Path
from typing import Any

import _init_paths
import numpy as np
from builders import unused_weights
from tqdm import tqdm

from configs import get_config
from configs.arguments import parse_arguments
from configs.loader import run_folder
from datasets import DataError, get_meta, shared_images
from datasets.checking import CheckedList, Summary, examine_all
from datasets.machine import cpu_count
from utils.contact_sheet import Tile, contact_sheet
from utils.errors import InputError
from utils.legend import drawable
from utils.names import distinct_files
from utils.records import environment, require_folder, write_json
from utils.visualize import write_png

SHOWN = 12  # suspicions printed per list, one of each kind at first; the report has all
TILES = 24  # pairs on a contact sheet


def main() -> int:
    args = parse_args()
    config = get_config(args.cfg, args.opts)
    meta = get_meta(config.DATASET.DATASET)
    if meta.name == "synthetic":
        print("synthetic: scenes are drawn, there are no files to check")
        return 0
    workers = config.WORKERS if args.workers is None else args.workers
    if workers < 0:
        raise InputError(f"--workers is {workers}; accepted: 0 and above")
    d = config.DATASET
    names = dict.fromkeys((d.TRAIN_SET, d.TEST_SET))
    repeats = {d.TRAIN_SET: d.REPEATED_LINES, d.TEST_SET: False}
    lists = [CheckedList(d.ROOT, name, meta, d.LABELS, repeats=repeats[name]) for name in names]
    if problem := lists[0].folder_problem():
        raise InputError(problem)
    if lists[0].entries and not lists[0].labelled:
        lists[0].list_problems.append(
            f"{d.TRAIN_SET} names no labels; training needs image<TAB>label"
        )
    print(f"{meta.name} under {lists[0].folder}, labels read as {lists[0].encoding}")
    folder = run_folder(config, args.cfg)
    out = args.out or folder.with_name(f"check_{folder.name}")
    require_folder(out, "--out" if args.out else "the report's folder (under OUTPUT_DIR)")
    began = time.perf_counter()
    summaries = [check(dataset, min(workers, cpu_count())) for dataset in lists]
    seconds = time.perf_counter() - began
    for summary in summaries:
        report(summary)
    checked = sum(len(dataset) for dataset in lists)
    problems = sum(len(summary.problems) for summary in summaries)
    common = set.intersection(*({entry.image for entry in dataset.entries} for dataset in lists))
    shared = shared_images(*lists) if len(lists) > 1 else []
    unscored = [
        f"{d.TEST_SET} names no labels; evaluation predicts it, training cannot score on it"
        for dataset in lists[1:]
        if dataset.entries and not dataset.labelled
    ]
    for note in (*shared, *unscored, *unused_weights(config, meta)):
        print(f"note: {note}")

    sheets = sheet_files(list(names))
    write_json(
        out / "report.json",
        {
            "command": ["python", "tools/check_data.py", *sys.argv[1:]],
            "dataset": meta.name,
            "folder": str(lists[0].folder),
            "encoding": lists[0].encoding,
            "entries": checked,
            "problems": problems,
            "suspicions": sum(len(summary.suspicions) for summary in summaries),
            "in_both_lists": len(common) if len(lists) > 1 else 0,
            "seconds": seconds,
            "entries_per_second": checked / max(seconds, 1e-9),
            "workers": workers,
            "environment": environment(),
            "sheets": sheets,
            "lists": [summary.to_dict() for summary in summaries],
        },
    )
    for summary, sheet in zip(summaries, sheets, strict=True):
        write_sheet(summary, out / sheet)
    print(f"{out}: report.json and contact sheets; {checked / max(seconds, 1e-9):.1f} entries/s")
    print(f"{checked} entries checked, {problems or 'no'} problem{'s' if problems > 1 else ''}")
    return 1 if problems else 0


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: WORKERS)")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="default: OUTPUT_DIR/<dataset>/check_<config>"
    )
    return parse_arguments(parser, about="configuration to check for")


def check(dataset: CheckedList, workers: int) -> Summary:
    """Examine a whole list behind a progress bar."""
    summary = Summary(dataset)
    name = str(dataset.list_path)
    for finding in tqdm(
        examine_all(dataset, workers), name, len(dataset), unit="pair", disable=None, leave=False
    ):
        summary.add(finding)
    summary.finish()
    return summary


def report(summary: Summary) -> None:
    """Print problems, suspicions, notes and the class table of one list."""
    dataset = summary.dataset
    kind = "pairs" if dataset.labelled else "images without labels"
    counts = summary.size_counts()
    sizes = ", ".join(f"{h}x{w} ({n})" for (h, w), n in counts[:4])
    if len(counts) > 4:
        sizes += f" and {len(counts) - 4} more"
    bad = dataset.bad_lines
    number = f"{len(dataset)} {kind}" + (f" of {len(dataset) + bad} lines" if bad else "")
    print(f"\n{dataset.list_path}: {number}; height x width: {sizes or 'unknown'}")
    for problem in summary.problems:
        print(f"problem: {problem}")
    suspicions = summary.one_of_each_first()
    for suspicion in suspicions[:SHOWN]:
        print(f"suspicious: {suspicion}")
    if len(suspicions) > SHOWN:
        print(f"suspicious: {len(suspicions) - SHOWN} more, all in report.json")
    for note in summary.notes:
        print(f"note: {note}")
    total = int(summary.pixels.sum())
    if not total:
        return
    print(f"{'class':<20}{'pixels %':>10}{'images':>8}")
    names = (*dataset.meta.class_names, "(ignored)")
    for name, pixels, images in zip(names, summary.pixels, summary.images, strict=True):
        print(f"{name:<20}{100 * pixels / total:>10.3f}{images:>8}")


def sheet_files(lists: list[str]) -> list[str]:
    """sheet_<list>.png for every list, in the folders of the lists where their names are alike."""
    files = (Path(file) for file in distinct_files(lists, ".png"))
    return [file.with_name(f"sheet_{file.name}").as_posix() for file in files]


def write_sheet(summary: Summary, path: Path) -> None:
    """Draw the contact sheet of one list, if it has entries."""
    dataset = summary.dataset
    if not len(dataset):
        return
    suspects = summary.suspects_of_each_kind_first()[: TILES // 2]
    spread = np.linspace(0, len(dataset) - 1, min(TILES, len(dataset)), dtype=int).tolist()
    others = [index for index in spread if index not in summary.suspects]
    chosen = [*suspects, *others[: TILES - len(suspects)]]
    tiles = [tile(dataset, index, index in summary.suspects) for index in chosen]
    legend: Any = zip(drawable(dataset.meta.class_names), dataset.meta.palette, strict=True)
    write_png(path, contact_sheet(tiles, list(legend) if dataset.labelled else ()))


def tile(dataset: CheckedList, index: int, marked: bool) -> Tile:
    """Image and coloured label of one entry, as far as they can be read."""
    entry = dataset.entries[index]
    pictures = []
    with contextlib.suppress(DataError, OSError, MemoryError):  # the report says what is wrong
        pictures.append(dataset.load_image(index))
        if dataset.labelled:
            pictures.append(dataset.meta.colorize(dataset.load_label(index)))
    return Tile(pictures, f"{entry.line}: {entry.image}", marked)


if __name__ == "__main__":
    _init_paths.run_main(main)
