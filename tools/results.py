"""Train and score every run of a table that is not done yet, and write the page about them.

    python tools/results.py docs/results.yaml
    python tools/results.py docs/results.yaml --minutes 90 DATASET.ROOT ../data/

The table names configurations, settings and seeds, the most important run first. A finished run is
one record (scores, curve, settings, digest of the weights, machine) and its weights in half
precision, which are what is scored, in --state; what has a record there is not trained again, so
that minutes on several machines add up. A record of other settings than the table's is refused.
--row takes one alone, or several where it is repeated. --minutes leaves out runs that would take
longer by the table, unless they have been begun, and stops the last one with its checkpoint saved:
the same command goes on where its run folder still is. A run that starts from weights which are not
here is left out, too, and refused where --row names it. The test list is scored once per run, with
the weights that the validation list has chosen. Where a run fails the next one follows, and the
exit status tells. The page is written where --state is the repository's own.
"""

import argparse
import json
import math
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _init_paths
import yaml
from builders import build_dataset
from checks import check_test_batch

from configs import get_config
from configs.loader import changed_keys, run_folder
from datasets import quick_check
from models.weights import read_checkpoint
from utils.checkpoint import save_checkpoint
from utils.errors import InputError
from utils.logger import read_metrics
from utils.records import require_folder, sha256, write_json
from utils.results import (
    WantedRun,
    half_precision,
    join_file,
    joined,
    read_results,
    settings_digest,
    split_file,
    wanted_runs,
)
from utils.stopping import stopped

STATE = _init_paths.ROOT / "docs" / "results"
WORK = Path("output/results")
GRACE = 120  # seconds that a training run gets to save and end
CURVE = ("epoch", "step", "loss", "lr", "miou", "seconds")  # what a record keeps of every epoch
# What may differ between machines and seeds of one row, and where places are named.
PLACES = (
    "SEED OUTPUT_DIR WORKERS DATASET.ROOT DATASET.CACHE DATASET.CACHE_GB DATASET.CACHE_DIR".split()
)
# What kept weights say of themselves.
FACTS = "architecture options dataset class_names palette input score".split()


def main() -> int:
    args = parse_args()
    table = read_table(args.table)
    runs = chosen(wanted_runs(table, str(args.table)), args)
    check(runs, args)  # refused before the first is trained
    end = time.monotonic() + 60 * args.minutes if args.minutes else None
    failed = []
    for run in runs:
        try:
            outcome = attempt(run, args, end)
        except (ValueError, FileNotFoundError) as error:
            outcome = f"failed: {error}"
            failed.append(run.stem)
        print(f"{run.stem}: {outcome}", flush=True)
    if failed:
        print(f"not done: {', '.join(failed)}; see above", file=sys.stderr)
    page = [sys.executable, str(_init_paths.ROOT / "tools/pages/results_page.py"), str(args.table)]
    status = subprocess.run(page, check=False).returncode if args.state == STATE else 0
    return 1 if failed else status


def chosen(runs: list[WantedRun], args: argparse.Namespace) -> list[WantedRun]:
    """The runs of the rows of --row, else all. Raises ValueError for a row that there is not."""
    names = list(dict.fromkeys(run.name for run in runs))
    if unknown := [name for name in args.row or () if name not in names]:
        raise InputError(f"--row {unknown[0]}: no such row; accepted: {', '.join(names)}")
    if alone := [word for word in args.opts[::2] if word in names]:
        raise InputError(f"{alone[0]} is a row of {args.table}; write --row {alone[0]}")
    return [run for run in runs if args.row is None or run.name in args.row]


def check(runs: Sequence[WantedRun], args: argparse.Namespace) -> None:
    """Raise ValueError where a setting is wrong, a list cannot be scored, a record is of other
    settings than its run, or a run that --row names has nothing to start from."""
    settings = {}
    for run in runs:
        try:
            settings[run.stem] = settings_of(run, args)
        except ValueError:  # told of as the table's where it is
            get_config(list(run.cfg), run.settings, f"{args.table}, runs: {run.name}")
            raise
    require_folder(args.state, "--state")
    records = {stem_of(record): record for record in read_results(args.state)}
    stems = [run.stem for run in runs]
    for run in runs:
        if record := records.get(run.stem):
            refuse_others(run, record["settings"], settings[run.stem], args.state)
            continue
        comes_first = run.start in stems and run.start not in records
        problem = start_problem(run, settings[run.stem], records, args)
        if args.row and problem and not comes_first:
            raise InputError(f"{run.stem} starts from {run.start}: {problem}")
        config = get_config(list(run.cfg), [*run.settings, *args.opts, *scored_on(run)])
        dataset = build_dataset(config, train=False)
        if not dataset.labelled:
            raise InputError(f"{run.stem}: score {run.score} names no labels")
        quick_check(dataset)
        check_test_batch(config, dataset)


