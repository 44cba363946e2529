"""Every tool that takes --cfg takes it several times, and keeps a run under the last one's name."""

import importlib
import json
import shlex
import sys

import pytest

TOOLS = ("train", "eval", "check_data", "pages.benchmark_data")


@pytest.fixture
def call(monkeypatch):
    """Runs a tool's main in this process."""

    def call_main(tool: str, *words: object) -> int:
        monkeypatch.setattr(sys, "argv", [f"tools/{tool}.py", *map(str, words)])
        return importlib.import_module(tool).main()

    return call_main


@pytest.mark.parametrize("tool", TOOLS)
def test_all_files_are_read_and_the_wrong_one_named(tool, call, tiny, tmp_path):
    files = tiny[:2]
    broken = tmp_path / "broken.yaml"
    broken.write_text("TRAIN: {LRR: 1}")
    with pytest.raises(ValueError, match=r"broken\.yaml: unknown key TRAIN\.LRR"):
        call(tool, *files, "--cfg", broken)
    with pytest.raises(FileNotFoundError, match=r"gone\.yaml does not exist"):
        call(tool, *files, "--cfg", tmp_path / "gone.yaml", "SEED", 1)
    with pytest.raises(ValueError, match="is given twice"):
        call(tool, *files, *files)
    with pytest.raises(ValueError, match=r"--TRAIN\.LR: .* write TRAIN\.LR 0\.1"):
        call(tool, *files, "--TRAIN.LR", "0.1")


def test_a_run_of_two_files(run, tiny, tmp_path):
    overlay = tmp_path / "short.yaml"
    overlay.write_text("TRAIN: {END_EPOCH: 1}\nTEST: {OVERLAYS: 1}")
    pairs = [word for word in tiny[2:] if word != "TRAIN.END_EPOCH"]
    del pairs[tiny[2:].index("TRAIN.END_EPOCH")]  # its value
    command = [*tiny[:2], "--cfg", str(overlay), *pairs, "OUTPUT_DIR", str(tmp_path)]
    done = run("tools/train.py", *command)
    folder = tmp_path / "synthetic/short"
    assert "epoch 1/1" in done.stdout and (folder / "best.pt").is_file()
    assert shlex.join(command) in done.stdout.replace("\n", " ")  # how it is scored
    run("tools/eval.py", *command)
    (record,) = folder.glob("eval_*.json")
    assert json.loads(record.read_text())["config"] == shlex.join([tiny[1], str(overlay)])
