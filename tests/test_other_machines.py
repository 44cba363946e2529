"""The plain commands where the system lacks what Linux has: imitations of macOS and Windows.

A sitecustomize takes away what they do not have before any of our code is imported, in every
process of the command. Python 3.14's way of starting processes is imitated so, too.
"""

import json
import os

import cv2
import pytest

from datasets import get_meta
from datasets.synthetic import draw_scene

STEM = "rtlinearformer_slim_synthetic"
pytestmark = pytest.mark.slow
LACKING = """
import builtins, multiprocessing, os, pathlib, signal

ours = os.environ["RTSEG_ROOT"] + os.sep
for module, names in {
    os: "fork forkpty setpgid getpgid killpg setsid sched_getaffinity memfd_create "
        "getloadavg mkfifo",
    signal: "SIGHUP SIGUSR1 SIGUSR2 SIGALRM pthread_sigmask sigwaitinfo alarm setitimer",
}.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)

plain_import = builtins.__import__

def importing(name, globals=None, *arguments, **more):
    caller = (globals or {}).get("__file__") or ""
    if name in ("fcntl", "resource", "pwd", "grp") and caller.startswith(ours):
        raise ImportError(name)
    return plain_import(name, globals, *arguments, **more)

builtins.__import__ = importing
plain_read = pathlib.Path.read_text

def reading(path, *arguments, **more):
    if str(path).startswith(("/proc", "/sys")):
        raise FileNotFoundError(2, "No such file or directory", str(path))
    return plain_read(path, *arguments, **more)

pathlib.Path.read_text = reading
plain_status = os.statvfs

def status_of(path):  # which shutil asks for
    if str(path) == "/dev/shm":
        raise FileNotFoundError(2, "No such file or directory", str(path))
    return plain_status(path)

os.statvfs = status_of
multiprocessing.set_start_method("spawn")
"""
FORKSERVER = """
import multiprocessing
multiprocessing.set_start_method("forkserver")
multiprocessing.set_forkserver_preload(["torch"])
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """DATASET.ROOT with six drawn scenes as CamVid files with index labels."""
    folder = tmp_path_factory.mktemp("data")
    for part in ("camvid/images", "camvid/labels", "list"):
        (folder / part).mkdir(parents=True)
    lines = []
    for index in range(6):
        image, label = draw_scene(index, height=64, width=96)
        cv2.imwrite(f"{folder}/camvid/images/{index}.png", image)
        label = get_meta("camvid").decode(label, "index")
        cv2.imwrite(f"{folder}/camvid/labels/{index}.png", label)
        lines.append(f"images/{index}.png\tlabels/{index}.png\n")
    (folder / "list/train.lst").write_text("".join(lines))
    (folder / "list/val.lst").write_text("".join(lines[:2]))
    return folder


@pytest.fixture
def command(run, root, data, tiny, tmp_path):
    """Runs a tool on `data`, in processes that begin with the Python code `machine`."""

    def run_tool(tool, machine, *more, status=0):
        (tmp_path / "machine").mkdir(exist_ok=True)
        (tmp_path / "machine/sitecustomize.py").write_text(machine)
        paths = [str(tmp_path / "machine"), os.environ.get("PYTHONPATH", "")]
        environment = {"RTSEG_ROOT": str(root), "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        sets = "DATASET.TRAIN_SET list/train.lst DATASET.TEST_SET list/val.lst".split()
        sets += ["DATASET.DATASET", "camvid", "DATASET.ROOT", data, "DATASET.LABELS", "index"]
        sets += ["OUTPUT_DIR", tmp_path, "TRAIN.END_EPOCH", 1, "TRAIN.BATCH_SIZE_PER_GPU", 2]
        return run(f"tools/{tool}.py", *tiny, *sets, *more, status=status, env=environment)

    return run_tool


def scores(tmp_path):
    text = (tmp_path / "camvid" / STEM / "metrics.jsonl").read_text()
    return [json.loads(line)["miou"] for line in text.splitlines()]


def test_what_is_taken_away_is_away(command, tmp_path):
    """The imitation itself: our modules see neither fcntl nor resource, nor a way to fork."""
    probe = """
import atexit, sys
@atexit.register
def probe():
    import datasets.cache, datasets.machine, utils.benchmark, os
    gone = [datasets.cache.fcntl, datasets.machine.resource, utils.benchmark.resource]
    method = datasets.machine.start_context().get_start_method()
    print(gone, hasattr(os, "fork"), method, datasets.machine.free_memory(), file=sys.stderr)
"""
    done = command("check_data", LACKING + probe, "--workers", 0)
    assert "[None, None, None] False spawn inf" in done.stderr


def test_training_evaluation_and_checking_without_what_linux_has(command, tmp_path):
    checked = command("check_data", LACKING, "--workers", 1)
    assert "8 entries checked, no problem" in checked.stdout
    cache = ["DATASET.CACHE", "disk", "DATASET.CACHE_DIR", tmp_path / "cache"]
    command("train", LACKING, "WORKERS", 1, *cache)
    (score,) = scores(tmp_path)
    done = command("eval", LACKING, "WORKERS", 1)
    assert f"mIoU {100 * score:.2f}" in done.stdout
    assert len(list((tmp_path / "cache").glob("*.scene"))) == 6


def test_the_cache_in_memory_without_what_linux_has(command, tmp_path):
    cache = ["DATASET.CACHE", "ram"]
    refused = command("train", LACKING, "WORKERS", 1, *cache, status=2)
    assert refused.stderr.startswith("error: DATASET.CACHE ram cannot be shared with loader")
    assert refused.stderr.count("\n") == 1 and not (tmp_path / "camvid").exists()
    command("train", LACKING, "WORKERS", 0, *cache)
    assert len(scores(tmp_path)) == 1


@pytest.mark.parametrize("where", ["cpu", "device"])
def test_training_with_processes_started_by_forkserver(command, tmp_path, where):
    command("train", FORKSERVER, "OUTPUT_DIR", tmp_path / "plain", "WORKERS", 0)
    more = ["WORKERS", 2, "DATASET.CACHE", "ram", "TRAIN.AUGMENT_ON", where]
    command("train", FORKSERVER, *more, "DATASET.CACHE_GB", 0.0001 if where == "device" else 1.0)
    if where == "cpu":
        assert scores(tmp_path) == scores(tmp_path / "plain")
    assert len(scores(tmp_path)) == 1
    assert "8 entries checked" in command("check_data", FORKSERVER, "--workers", 2).stdout
