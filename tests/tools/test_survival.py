"""What may happen to a run: kills, schedulers' signals, damage, company, and lost processes."""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import survival
import torch
from processes import wait_for

RUN = survival.RUN


def slow(value):
    """A case for `make test-all` only."""
    return pytest.param(value, marks=pytest.mark.slow)


def load(folder, name="last.pt"):
    return torch.load(folder / RUN / name, weights_only=True)


def children(pid):
    """Process `pid` and all below it, the lowest first."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [p for child in found for p in children(int(child))] + [pid]


@pytest.mark.slow
@pytest.mark.alone
def test_thirty_kills_at_random_and_five_while_writing(tmp_path):
    survival.survive(tmp_path, kills=30, inside=5, seed=random.randrange(1 << 30))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, run, tiny):
    folder = tmp_path_factory.mktemp("undisturbed")
    run("tools/train.py", *tiny, "WORKERS", 2, "TRAIN.END_EPOCH", 4, "OUTPUT_DIR", folder)
    return folder


@pytest.mark.alone
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
@pytest.mark.parametrize("name", ["SIGTERM", *(slow(n) for n in ("SIGHUP", "SIGUSR1"))])
def test_a_signal_to_every_process_saves_and_ends(name, tmp_path, start, run, tiny, undisturbed):
    """As schedulers do it: the launcher, the trainer and its loader processes all get it."""
    number = getattr(signal, name)
    words = [*tiny, "WORKERS", 2, "TRAIN.END_EPOCH", 4, "OUTPUT_DIR", tmp_path]
    process = start("tools/train.py", *words)
    wait_for(lambda: (tmp_path / RUN / "last.pt").exists(), process)
    for pid in children(process.pid):
        os.kill(pid, number)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 128 + number, out + err
    assert "stopping after this step and saving" in err and "Traceback" not in err
    assert "TRAIN.RESUME True" in out
    run("tools/train.py", *words, "TRAIN.RESUME", "True")
    assert not survival.differences(load(tmp_path), load(undisturbed))


@pytest.mark.alone
def test_a_timed_run_that_is_killed_ends_on_its_schedule(tmp_path, start, run, tiny):
    limit = 6.0  # seconds of training
    words = [*tiny, "TRAIN.MINUTES", limit / 60, "TRAIN.WARMUP_STEPS", 0, "TRAIN.WARMUP", 0.1]
    words += ["TRAIN.CALM", 0.3, "TRAIN.CUTMIX", 0.5, "TRAIN.EVAL_EVERY", 1000]
    words += ["TRAIN.SAVE_EVERY", 1, "TRAIN.RESUME", "True", "OUTPUT_DIR", tmp_path]
    process = start("tools/train.py", *words)
    last = tmp_path / RUN / "last.pt"
    wait_for(lambda: last.exists() and load(tmp_path)["progress"]["trained"] > limit / 3, process)
    process.kill()
    process.communicate()
    killed = load(tmp_path)["progress"]
    assert limit / 3 < killed["trained"] < limit and killed["step"] > 0
    out = run("tools/train.py", *words).stdout
    assert (
        f"step {killed['step_in_epoch']}" in out and "0.1 minutes of training, epochs of 3" in out
    )
    done = load(tmp_path)["progress"]
    assert done["step"] > killed["step"] and done["step_in_epoch"] == 0
    lines = (tmp_path / RUN / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    spent = [record["trained_seconds"] for record in records]
    assert spent == sorted(spent) and [r["epoch"] for r in records] == [*range(1, len(spent) + 1)]
    assert spent[-1] == done["trained"] >= limit > spent[-2]
    assert records[-1]["lr"] == 0 and records[0]["lr"] > 0 and records[-1]["miou"] is not None
    run("tools/train.py", *words)  # nothing is left to do
    assert load(tmp_path)["progress"] == done


def damage(path, how):
    data = bytearray(path.read_bytes())
    if how == "cut":
        del data[len(data) // 2 :]
    elif how == "empty":
        data.clear()
    else:
        data[len(data) // 2] ^= 0x10  # one bit within the tensors
    path.write_bytes(data)


@pytest.mark.parametrize("how", [slow("cut"), slow("empty"), "a bit"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(how, tmp_path, call, tiny, undisturbed):
    shutil.copytree(undisturbed / RUN, tmp_path / RUN)
    damage(tmp_path / RUN / "last.pt", how)
    words = [*tiny, "TRAIN.END_EPOCH", 4, "OUTPUT_DIR", tmp_path, "TRAIN.RESUME", "True"]
    out = call("tools/train.py", *words).stdout
    assert re.search(r"warning: .*last\.pt .*damaged.*; going on from .*previous\.pt", out)
    assert not survival.differences(load(tmp_path), load(undisturbed))
    assert load(tmp_path, "previous.pt")["progress"]["step"] and not leftovers(tmp_path)
    assert (tmp_path / RUN / "last.pt.damaged").exists()


def leftovers(folder):
    return list((folder / RUN).glob(".*.pt.*"))


def test_what_killed_processes_left_is_cleared(tmp_path, call, tiny, undisturbed):
    shutil.copytree(undisturbed / RUN, tmp_path / RUN)
    folder = tmp_path / RUN
    for name in (".last.pt.0a1b2c3d", ".best.pt.00000000", ".previous.pt.ffffffff"):
        (folder / name).write_bytes(b"half")
    (folder / "previous.pt").unlink()
    os.link(folder / "last.pt", folder / "previous.pt")  # killed between two renames
    words = [*tiny, "TRAIN.END_EPOCH", 5, "OUTPUT_DIR", tmp_path, "TRAIN.RESUME", "True"]
    call("tools/train.py", *words)
    assert not leftovers(tmp_path)
    assert load(tmp_path)["progress"]["epoch"] == 5
    assert load(tmp_path, "previous.pt")["progress"]["step"] == 15


def test_two_runs_do_not_share_a_folder(tmp_path, start, run, tiny):
    words = [*tiny, "TRAIN.END_EPOCH", 1000, "OUTPUT_DIR", tmp_path]
    process = start("tools/train.py", *words)
    wait_for(lambda: (tmp_path / RUN / "last.pt").exists(), process)
    for resume in ("True", "False"):
        done = run("tools/train.py", *words, "TRAIN.RESUME", resume, status=2)
        assert re.fullmatch(
            rf"error: another run writes into .*{RUN} \(process {process.pid} on .*\).*\n",
            done.stderr,
        )
    assert process.poll() is None and not (tmp_path / f"{RUN}.1").exists()
    process.kill()
    process.communicate()
    run("tools/train.py", *words, "TRAIN.RESUME", "True", "TRAIN.END_EPOCH", 1)


@pytest.mark.parametrize("view", [["TEST.SLIDE", "(64,48)"], ["TEST.SHORT_SIDE", 48]], ids=str)
def test_training_scores_as_an_evaluation_does(view, tmp_path, call, tiny):
    words = [*tiny, *view, "OUTPUT_DIR", tmp_path]
    call("tools/train.py", *words, "TRAIN.END_EPOCH", 1)
    lines = (tmp_path / RUN / "metrics.jsonl").read_text().splitlines()
    told = json.loads(lines[-1])
    call("tools/eval.py", *words)
    (record,) = (tmp_path / RUN).glob("eval_*.json")
    assert json.loads(record.read_text())["scores"]["mIoU"] == told["miou"]
    assert told["miou"] == told["averaged_miou"] and "trained_miou" in told


def test_several_views_are_for_those_who_ask(tmp_path, call, tiny):
    words = [*tiny, "TEST.FLIP_TEST", "True", "TRAIN.END_EPOCH", 1]
    scores = []
    for asked in ("False", "True"):
        call("tools/train.py", *words, "TRAIN.EVAL_AS_TEST", asked, "OUTPUT_DIR", tmp_path / asked)
        lines = (tmp_path / asked / RUN / "metrics.jsonl").read_text().splitlines()
        scores.append(json.loads(lines[-1])["miou"])
    assert scores[0] != scores[1]


def test_an_error_while_scoring_loses_no_trained_epoch(tmp_path, run, tiny):
    broken = (
        "import runpy, sys; sys.path[:0] = ['.', 'tools']; import utils.engine as e\n"
        "def fail(*_, **__): raise OSError('an image of the test list is gone')\n"
        "e.evaluate = fail; sys.argv.pop(0)\n"
        "runpy.run_path('tools/train.py', run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", broken, "tools/train.py", *map(str, tiny), "OUTPUT_DIR", tmp_path],
        capture_output=True, text=True, cwd=survival.ROOT, timeout=300,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (2, "error: an image of the test list is gone\n")
    progress = load(tmp_path)["progress"]
    assert (progress["epoch"], progress["step_in_epoch"]) == (0, 3)
    out = run("tools/train.py", *tiny, "OUTPUT_DIR", tmp_path, "TRAIN.RESUME", "True").stdout
    assert "resumed after epoch 0, step 3" in out and "epoch 1/2" in out


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def host(rank, port, words):
    """One of two hosts, each with one process."""
    torchrun = ["-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={rank}"]
    torchrun += ["--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}"]
    return subprocess.Popen(
        [sys.executable, *torchrun, "tools/train.py", *map(str, words)],
        cwd=survival.ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
@pytest.mark.parametrize("lost", [1, 0])
def test_when_a_host_is_lost_the_other_ends_and_both_go_on(lost, tmp_path, tiny):
    words = [*tiny, "TRAIN.BATCH_SIZE_PER_GPU", 2, "OUTPUT_DIR", tmp_path]
    port = free_port()
    hosts = [host(rank, port, [*words, "TRAIN.END_EPOCH", 1000]) for rank in (0, 1)]
    wait_for((tmp_path / RUN / "previous.pt").exists, hosts[0])
    for pid in children(hosts[lost].pid):
        os.kill(pid, signal.SIGKILL)
    out, err = hosts[1 - lost].communicate(timeout=30)
    hosts[lost].communicate()
    assert hosts[1 - lost].returncode != 0
    assert "error: another process of this run has ended or cannot be reached" in err, err
    done = load(tmp_path)["progress"]["epoch"]
    port, resume = free_port(), ["TRAIN.RESUME", "True", "TRAIN.END_EPOCH", done + 3]
    hosts = [host(rank, port, [*words, *resume]) for rank in (0, 1)]
    for process in hosts:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, out + err
    assert load(tmp_path)["progress"]["epoch"] == done + 3
