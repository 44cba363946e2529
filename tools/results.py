"""Train and score every run of a table that is not done yet, and write the page about them.

    python tools/results.py docs/results.yaml
    python tools/results.py docs/results.yaml --minutes 10 DATASET.ROOT ../data/

The table names configurations, settings and seeds, the most important run first. A finished run is
one record (scores, curve, settings, digest of the weights, machine) and its weights in half
precision, in --state; what has a record there is not trained again, so that minutes on several
machines add up. --minutes leaves out runs that take longer by the table, and stops the last one
with its checkpoint saved: the same command goes on where its run folder still is. The test list is
scored once per run, with the weights that the validation list has chosen.
"""

import argparse
import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import _init_paths
import yaml

from configs import get_config
from configs.loader import run_folder
from models.weights import read_checkpoint
from utils.checkpoint import save_checkpoint
from utils.errors import InputError
from utils.logger import read_metrics
from utils.records import require_folder, write_json
from utils.results import WantedRun, join_file, read_results, split_file, wanted_runs

STATE = _init_paths.ROOT / "docs" / "results"
GRACE = 120  # seconds that a training run gets to save and end
CURVE = ("epoch", "step", "loss", "lr", "miou", "seconds")  # what a record keeps of every epoch


def main() -> int:
    args = parse_args()
    table = read_table(args.table)
    runs = wanted_runs(table, str(args.table))
    for run in runs:  # refused before the first is trained
        configuration(run, args)
    require_folder(args.state, "--state")
    done = {(record["name"], record["seed"]) for record in read_results(args.state)}
    end = time.monotonic() + 60 * args.minutes if args.minutes else None
    for run in runs:
        if (run.name, run.seed) in done:
            print(f"{run.stem}: done", flush=True)
            continue
        left = None if end is None else (end - time.monotonic()) / 60
        config, _ = configuration(run, args)
        if left is not None and (left <= 0 or (run.minutes or config.TRAIN.MINUTES) > left):
            print(f"{run.stem}: left out, {max(0, left):.1f} minutes are left", flush=True)
            continue
        if not train(run, args, end):
            print(f"{run.stem}: stopped, what it has saved is kept; the same command goes on")
            continue
        write_json(args.state / f"{run.stem}.json", finish(run, args))
    page = [sys.executable, str(_init_paths.ROOT / "tools/pages/results_page.py"), str(args.table)]
    if args.state == STATE:
        return subprocess.run(page, check=False).returncode
    return 0


def read_table(path: Path) -> dict[str, Any]:
    """The content of a table's file. Raises ValueError where it is none."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no table; accepted: the keys runs and score")
    return content


def words(run: WantedRun, args: argparse.Namespace) -> list[str]:
    """--cfg and settings of a run, as train.py and eval.py take them."""
    files = [word for file in run.cfg for word in ("--cfg", file)]
    work = (args.work / run.stem).as_posix()
    start = ["MODEL.PRETRAINED", f"{args.work.as_posix()}/{run.start}.pt"] if run.start else []
    return [*files, *run.settings, *args.opts, *start, "SEED", str(run.seed), "OUTPUT_DIR", work]


def configuration(run: WantedRun, args: argparse.Namespace) -> tuple[Any, Path]:
    """The configuration of a run, and its folder. Raises ValueError where a setting is wrong."""
    settings = words(run, args)[2 * len(run.cfg) :]
    config = get_config(list(run.cfg), settings)
    return config, run_folder(config, list(run.cfg))


def train(run: WantedRun, args: argparse.Namespace, end: float | None) -> bool:
    """Whether the run has come to its end before `end`; it goes on from an earlier attempt."""
    if run.start:
        first = next((r for r in read_results(args.state) if stem_of(r) == run.start), None)
        if first is None:
            print(
                f"{run.stem}: left out, it starts from {run.start}, which is not done", flush=True
            )
            return False
        join_file(first, args.state, args.work / f"{run.start}.pt")
    command = ["tools/train.py", *words(run, args), "TRAIN.RESUME", "True"]
    process = start(command)
    try:
        process.wait(None if end is None else max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(GRACE)
        finally:
            process.kill()
    except KeyboardInterrupt:  # the terminal has sent it to the training, too
        process.wait(GRACE)
        raise
    if process.returncode in (128 + signal.SIGTERM, -signal.SIGTERM):  # the latter: still starting
        return False
    if process.returncode:
        raise InputError(f"{run.stem}: training ended with status {process.returncode}; see above")
    return True


def finish(run: WantedRun, args: argparse.Namespace) -> dict[str, Any]:
    """Score a trained run, keep its weights in half precision, and say all about it."""
    _, folder = configuration(run, args)
    command = ["tools/eval.py", *words(run, args), "DATASET.TEST_SET", run.score]
    before = set(folder.glob("eval_*.json"))
    if start(command).wait():
        raise InputError(f"{run.stem}: scoring on {run.score} failed; see above")
    (file,) = set(folder.glob("eval_*.json")) - before or {newest(folder)}
    evaluation = json.loads(file.read_text(encoding="utf-8"))
    if "scores" not in evaluation:
        raise InputError(f"{run.stem}: score {run.score} names no labels")
    metrics = read_metrics(folder / "metrics.jsonl")
    checkpoint = read_checkpoint(folder / "best.pt")
    half = {k: v.half() if v.is_floating_point() else v for k, v in checkpoint.tensors.items()}
    save_checkpoint(folder / "half.pt", {**checkpoint.facts, "model": half})
    return {
        "name": run.name,
        "title": run.title,
        "seed": run.seed,
        "command": ["python", "tools/train.py", *words(run, args)],
        "config": (folder / "config.yaml").read_text(encoding="utf-8"),
        "architecture": evaluation["architecture"],
        "scored": run.score,
        "best": checkpoint.facts.get("score", {}),
        "test": evaluation["scores"],
        "views": evaluation["views"],
        "minutes": sum(epoch["seconds"] for epoch in metrics) / 60,
        "curve": [{key: epoch.get(key) for key in CURVE} for epoch in metrics],
        "weights": split_file(folder / "half.pt", args.state, f"{run.stem}.pt"),
        "environment": evaluation["environment"],
    }


def stem_of(record: dict[str, Any]) -> str:
    """What the files of a record are called."""
    return f"{record['name']}-{record['seed']}"


def newest(folder: Path) -> Path:
    """The evaluation that was written last."""
    return max(folder.glob("eval_*.json"), key=lambda path: path.stat().st_mtime)


def start(command: list[str]) -> subprocess.Popen:
    """Start a script of the repository, after saying so."""
    print(f"\n$ {shlex.join(['python', *command])}", flush=True)
    return subprocess.Popen([sys.executable, *command], cwd=_init_paths.ROOT)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", type=Path, help="such as docs/results.yaml")
    parser.add_argument("--minutes", type=float, help="end after so long; the table's order counts")
    parser.add_argument(
        "--state", type=Path, default=STATE, help="records and weights of finished runs"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("output/results"), help="run folders, checkpoints"
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings of every run")
    args = parser.parse_intermixed_args()
    if args.minutes is not None and args.minutes <= 0:
        raise InputError(f"--minutes is {args.minutes:g}; accepted: above 0")
    args.state, args.work = args.state.resolve(), args.work.resolve()
    return args


if __name__ == "__main__":
    _init_paths.run_main(main)
