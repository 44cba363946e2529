"""Shared fixtures: the repository on sys.path, the optional folder of real data, quiet threads."""

import functools
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]
# Before anything has looked for a GPU: tests compare to the bit and speak of the CPU, in this
# process and in those that they start. What a GPU computes is for tests/gpu/suite.py.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
torch.set_num_threads(1)  # threads that share a core with another process wait for each other

from models import build_backbone, build_model, list_backbones, list_models

SHARED = Path(os.environ.get("RTSEG_SHARED", ROOT.parent / "shared")).resolve()


STARTS = {"start", "run", "call", "shared"}  # fixtures that make a test too long for `make quick`
LARGE = 14e6  # parameters; the smallest network of every family is below


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests `medium` that start a script, need real data, or are about a large network."""
    for item in items:
        case = getattr(item, "callspec", None)
        values = [getattr(v, "stem", v) for v in (case.params.values() if case else ())]
        names = [value for value in values if isinstance(value, str)]
        if STARTS & set(getattr(item, "fixturenames", ())) or any(map(is_large, names)):
            item.add_marker("medium")


@functools.cache
def is_large(text: str) -> bool:
    """Whether `text` begins with the name of a registered network that is large."""
    name = max(filter(text.startswith, (*list_models(), *list_backbones())), key=len, default="")
    if not name:
        return False
    with torch.device("meta"):
        model = build_model(name, 2) if name in list_models() else build_backbone(name)
    return sum(p.numel() for p in model.parameters()) > LARGE


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
    """Runs a script to its end; fails with its output where the exit status is not `status`.

    `timeout` ends what hangs. It is so long that a busy machine does not reach it.
    """

    def run_script(
        script: str, *arguments: object, status: int = 0, timeout: float = 600, **more
    ) -> subprocess.CompletedProcess:
        process = start(script, *arguments, **more)
        try:
            out, err = process.communicate(timeout=timeout)
        finally:
            process.kill()
        assert process.returncode == status, f"exit {process.returncode}\n{out}\n{err}"
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run_script


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> Iterator[Callable[..., subprocess.CompletedProcess]]:
    """As `run`, but in this process, which spares the start of another; from `cwd` (the root)."""
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def call_script(
        script: str, *arguments: object, status: int = 0, cwd: Path = ROOT
    ) -> subprocess.CompletedProcess:
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        out, err = capfd.readouterr()
        assert end.value.code == status, f"exit {end.value.code}\n{out}\n{err}"
        return subprocess.CompletedProcess(sys.argv, status, out, err)

    yield call_script
    for number, handler in signals.items():
        signal.signal(number, handler)


@pytest.fixture
def refuses(call: Callable[..., subprocess.CompletedProcess]) -> Callable[..., str]:
    """Asserts that a script ends with status 2 and one sentence, which holds all of `words`.

    That it refuses before any work is for the caller to assert, by what is not there.
    """

    def check(words: list[str], script: str, *arguments: object) -> str:
        lines = call(script, *arguments, status=2).stderr.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), lines
        assert all(word in lines[0] for word in words), lines[0]
        return lines[0]

    return check