def start_problem(
    run: WantedRun,
    settings: dict[str, Any],
    records: dict[str, dict[str, Any]],
    args: argparse.Namespace,
) -> str | None:
    """What keeps a run from its start; None if nothing does."""
    if not run.start or start_file(run, settings, args.work).is_file():
        return None
    if run.start not in records:
        return f"that row is not done; --row {run.start.rpartition('-')[0]} names it"
    try:
        joined(records[run.start], args.state)
    except InputError as error:
        return str(error)
    return None


def refuse_others(run: WantedRun, then: dict[str, Any], now: dict[str, Any], state: Path) -> None:
    """Raise ValueError where the settings of a record are not those of its run."""
    if changed := [key for key in {**then, **now} if then.get(key) != now.get(key)]:
        told = ", ".join(
            f"{key} {then.get(key, 'not set')} (now {now.get(key, 'not set')})" for key in changed
        )
        raise InputError(
            f"{state / run.stem}.json is of a run with {told}; give the row another name, or "
            "remove the record to train it again"
        )


def attempt(run: WantedRun, args: argparse.Namespace, end: float | None) -> str:
    """Bring a run as far as the time until `end` allows, and say how far."""
    records = {stem_of(record): record for record in read_results(args.state)}
    if run.stem in records:
        return "done"
    settings = settings_of(run, args)
    config, folder = configuration(run, args, settings)
    left = math.inf if end is None else (end - time.monotonic()) / 60
    begun = (folder / "last.pt").is_file()
    needed = 0 if begun else run.minutes or config.TRAIN.MINUTES
    if left <= 0 or (end is not None and needed > math.ceil(left)):
        takes = f" of the {needed:g} that it takes" if needed else ""
        return f"left out, {max(0, left):.1f} minutes are left{takes}"
    if problem := start_problem(run, settings, records, args):
        return f"left out, it starts from {run.start}: {problem}"
    if run.start and not (target := start_file(run, settings, args.work)).is_file():
        join_file(records[run.start], args.state, target)
    if not train(run, args, settings, end):
        return "stopped, what it has saved is kept; the same command goes on"
    write_json(args.state / f"{run.stem}.json", finish(run, args, settings))
    return "done"


