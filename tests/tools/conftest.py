"""Entry points of tools/ called in this process, which spares the start of another."""

import importlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from _init_paths import ROOT, run_main


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Iterator[Callable[..., subprocess.CompletedProcess]]:
    """Runs a script to its end, from `cwd` (the repository's root), as the fixture `run` does."""
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def call_script(
        script: str, *arguments: object, status: int = 0, cwd: Path = ROOT
    ) -> subprocess.CompletedProcess:
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            run_main(importlib.import_module(Path(script).stem).main)
        out, err = capsys.readouterr()
        assert end.value.code == status, f"exit {end.value.code}\n{out}\n{err}"
        return subprocess.CompletedProcess(sys.argv, status, out, err)

    yield call_script
    for number, handler in signals.items():
        signal.signal(number, handler)


@pytest.fixture
def refuses(call: Callable[..., subprocess.CompletedProcess]) -> Callable[..., str]:
    """Asserts that a script ends with status 2 and one sentence that holds all of `words`."""

    def check(words: list[str], script: str, *arguments: object) -> str:
        lines = call(script, *arguments, status=2).stderr.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), lines
        assert all(word in lines[0] for word in words), lines[0]
        return lines[0]

    return check
