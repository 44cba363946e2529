"""What only a machine with an NVIDIA GPU shows, in about five minutes:

    python tests/gpu/suite.py --out FOLDER

Every part is a process of its own that is ended at its limit, and writes FOLDER/<part>.json after
each of its cases; FOLDER/<part>.txt is what it printed. Parts that test run side by side where
there are cores, those that measure alone and after them; the most important come first.
FOLDER/summary.json says what came of all. `--device cpu` rehearses everything in tiny form.

CamVid is found as in the other tests (RTSEG_SHARED); without it scenes are drawn.
"""

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import FAILED, IMPOSSIBLE, OK, Part, begin

LATE, SKIPPED = "timed out", "no time left"
CORES_EACH = 4  # for parts that run side by side


@dataclass(frozen=True)
class Plan:
    """A part: module.function, seconds that it may take of five minutes, whether it measures."""

    name: str
    function: str
    limit: float
    alone: bool = False


PLANS = (
    Plan("capture", "capturing.run", 90),
    Plan("throughput", "throughput.run", 90, alone=True),
    Plan("program", "throughput.program", 50, alone=True),
    Plan("busy", "throughput.busy", 40, alone=True),
    Plan("deployed", "deployed.run", 90),
    Plan("networks", "agreement.networks", 90),
    Plan("numbers", "agreement.numbers", 60),
    Plan("one_process", "agreement.one_process", 90),
    Plan("latency", "latency.run", 100, alone=True),
)
INNER = {"wrapped": "agreement.wrapped"}  # parts of parts


