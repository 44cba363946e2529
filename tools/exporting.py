"""From a network to checked files in a folder; `tools/export.py` says which."""

import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from export_scenes import Pictures, frames, scenes

from datasets import DatasetMeta, Normalize
from models import SegModel, fuse
from utils import runtimes
from utils.benchmark import alternate
from utils.errors import InputError
from utils.export import Description, further_sizes
from utils.exported import Written, open_file, write_file
from utils.failures import first_cause, memory_failure
from utils.gate import FAILED, UNVERIFIED, Comparison, Verdict, compare, judge
from utils.handout import write_handout
from utils.quantise import FRAMES
from utils.records import adopt_file, atomic_write, environment, write_json
from utils.runtimes import ArrayRunner

FAILED_ENDING = ".failed"


class Job(NamedTuple):
    """What is to be exported.

    Attributes:
        model: as it was trained, in eval mode.
        meta: what its classes are in label files; None = not known.
        trained: whether the weights are not random.
    """

    model: SegModel
    description: Description
    normalize: Normalize
    meta: DatasetMeta | None
    trained: bool


def export_all(
    job: Job,
    kinds: Sequence[str],
    pictures: Pictures,
    calibration: Pictures | None,
    out: Path,
    interrupted: Callable[[], None] = lambda: None,
) -> dict[str, Verdict]:
    """Write, check and report the formats `kinds` into the folder `out`.

    `interrupted` is called before names are given and raises where they should not be. Raises
    ValueError where the network has no such form; then nothing is left there.
    """
    staging = Path(tempfile.mkdtemp(prefix=".export-", dir=out))
    try:
        written = write_files(job, kinds, calibration, staging)
        runs, verdicts = open_files(job, written)
        seen = compare_files(job, runs, pictures)
        for kind in runs:
            verdicts[kind] = verdict_on(job, kind, seen[kind])
        interrupted()
        for kind, files in written.items():
            timing = time_beside(job, runs[kind], files.floating) if kind in runs else {}
            report(job, kind, files, verdicts[kind], seen.get(kind), timing, pictures, out)
            give_names(files, verdicts[kind], out)
        if any(verdict.status != FAILED for verdict in verdicts.values()):
            write_handout(out, job.description)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return verdicts


def write_files(
    job: Job, kinds: Sequence[str], calibration: Pictures | None, folder: Path
) -> dict[str, Written]:
    """Every format's files in `folder`. Raises ValueError where the network has no such form."""
    inputs: list[np.ndarray] = []
    for sample in frames(calibration, job.description.size, FRAMES) if calibration else ():
        frame = np.ascontiguousarray(sample.image)
        of_frames = job.description.output == "classes"
        inputs.append((frame if of_frames else job.normalize(frame))[None])
    network, written = fuse(job.model), {}
    for kind in kinds:
        print(f"writing {kind}", flush=True)
        try:
            written[kind] = write_file(kind, network, job.description, folder, inputs)
        except RuntimeError as error:  # of exporters and compilers
            if memory_failure(error) is not None:
                raise
            reason = f"cannot be written as {kind}: {first_cause(error)}"
            raise InputError(f"{job.description.architecture} {reason}") from error
    return written


def open_files(
    job: Job, written: Mapping[str, Written]
) -> tuple[dict[str, ArrayRunner], dict[str, Verdict]]:
    """What runs here, by format, and what is to be said of the others."""
    runs, verdicts = {}, {}
    for kind, files in written.items():
        try:
            runs[kind] = open_file(kind, files.files[0], job.description.precision)
        except RuntimeError as error:
            status = UNVERIFIED if kind == "tensorrt" else FAILED
            verdicts[kind] = Verdict(status, (f"it cannot run here: {first_cause(error)}",))
    return runs, verdicts


def compare_files(
    job: Job, runs: Mapping[str, ArrayRunner], pictures: Pictures
) -> dict[str, Comparison]:
    """Every file beside the network, at further sizes, too, where it takes them."""
    description = job.description
    sizes = [description.size, *further_sizes(description)]
    return compare(
        job.model,
        runs,
        description.output,
        scenes(pictures, sizes, job.normalize),
        description.class_names,
        job.meta.ignore_label if job.meta else 255,
    )


def verdict_on(job: Job, kind: str, seen: Comparison) -> Verdict:
    """That of `judge`; of a file for TensorRT never that it is good, as another runtime ran it."""
    verdict = judge(seen, job.description.precision, trained=job.trained)
    if kind != "tensorrt" or verdict.status == FAILED:
        return verdict
    remark = "that was in ONNX Runtime; TensorRT has not run it"
    return Verdict(UNVERIFIED, (*verdict.reasons, remark))


def time_beside(
    job: Job, run: ArrayRunner, floating: Mapping[str, ArrayRunner]
) -> dict[str, float]:
    """Median milliseconds of a file in 8 bits and of the forms in float, taken in turn."""
    if not floating:
        return {}
    height, width = job.description.size
    frame = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
    array = frame if job.description.output == "classes" else job.normalize(frame[0])[None]
    functions = {"int8": run, **floating}
    times = alternate(
        {name: lambda f=function: f(array) for name, function in functions.items()},
        rounds=6,
        warmup_seconds=0.5,
        min_seconds=2,
    )
    return {name: entry["median_ms"] for name, entry in times.items()}


def report(
    job: Job,
    kind: str,
    files: Written,
    verdict: Verdict,
    seen: Comparison | None,
    timing: Mapping[str, float],
    pictures: Pictures,
    out: Path,
) -> None:
    """Say, and write beside the file, how it was checked and what came of it."""
    name, reasons = files.files[0].name, list(verdict.reasons)
    if timing:
        told = ", ".join(f"{key} {value:.1f} ms" for key, value in timing.items())
        slower = timing["int8"] >= min(v for key, v in timing.items() if key != "int8")
        reasons.append(f"{told}{'; 8 bits are not faster on this machine' if slower else ''}")
    if files.kept is not None:
        reasons.append(
            f"{files.kept.kept} of {files.kept.products} convolutions and matrix products stay in "
            "float"
        )
    record: dict[str, Any] = {
        "file": name,
        "format": kind,
        "status": verdict.status,
        "reasons": reasons,
        "checked_on": pictures.named,
        "comparison": seen.to_dict() if seen else None,
        "milliseconds": dict(timing),
        "kept_in_float": files.kept.names if files.kept else [],
        "description": job.description.to_dict(),
        "environment": environment() | runtimes.versions(),
        "command": shlex.join(["python", "tools/export.py", *sys.argv[1:]]),
    }
    lines = [f"{name}: {verdict.status}", *(f"- {reason}" for reason in reasons)]
    write_json(out / f"{name}.gate.json", record)
    atomic_write(out / f"{name}.gate.txt", "\n".join([*lines, f"- on {pictures.named}"]) + "\n")
    print("\n".join(lines), flush=True)


def give_names(files: Written, verdict: Verdict, out: Path) -> None:
    """Move files to where they belong; those that failed under a name that no runtime opens. What
    failed before under that name is removed."""
    ending = FAILED_ENDING if verdict.status == FAILED else ""
    for path in reversed(files.files):  # the one that is opened last, so that it is never alone
        adopt_file(path, out / f"{path.name}{ending}")
        if not ending:
            (out / f"{path.name}{FAILED_ENDING}").unlink(missing_ok=True)
