"""Shared fixtures: the repository on sys.path, the optional folder of real data, quiet threads."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]
torch.set_num_threads(1)  # threads that share a core with another process wait for each other
SHARED = Path(os.environ.get("RTSEG_SHARED", ROOT.parent / "shared")).resolve()


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository root."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and full parity fixtures; tests that need it skip without it."""
    if not SHARED.is_dir():
        pytest.skip(f"no shared data at {SHARED}; set RTSEG_SHARED to the folder that holds it")
    return SHARED


TINY = (
    "MODEL.OPTIONS.base_channels 8 MODEL.OPTIONS.attention_channels 16 "
    "MODEL.OPTIONS.head_channels 16 "
    "MODEL.OPTIONS.context_channels 16 DATASET.SIZE (96,64) TRAIN.IMAGE_SIZE (96,64) "
    "DATASET.TRAIN_SET 0:12 DATASET.TEST_SET 100:104 TRAIN.BATCH_SIZE_PER_GPU 4 WORKERS 0 "
    "TRAIN.END_EPOCH 2 TRAIN.WARMUP_STEPS 2 TEST.OVERLAYS 2"
).split()
DEMO_CONFIG = "configs/synthetic/rtlinearformer_slim_synthetic.yaml"


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """--cfg and overrides of a training run of seconds on a few drawn scenes."""
    return ["--cfg", DEMO_CONFIG, *TINY]


@pytest.fixture(scope="session")
def start() -> Callable[..., subprocess.Popen]:
    """Starts a script of the repository from its root, as a user would."""

    def start_script(script: str, *arguments: object, **more) -> subprocess.Popen:
        command = [sys.executable, script, *map(str, arguments)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", **more.pop("env", {})}
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **more,
        )

    return start_script


@pytest.fixture(scope="session")
def run(start: Callable[..., subprocess.Popen]) -> Callable[..., subprocess.CompletedProcess]:
    """Runs a script to its end; fails with its output where the exit status is not `status`."""

    def run_script(
        script: str, *arguments: object, status: int = 0, timeout: float = 120, **more
    ) -> subprocess.CompletedProcess:
        process = start(script, *arguments, **more)
        out, err = process.communicate(timeout=timeout)
        assert process.returncode == status, f"exit {process.returncode}\n{out}\n{err}"
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run_script


@pytest.fixture(scope="session")
def refuses(run: Callable[..., subprocess.CompletedProcess]) -> Callable[..., None]:
    """Asserts that a script ends with status 2 and one sentence that holds all of `words`.

    The sentence must come within 10 seconds of wall-clock time. A second try is for a machine that
    was busy at the first; a refusal that is slow by itself fails both.
    """

    def check(words: list[str], script: str, *arguments: object) -> None:
        for last_try in (False, True):
            began = time.perf_counter()
            done = run(script, *arguments, status=2)
            took = time.perf_counter() - began
            if took < 10 or last_try:
                break
        lines = done.stderr.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
        assert all(word in lines[0] for word in words), lines[0]
        assert took < 10

    return check