def main() -> int:
    args = parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.part:
        return run_part(args)
    device = choose(args.device)
    plans = [plan for plan in PLANS if not args.only or plan.name in args.only]
    results = supervise(plans, args, device)
    summary = {"device": device, "minutes": args.minutes, "parts": results}
    (args.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print("\n".join([table(results), "", *highlights(args.out)]))
    return 0 if all(r["status"] in (OK, IMPOSSIBLE) for r in results) else 1


def choose(asked: str) -> str:
    """cuda or cpu. Exits with a sentence where there is no GPU and no rehearsal is asked for."""
    import torch

    if asked == "cuda" and not torch.cuda.is_available():
        raise SystemExit("error: PyTorch finds no CUDA device; --device cpu rehearses the suite")
    return asked


def run_part(args: argparse.Namespace) -> int:
    """Inside of a part's own process."""
    import torch

    functions = INNER | {plan.name: plan.function for plan in PLANS}
    module, _, name = functions[args.part].partition(".")
    device = torch.device("cuda", 0) if args.device == "cuda" else torch.device("cpu")
    begin(device)
    part = Part(args.part, device, args.out)
    getattr(importlib.import_module(module), name)(part)
    return 0


def supervise(plans: list[Plan], args: argparse.Namespace, device: str) -> list[dict[str, Any]]:
    """Run all parts: first those that test, side by side, then those that measure."""
    began, scale = time.monotonic(), args.minutes / 5
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    waiting = sorted(plans, key=lambda plan: plan.alone)  # otherwise as they stand
    running: list[Running] = []
    results: dict[str, dict[str, Any]] = {}
    while waiting or running:
        for part in [part for part in running if part.ended()]:
            running.remove(part)
            results[part.plan.name] = part.result()
            print(line(results[part.plan.name]), flush=True)
        # A rehearsal measures nothing, in one thread each.
        room = cores if device == "cpu" else max(1, cores // CORES_EACH)
        while waiting and len(running) < (1 if waiting[0].alone and device != "cpu" else room):
            plan = waiting.pop(0)
            left = 60 * args.minutes - (time.monotonic() - began)
            if left < 5:
                results[plan.name] = outcome(plan.name, SKIPPED, 0.0, [], "")
                continue
            running.append(Running(plan, min(plan.limit * scale, left), args.out, device))
        time.sleep(0.1)
    return [results[plan.name] for plan in plans]


class Running:
    """A part in its own process, which leads a group of those that it starts."""

    def __init__(self, plan: Plan, limit: float, out: Path, device: str) -> None:
        self.plan, self.out, self.began = plan, out, time.monotonic()
        self.deadline, self.late = self.began + limit, False
        for old in (out / f"{plan.name}.json", out / f"{plan.name}.txt"):
            old.unlink(missing_ok=True)
        self.printed = (out / f"{plan.name}.txt").open("w")
        words = ["--part", plan.name, "--out", str(out), "--device", device]
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
        self.process = subprocess.Popen(
            [sys.executable, __file__, *words],
            env=os.environ | hidden,
            stdout=self.printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def ended(self) -> bool:
        """Whether it is over; ends it at its limit."""
        if self.process.poll() is None and time.monotonic() > self.deadline:
            self.late = True
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        return self.process.poll() is not None

    def result(self) -> dict[str, Any]:
        """What came of it."""
        self.printed.close()
        file, seconds = self.out / f"{self.plan.name}.json", time.monotonic() - self.began
        cases = json.loads(file.read_text())["cases"] if file.is_file() else []
        failed = [case for case in cases if case["status"] == FAILED]
        message = failed[0]["message"] if failed else ""
        status = FAILED if failed else OK
        if self.late:
            status = LATE
        elif self.process.returncode:
            text = (self.out / f"{self.plan.name}.txt").read_text().strip().splitlines()
            status, message = FAILED, message or (text or [f"exit {self.process.returncode}"])[-1]
        elif cases and all(case["status"] == IMPOSSIBLE for case in cases):
            status = IMPOSSIBLE
        told = [case["message"] for case in cases if case["status"] == IMPOSSIBLE]
        return outcome(self.plan.name, status, seconds, cases, message or (told or [""])[0])


def outcome(
    name: str, status: str, seconds: float, cases: list[dict[str, Any]], message: str
) -> dict[str, Any]:
    """An entry of summary.json."""
    count = {kind: sum(c["status"] == kind for c in cases) for kind in (OK, FAILED, IMPOSSIBLE)}
    return {
        "part": name,
        "status": status,
        "seconds": round(seconds, 1),
        "cases": count,
        "message": " ".join(message.split())[:300],
    }


def line(result: dict[str, Any]) -> str:
    """One row of the table."""
    counts = "".join(f"{number:>5}" for number in result["cases"].values())
    return (
        f"{result['part']:<12} {result['status']:<13}{result['seconds']:>7.1f}{counts}  "
        f"{result['message'][:90]}"
    )


def table(results: list[dict[str, Any]]) -> str:
    """What is printed at the end."""
    head = f"{'part':<12} {'status':<13}{'seconds':>7}{'ok':>5}{'bad':>5}{'n/p':>5}"
    total = sum(result["seconds"] for result in results)
    rows = "\n".join(map(line, results))
    return f"\n{head}\n{rows}\n{'sum':<26}{total:>7.1f}  n/p: not possible here"


def highlights(out: Path) -> list[str]:
    """Rows of the numbers that were measured: throughput, busy share, latency."""
    rows = []
    for name, key in (
        ("throughput", "images_per_second"),
        ("program", "images_per_second"),
        ("busy", "busy share"),
        ("latency", "median_ms"),
    ):
        file = out / f"{name}.json"
        for case in json.loads(file.read_text())["cases"] if file.is_file() else []:
            value = case.get(key)
            named = value.items() if isinstance(value, dict) else [("", value)]
            numbers = [(k, v[-1] if isinstance(v, list) else v) for k, v in named]
            told = ", ".join(f"{k} {v:.4g}".strip() for k, v in numbers if v is not None)
            if told:
                rows.append(f"{name:<12}{case['case']:<32}{key.replace('_', ' ')}: {told}")
    return rows + program_over_bare(out)


def program_over_bare(out: Path) -> list[str]:
    """tools/train.py over the bare captured loop at batch 16, where both have been measured."""
    speeds: dict[tuple[str, str], float] = {}
    for name in ("throughput", "program"):
        file = out / f"{name}.json"
        for case in json.loads(file.read_text())["cases"] if file.is_file() else []:
            value = case.get("images_per_second")
            if name == "throughput" and isinstance(value, dict) and "bare" in value:
                value = value["bare"]
            value = value[-1] if isinstance(value, list) else value
            if isinstance(value, (int, float)):
                speeds[name, case["case"]] = value
    rows = []
    for (name, case), speed in speeds.items():
        bare = speeds.get(("throughput", f"{case}, batch 16"))
        if name == "program" and bare:
            rows.append(f"{case}: tools/train.py over the bare captured loop {speed / bare:.3f}")
    return rows


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [plan.name for plan in PLANS]
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--minutes", type=float, default=5.0, help="in all; default 5")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", nargs="+", choices=names, help="these parts alone")
    parser.add_argument("--part", choices=[*names, *INNER], help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
