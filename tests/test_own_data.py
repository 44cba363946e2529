"""The page about one's own data: its script, its files and its commands, run in a fresh folder."""

import json
import os
import re
import shlex
import subprocess
import sys

import pytest


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


@pytest.fixture(scope="module")
def folder(root, tmp_path_factory):
    """A folder with what the page makes, beside the repository's scripts."""
    folder = tmp_path_factory.mktemp("own")
    page = (root / "docs/your_own_data.md").read_text()
    for name in ("tools", "configs"):
        (folder / name).symlink_to(root / name)
    (script,) = blocks(page, "python")
    (folder / "make_examples.py").write_text(script)
    subprocess.run([sys.executable, "make_examples.py"], cwd=folder, check=True, timeout=600)
    files = blocks(page, "yaml")
    assert len(files) == 2
    for text in files:
        (folder / text.splitlines()[0].removeprefix("# ")).write_text(text)
    return folder


@pytest.fixture(scope="module")
def outputs(root, folder):
    """The output of every command of the page, in order."""
    page = (root / "docs/your_own_data.md").read_text()
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    assert len(lines) == 6
    done = {}
    for line in lines:
        command = [sys.executable, *shlex.split(line)[1:]]
        ran = subprocess.run(
            command,
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert ran.returncode == 0, f"{line}\n{ran.stdout}\n{ran.stderr}"
        done[line] = ran.stdout
    return done


@pytest.mark.slow
def test_the_commands_of_the_page_check_train_and_score(folder, outputs):
    checks = [text for line, text in outputs.items() if "check_data" in line]
    assert all("100 entries checked, no problem" in text for text in checks)
    for name, classes in (("blobs", {"background", "blob"}), ("shapes", {"disc", "square"})):
        output = folder / f"output/{name}"
        assert (output / "check_rtlinearformer_slim_own/sheet_train.png").is_file()
        record = json.loads((output / "rtlinearformer_slim_own/eval_val.json").read_text())
        assert record["dataset"] == name and classes <= set(record["scores"]["classes"])
        assert record["scores"]["mIoU"] > 0.9  # as the page says


def test_a_mask_that_is_not_declared_is_told_what_to_declare(folder, run, tmp_path):
    (tmp_path / "blobs.yaml").write_text("class_names: [background, blob]\n")
    cfg = "configs/own/rtlinearformer_slim_own.yaml"
    own = ("DATASET.DATASET", tmp_path / "blobs.yaml", "DATASET.ROOT", folder / "data/blobs")
    arguments = ("--cfg", cfg, *own, "OUTPUT_DIR", tmp_path)
    words = "declared as encoding: {0: background, 255: blob}"
    refused = run("tools/train.py", *arguments, status=2).stderr
    assert words in refused and "label value 255 in masks/train_000.png" in refused
    assert words in run("tools/check_data.py", *arguments, status=1).stdout
