"""Several processes on the CPU compute what one computes with the whole batch."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from models import build_model
from utils.devices import choose_device
from utils.distributed import (
    World,
    check_gpus,
    init_world,
    launch,
    set_tf32,
    slurm_world,
    sum_over_processes,
    synchronise_norms,
)
from utils.step import TrainForm

ROOT = Path(__file__).resolve().parents[2]


def free_port():
    with closing(socket.socket()) as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def step(rank, size):
    """Loss, gradients and buffers of one float64 step on this process's share of 4 images."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = build_model("pidnet_s", 3, base_channels=4, context_channels=4, head_channels=4)
    model = model.double().train()
    images = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    labels = torch.randint(0, 3, (4, 8, 8))
    form = TrainForm(model)
    if size > 1:
        synchronise_norms(model, World(rank, size, torch.device("cpu")))
        form = torch.nn.parallel.DistributedDataParallel(form)
    share = slice(rank * 4 // size, (rank + 1) * 4 // size)
    outputs = form(images[share])
    loss = F.cross_entropy(outputs.logits, labels[share]) + outputs.boundary.square().mean()
    loss = loss + F.cross_entropy(outputs.aux[0], labels[share])
    loss.backward()
    world = World(rank, size, torch.device("cpu"))
    loss = sum_over_processes(loss.detach().clone(), world) / size
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return loss, gradients, dict(model.named_buffers())


def work(rank, port, path):
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    result = step(rank, 2)
    if rank == 0:
        torch.save(result, path)
    dist.destroy_process_group()


ENDING = """
import sys
import torch
from utils.distributed import end_world, gather_objects, init_world, wrap_forward

sys.path.insert(0, "tools")
from _init_paths import run_main

def main():
    world = init_world(())
    wrapped = wrap_forward(torch.nn.Linear(4, 4), world)
    wrapped(torch.ones(2, 4)).sum().backward()
    sys.setswitchinterval(1000)  # no thread of the group gets Python's lock unless it is given up
    for _ in range(20):
        gather_objects({"cpu": torch.get_rng_state()}, world)
    {END}

run_main(main)
"""


@pytest.mark.medium
@pytest.mark.parametrize("end", ["end_world()", "pass", "raise ValueError('a fault')"])
def test_processes_end_while_their_group_still_frees_tensors(root, end):
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for _ in range(3):
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", ENDING.replace("{END}", end)],
                env=os.environ
                | address
                | {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank},
                cwd=root,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in "01"
        ]
        told = [process.communicate(timeout=120)[1] for process in processes]
        expected = 1 if "fault" in end else 0
        assert [process.returncode for process in processes] == [expected] * 2, told


@pytest.mark.medium
def test_two_processes_have_the_loss_gradients_and_statistics_of_one(tmp_path):
    path = tmp_path / "result.pt"
    torch.multiprocessing.start_processes(work, (free_port(), path), nprocs=2, start_method="spawn")
    loss, gradients, buffers = step(0, 1)
    loss2, gradients2, buffers2 = torch.load(path, weights_only=True)
    torch.testing.assert_close(loss2, loss, rtol=1e-12, atol=0)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradients2[name], gradient, rtol=1e-7, atol=1e-12, msg=name)
    for name, buffer in buffers.items():
        torch.testing.assert_close(buffers2[name], buffer, rtol=1e-9, atol=1e-12, msg=name)


SCRIPT = """
import os, signal, sys, time
rank, mode, folder = int(os.environ["RANK"]), sys.argv[1], sys.argv[2]
if mode == "killed" and rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
if mode in ("wait", "slow"):
    def stop(number, _):
        if mode == "slow" and rank == 0:
            time.sleep(1.5)
        open(f"{folder}/stopped{rank}", "w").close()
        sys.exit(128 + number)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
open(f"{folder}/up{rank}of{os.environ['WORLD_SIZE']}", "w").close()
if mode == "fail" and rank == 1:
    while not os.path.exists(f"{folder}/up0of2"):  # or it may be ended before it begins
        time.sleep(0.05)
    sys.exit(2)
time.sleep(600 if mode != "end" else 0)
"""
LAUNCH = "import sys; sys.path.insert(0, sys.argv.pop(1)); import utils.distributed as d; "
LAUNCH += "d.GRACE_SECONDS = 0.2; sys.argv.pop(0); sys.exit(d.launch(2))"


def launcher(tmp_path, mode, **more):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-c", LAUNCH, ROOT, script, mode, tmp_path]
    return subprocess.Popen(list(map(str, command)), **more)


@pytest.mark.medium
@pytest.mark.parametrize(("mode", "status"), [("end", 0), ("fail", 2)])
def test_launched_processes_end_together(tmp_path, mode, status):
    assert launcher(tmp_path, mode).wait(timeout=600) == status
    assert {p.name for p in tmp_path.glob("up*")} == {"up0of2", "up1of2"}


@pytest.mark.medium
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_every_launched_process(tmp_path, number):
    process = launcher(tmp_path, "wait")
    end = time.monotonic() + 300
    while len(list(tmp_path.glob("up*"))) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(timeout=600) == 128 + number
    assert {p.name for p in tmp_path.glob("stopped*")} == {"stopped0", "stopped1"}