def read_table(path: Path) -> dict[str, Any]:
    """The content of a table's file. Raises ValueError where it is none."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"the table {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no table; accepted: the keys runs and score")
    return content


def settings_of(run: WantedRun, args: argparse.Namespace) -> dict[str, Any]:
    """What makes a run what it is, seed and places aside: settings that are not the defaults, the
    list it is scored on, the digest of the weights it starts from (None as long as there are none).

    Raises ValueError where a setting is wrong.
    """
    config = get_config(list(run.cfg), [*run.settings, *args.opts])
    changed = changed_keys(config, "{}")
    found = {key: now for key, (_, now) in changed.items() if key not in PLACES}
    if weights := found.get("MODEL.PRETRAINED"):
        found["MODEL.PRETRAINED"] = Path(weights).name
    found["score"] = run.score
    if run.start:
        records = read_results(args.state)
        digests = {stem_of(record): record["weights"]["sha256"] for record in records}
        found["start"] = digests.get(run.start)
    return json.loads(json.dumps(found, sort_keys=True))  # as a record has it


def words(run: WantedRun, opts: Sequence[str], settings: dict[str, Any], work: Path) -> list[str]:
    """--cfg and settings of a run, as train.py and eval.py take them.

    The folder's name tells the settings, so that no run goes on from one of others.
    """
    files = [word for file in run.cfg for word in ("--cfg", file)]
    start = []
    if run.start:
        start = ["MODEL.PRETRAINED", start_file(run, settings, work).as_posix()]
    folder = (work / f"{run.stem}-{settings_digest(settings)}").as_posix()
    return [*files, *run.settings, *opts, *start, "SEED", str(run.seed), "OUTPUT_DIR", folder]


def start_file(run: WantedRun, settings: dict[str, Any], work: Path) -> Path:
    """Where the weights lie that a run starts from."""
    return work / f"{run.start}-{str(settings['start'])[:8]}.pt"


def scored_on(run: WantedRun) -> list[str]:
    """Settings for the list that a run is scored on at its end."""
    return ["DATASET.TEST_SET", run.score]


def configuration(
    run: WantedRun, args: argparse.Namespace, settings: dict[str, Any]
) -> tuple[Any, Path]:
    """The configuration of a run, and its folder."""
    given = words(run, args.opts, settings, args.work)[2 * len(run.cfg) :]
    config = get_config(list(run.cfg), given)
    return config, run_folder(config, list(run.cfg))


def train(
    run: WantedRun, args: argparse.Namespace, settings: dict[str, Any], end: float | None
) -> bool:
    """Whether the run has come to its end before `end`; it goes on from an earlier attempt.

    Raises ValueError where it has failed.
    """
    command = ["tools/train.py", *words(run, args.opts, settings, args.work)]
    process = start([*command, "TRAIN.RESUME", "True"])
    asked = False
    try:
        process.wait(None if end is None else max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        asked = True
        process.send_signal(signal.SIGTERM)
        end_within(process, GRACE)
    except KeyboardInterrupt:  # the terminal has sent it to the training, too
        end_within(process, GRACE)
        raise
    # A negative status is of one that was still starting, or did not end in time.
    if stopped(process.returncode) or (asked and process.returncode < 0):
        return False
    if process.returncode:
        raise InputError(f"training ended with status {process.returncode}; see above")
    return True


def end_within(process: subprocess.Popen, seconds: float) -> None:
    """Wait for a process that was asked to end, and kill it where it does not."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def finish(run: WantedRun, args: argparse.Namespace, settings: dict[str, Any]) -> dict[str, Any]:
    """Keep the weights of a trained run in half precision, score them, and say all about it.

    Raises ValueError where weights are not finite or the scoring fails.
    """
    config, folder = configuration(run, args, settings)
    checkpoint = read_checkpoint(folder / "best.pt")
    facts = {key: checkpoint.facts[key] for key in FACTS if key in checkpoint.facts}
    half = folder / "half.pt"
    save_checkpoint(half, {**facts, "model": half_precision(checkpoint.tensors)})
    given = words(run, args.opts, settings, args.work)
    command = ["tools/eval.py", *given, *scored_on(run), "TEST.MODEL_FILE", half.as_posix()]
    before = set(folder.glob("eval_*.json"))
    if start(command).wait():
        raise InputError(f"scoring on {run.score} failed; see above")
    (file,) = set(folder.glob("eval_*.json")) - before or {newest(folder)}
    evaluation = json.loads(file.read_text(encoding="utf-8"))
    metrics = read_metrics(folder / "metrics.jsonl")
    kept = {"files": [], "sha256": sha256(half)}
    if run.weights:
        kept = split_file(half, args.state, f"{run.stem}.pt")
    return {
        "name": run.name,
        "title": run.title,
        "seed": run.seed,
        "command": ["python", "tools/train.py", *words(run, portable(args.opts), settings, WORK)],
        "settings": settings,
        "config": without_places(config),
        "architecture": evaluation["architecture"],
        "scored": run.score,
        "best": checkpoint.facts.get("score", {}),
        "test": evaluation["scores"],
        "views": evaluation["views"],
        "minutes": sum(epoch["seconds"] for epoch in metrics) / 60,
        "curve": [{key: epoch.get(key) for key in CURVE} for epoch in metrics],
        "weights": kept,
        "environment": evaluation["environment"],
    }


def portable(opts: Sequence[str]) -> list[str]:
    """KEY VALUE words without those of one machine."""
    pairs = zip(opts[::2], opts[1::2], strict=True)
    return [word for key, value in pairs if key not in PLACES for word in (key, value)]


def without_places(config: Any) -> str:
    """A configuration as text, without what belongs to one machine."""
    content = yaml.safe_load(config.dump())
    for key in PLACES:
        section, _, name = key.rpartition(".")
        (content[section] if section else content).pop(name)
    content["MODEL"]["PRETRAINED"] = Path(content["MODEL"]["PRETRAINED"]).name
    return yaml.safe_dump(content)


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
    parser.add_argument("table", type=Path, nargs="?", help="such as docs/results.yaml")
    parser.add_argument("--row", metavar="NAME", action="append", help="train it; may be repeated")
    parser.add_argument("--minutes", type=float, help="end after so long; the table's order counts")
    parser.add_argument(
        "--state",
        type=Path,
        default=STATE,
        help="records and weights of finished runs (docs/results)",
    )
    parser.add_argument(
        "--work", type=Path, default=WORK, help=f"run folders, checkpoints ({WORK.as_posix()})"
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings of every run")
    args = parser.parse_intermixed_args()
    if args.table is None:
        raise InputError("no table is named; docs/results.yaml is one")
    if args.minutes is not None and not 0 < args.minutes < math.inf:
        raise InputError(f"--minutes is {args.minutes:g}; accepted: a number above 0")
    args.state, args.work = args.state.resolve(), args.work.resolve()
    return args


if __name__ == "__main__":
    _init_paths.run_main(main)
