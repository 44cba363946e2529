"""How every entry point ends."""

import subprocess
import sys

import pytest

MAIN = """
import sys
from _init_paths import run_main
def main():
    print(sys.argv[1] * int(sys.argv[2]))
    {rest}
run_main(main)
"""


def ended(root, folder, rest, times, reader):
    """Exit status and stderr of an entry point whose stdout nobody reads, or this test does."""
    (folder / "entry.py").write_text(MAIN.format(rest=rest))
    process = subprocess.Popen(
        [sys.executable, folder / "entry.py", "word ", str(times)],
        env={"PYTHONPATH": str(root / "tools")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if not reader:
        process.stdout.close()
        process.stdout = None
    error = process.communicate(timeout=60)[1]
    return process.returncode, error


@pytest.mark.parametrize(
    ("rest", "status", "error"),
    [
        ("return None", 0, ""),
        ("return 3", 3, ""),
        ("from utils.errors import InputError as E; raise E('a word')", 2, "error: a word\n"),
        ("from datasets import DataError as E; raise E('a word')", 2, "error: a word\n"),
        ("raise OSError(28, 'No space left')", 2, "error: [Errno 28] No space left\n"),
        ("raise MemoryError", 2, None),
        ("raise KeyboardInterrupt", 130, "interrupted\n"),
    ],
)
def test_a_program_ends_with_its_status(root, tmp_path, rest, status, error):
    found = ended(root, tmp_path, rest, 1, reader=True)
    assert found[0] == status and (found[1] == error or error is None)
    assert "Traceback" not in found[1]


@pytest.mark.medium
@pytest.mark.parametrize("rest", ["int('x')", "raise ValueError('a library')", "{}['x']"])
def test_a_fault_of_the_program_keeps_its_traceback(root, tmp_path, rest):
    status, error = ended(root, tmp_path, rest, 1, reader=True)
    assert status == 1 and error.startswith("Traceback") and rest in error


def test_all_tracebacks_are_there_for_those_who_ask(root, tmp_path):
    rest = "import os; os.environ['RTSEG_DEBUG'] = '1'; raise OSError('gone')"
    assert "Traceback" in ended(root, tmp_path, rest, 1, reader=True)[1]


@pytest.mark.medium
@pytest.mark.parametrize("times", [1, 100_000], ids=["at the end", "on the way"])
@pytest.mark.parametrize("rest", ["return 3", "raise SystemExit(0)"])  # argparse's --help exits
def test_a_reader_that_has_gone_ends_it_quietly(root, tmp_path, rest, times):
    assert ended(root, tmp_path, rest, times, reader=False) == (141, "")