@pytest.mark.medium
def test_nobody_is_ended_while_another_still_saves(tmp_path):
    """Process 1 stops at once; process 0 takes longer than the others of a failure are given."""
    process = launcher(tmp_path, "slow")
    end = time.monotonic() + 300
    while len(list(tmp_path.glob("up*"))) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=600) == 143
    assert (tmp_path / "stopped0").exists()


@pytest.mark.medium
def test_a_process_that_is_killed_is_told(tmp_path):
    process = launcher(tmp_path, "killed", stderr=subprocess.PIPE, text=True)
    assert "process 1 of 2 was ended by signal 9" in process.communicate(timeout=300)[1]
    assert process.returncode == 9


STEP = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "6", "SLURM_JOB_ID": "123456"}


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (
            {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NODEID": "1",
             "SLURM_STEP_NODELIST": "gpu[03-04]", "SLURM_STEP_TASKS_PER_NODE": "4,2"},
            ("5", "1", "6", "2", "gpu03", "23456"),
        ),
        (
            {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "2",
             "SLURM_STEP_NODELIST": "a1,b[2-3]", "SLURM_STEP_TASKS_PER_NODE": "2(x3)",
             "MASTER_PORT": "1234"},
            ("0", "0", "6", "2", "a1", "1234"),
        ),
        (
            {"SLURM_PROCID": "3", "SLURM_LOCALID": "3", "SLURM_NODEID": "0",
             "SLURM_STEP_NODELIST": "n[7,9-12]-ib", "SLURM_STEP_TASKS_PER_NODE": "6"},
            ("3", "3", "6", "6", "n7-ib", "23456"),
        ),
    ],
)  # fmt: skip
def test_slurm_is_understood(more, expected):
    told = slurm_world(STEP | more)
    names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT".split()
    assert tuple(told[name] for name in names) == expected


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4"},  # a batch script, not yet a step of it
        STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
    ],
    ids=["none", "script", "one task"],
)
def test_slurm_without_company_changes_nothing(environment):
    assert slurm_world(environment) == {}


def test_gpus_must_fit_the_processes(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"GPUS \(1,\) names 1 devices for 2 processes"):
        init_world((1,))


def test_gpus_that_are_not_there_are_named():
    check_gpus(())
    check_gpus((0,))  # published commands name GPU 0; without any GPU it stands for the CPU
    count = torch.cuda.device_count()
    for gpus in ((7 + count,), (0, 7 + count)):
        with pytest.raises(ValueError, match=f"GPUS .*no CUDA device {7 + count if count else ''}"):
            check_gpus(gpus)


@pytest.mark.parametrize(
    ("cuda", "mps", "processes", "expected"),
    [
        (True, False, 1, "cuda:1"),
        (True, True, 1, "cuda:1"),
        (True, False, 2, "cuda:1"),
        (False, True, 1, "mps"),
        (False, True, 2, "cpu"),  # a Mac has one GPU
        (False, False, 1, "cpu"),
    ],
)
def test_the_device_is_cuda_then_mps_then_the_cpu(cuda, mps, processes, expected):
    device = choose_device(1, cuda=cuda, mps=mps, processes=processes)
    assert device == torch.device(expected)


def test_a_macs_gpu_is_taken_unless_gpus_are_hidden(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    for gpus in ((), (0,)):  # GPUS 0 of published commands is whatever there is
        check_gpus(gpus)
        assert init_world(gpus).device == torch.device("mps")
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert init_world(()).device == torch.device("cpu")


def test_tf32_is_one_setting_for_convolutions_and_products():
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = cuda.allow_tf32, cudnn.allow_tf32
    try:
        for allowed in (True, False):
            set_tf32(allowed)
            assert (cuda.allow_tf32, cudnn.allow_tf32) == (allowed, allowed)
    finally:
        cuda.allow_tf32, cudnn.allow_tf32 = before


def test_windows_does_not_send_what_its_console_has_sent(monkeypatch):
    """Windows cannot send SIGINT to a process; its console reaches all of them by itself."""
    sent, handlers = [], {}

    class Child:
        returncode = 0

        def __init__(self, *_arguments, **_more):
            self.polls = 0

        def poll(self):
            self.polls += 1
            if self.polls == 2:
                handlers[signal.SIGINT](signal.SIGINT, None)
                handlers[signal.SIGTERM](signal.SIGTERM, None)
            return None if self.polls < 3 else 0

        def send_signal(self, number):
            sent.append(number)

    monkeypatch.setattr(subprocess, "Popen", Child)
    monkeypatch.setattr(
        signal, "signal", lambda number, handler: handlers.setdefault(number, handler)
    )
    monkeypatch.setattr("utils.distributed.WINDOWS", True)
    assert launch(1) == 0
    assert sent == [signal.SIGTERM]


def test_a_single_process_needs_no_group(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    world = init_world(())
    assert (world.rank, world.size, world.is_main) == (0, 1, True)
    assert not dist.is_initialized()
    values = torch.tensor([1.0, 2.0])
    assert sum_over_processes(values, world).tolist() == [1.0, 2.0]
