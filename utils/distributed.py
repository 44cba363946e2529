"""Processes and devices: one process per GPU, gloo on the CPU, none of it for a single process."""

import atexit
import gc
import inspect
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn  # not later: its functions would take the process group as a default
from torch import Tensor, nn

from .devices import choose_device, has_mps
from .errors import InputError
from .stopping import SIGNALS, stopped

WINDOWS = sys.platform == "win32"
IGNORED = signal.SIG_IGN
GRACE_SECONDS = 5  # for the other processes to end by themselves when one has failed


@dataclass(frozen=True)
class World:
    """This process among all processes of the run."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """True in the one process that writes files and prints."""
        return self.rank == 0

    def send(self, values: Tensor) -> Tensor:
        """`values` on the device; from pinned memory to CUDA without waiting."""
        return values.to(self.device, non_blocking=self.device.type == "cuda")


def check_gpus(gpus: Sequence[int]) -> None:
    """Raise ValueError if a device number of GPUS does not exist on this machine.

    GPUS 0, which published commands name, also stands for the CPU where there is no GPU at all.
    """
    count = torch.cuda.device_count()
    if count == 0 and tuple(gpus) == (0,):
        return
    missing = [g for g in gpus if g >= count]
    if missing:
        there = f"it has {', '.join(map(str, range(count)))}" if count else "it has none"
        raise InputError(
            f"GPUS {tuple(gpus)}: this machine has no CUDA device {missing[0]} ({there}); "
            "leave GPUS out for the first GPU, or the CPU where there is none"
        )


def is_launched() -> bool:
    """True inside a process that torchrun or `launch` started."""
    return "LOCAL_RANK" in os.environ


def adopt_scheduler() -> None:
    """Understand what Slurm's `srun` says of this process as torchrun's variables."""
    told = slurm_world(os.environ)
    if told and not is_launched():
        os.environ |= told


def slurm_world(environment: Mapping[str, str]) -> dict[str, str]:
    """torchrun's variables for one of several tasks of a Slurm job step; {} for anything else."""
    names = ("SLURM_STEP_ID", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS")
    step, rank, local, tasks = (environment.get(name, "") for name in names)
    if not step or not rank or int(tasks or 1) < 2:
        return {}
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST", "")
    counts = _slurm_counts(environment.get("SLURM_STEP_TASKS_PER_NODE", tasks))
    job = int(environment.get("SLURM_JOB_ID", 0))
    return {
        "RANK": rank,
        "LOCAL_RANK": local,
        "WORLD_SIZE": tasks,
        "LOCAL_WORLD_SIZE": str(counts[int(environment.get("SLURM_NODEID", 0))]),
        "MASTER_ADDR": environment.get("MASTER_ADDR") or _first_host(nodes) or "127.0.0.1",
        "MASTER_PORT": environment.get("MASTER_PORT") or str(20000 + job % 20000),
    }


def _slurm_counts(text: str) -> list[int]:
    """Tasks of every node: "4(x2),1" is 4, 4, 1."""
    counts: list[int] = []
    for part in text.split(","):
        count, _, times = part.partition("(x")
        counts += [int(count)] * int(times.rstrip(")") or 1)
    return counts


def _first_host(nodes: str) -> str:
    """First name of a host list: "gpu[03-07,9]-ib,cpu1" is "gpu03-ib"."""
    match = re.match(r"([^,\[]*)(?:\[([^\]]*)\])?([^,]*)", nodes)
    first = re.split("[-,]", match[2])[0] if match[2] else ""
    return match[1] + first + match[3]


def set_tf32(allowed: bool) -> None:
    """Whether float32 convolutions and matrix products may run as TF32 on the GPU.

    Both alike: PyTorch's own setting has TF32 convolutions beside float32 products, with which
    networks of the two kinds cannot be compared.
    """
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def world_size(gpus: Sequence[int]) -> int:
    """Processes of the whole run, before any of them is started."""
    return int(os.environ["WORLD_SIZE"]) if is_launched() else max(1, len(gpus))


def set_backends(*, seed: int, tf32: bool, benchmark: bool, deterministic: bool) -> None:
    """Seed the generators and choose the numeric behaviour of the GPU kernels."""
    torch.manual_seed(seed)
    set_tf32(tf32)
    torch.backends.cudnn.benchmark = benchmark and not deterministic
    torch.backends.cudnn.deterministic = deterministic


def launch(processes: int) -> int:
    """Run this very command once per process on this host.

    Signals that ask a run to stop go on to all of them. When one fails, the others are ended; one
    that was asked to stop, saved and ended has not failed, and the others have all the time they
    need.

    Returns:
        Exit status: of the first process that failed, else the same as all, 0 or 128 + signal.
    """
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    world = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    children = [
        subprocess.Popen(
            [sys.executable, *sys.argv],
            env={"OMP_NUM_THREADS": threads} | os.environ | world | {"RANK": r, "LOCAL_RANK": r},
            start_new_session=True,  # a terminal's Ctrl-C comes through this process alone
        )
        for r in map(str, range(processes))
    ]

    def pass_on(number: int, _frame: FrameType | None) -> None:
        if WINDOWS and number == signal.SIGINT:
            return  # a console's Ctrl-C has reached all of them, and cannot be sent
        for child in children:
            child.send_signal(number)

    def failed() -> subprocess.Popen | None:
        return next((c for c in children if c.returncode and not stopped(c.returncode)), None)

    earlier = {n: signal.signal(n, pass_on) for n in SIGNALS if signal.getsignal(n) != IGNORED}
    first: subprocess.Popen | None = None
    while None in [child.poll() for child in children]:
        first = first or failed()
        if first is not None:
            time.sleep(GRACE_SECONDS)
            for child in children:
                child.kill()
        time.sleep(0.1)
    for number, handler in earlier.items():
        signal.signal(number, handler)
    first = first or failed()
    if first is None:
        return max(child.returncode for child in children)
    if first.returncode < 0:
        print(
            f"error: process {children.index(first)} of {processes} was ended by signal "
            f"{-first.returncode}; TRAIN.RESUME True goes on from the last checkpoint",
            file=sys.stderr,
        )
    return abs(first.returncode)


def init_world(gpus: Sequence[int]) -> World:
    """The device of this process, and the process group if there are several processes."""
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if gpus and len(gpus) != processes:
        raise InputError(
            f"GPUS {tuple(gpus)} names {len(gpus)} devices for {processes} processes on this host; "
            "name one each, or leave GPUS out"
        )
    index = gpus[local_rank] if gpus else local_rank
    if "SLURM_STEP_ID" in os.environ and torch.cuda.device_count() == 1:
        index = 0  # --gpus-per-task shows every task its own GPU only
    everyone = int(os.environ.get("WORLD_SIZE", 1))
    cuda = torch.cuda.is_available()
    device = choose_device(index, cuda=cuda, mps=has_mps(), processes=everyone)
    if cuda:
        check_gpus([index])
        torch.cuda.set_device(device)
    if not is_launched():
        return World(0, 1, device)
    dist.init_process_group("nccl" if cuda and dist.is_nccl_available() else "gloo")
    atexit.register(_release, dist.group.WORLD)
    return World(dist.get_rank(), dist.get_world_size(), device)


def share_cores(workers: int, world: World) -> int:
    """Loader processes to start; on the CPU also the number of threads of this process.

    OpenMP threads wait for one another at every operation. A core that one of them shares with a
    loader process makes all of them wait for its time slice, which costs far more than the core.
    So each gets cores of its own, and the loader a quarter of them at most. OMP_NUM_THREADS, which
    torchrun sets, has the last word.
    """
    if world.device.type != "cpu" or "OMP_NUM_THREADS" in os.environ:
        return workers
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    workers = min(workers, max(1, cores // 4))
    torch.set_num_threads(max(1, cores - workers))
    return workers


def end_world() -> None:
    """Leave the process group, if there is one, when all is done."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _release(group: dist.ProcessGroup) -> None:
    """Let go of the process group at exit, when nothing else holds it.

    A group ends its threads when the last reference to it goes, and they may then wait for Python's
    lock to free a tensor. The reference that goes with this call is dropped without that lock; a
    DistributedDataParallel that goes last keeps it, and both would wait for ever.

    Args:
        group: nothing is done with it; the argument is what keeps it until here.
    """
    gc.collect()
    if dist.is_initialized() and dist.get_backend(group) == "gloo":  # NCCL waits for its peers
        dist.destroy_process_group()


def wait_for_all(world: World) -> None:
    """Return once every process has come here."""
    if world.size > 1:
        dist.barrier()


def sum_over_processes(values: Tensor, world: World) -> Tensor:
    """`values` added up over all processes, in place."""
    if world.size > 1:
        dist.all_reduce(values)
    return values


def gather_objects(item: object, world: World) -> list:
    """`item` of every process, by rank."""
    if world.size == 1:
        return [item]
    items = [None] * world.size
    dist.all_gather_object(items, item)
    return items


def share_object(item: Any, world: World) -> Any:
    """What process 0 has, in all of them."""
    if world.size == 1:
        return item
    items = [item]
    dist.broadcast_object_list(items, device=world.device)
    return items[0]


def first_says(value: float, world: World) -> float:
    """The number that process 0 has, in all of them; waits for the device."""
    told = world.send(torch.tensor(value))
    if world.size > 1:
        dist.broadcast(told, 0)
    return told.item()


def wrap_forward(forward: nn.Module, world: World) -> nn.Module:
    """`forward` with gradients averaged over all processes; unchanged for one process.

    Norm statistics are not sent around in every step: synchronised norms have equal ones, others
    are averaged before they are used (`NormStatistics.average`).
    """
    if world.size == 1:
        return forward
    wrapper = nn.parallel.DistributedDataParallel
    names = inspect.signature(wrapper).parameters
    quiet = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
    return wrapper(
        forward,
        device_ids=[world.device] if world.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        **{quiet: False},
    )


def synchronise_norms(model: nn.Module, world: World) -> nn.Module:
    """BatchNorm layers whose batch statistics span all processes; unchanged for one process."""
    if world.size == 1:
        return model
    if world.device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = _CpuSyncBatchNorm2d
    return model


class _Sum(torch.autograd.Function):
    """Sum over processes; the gradient is the sum over the processes' gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        values = values.clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradient)


class _CpuSyncBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm over all processes on the CPU, which torch's SyncBatchNorm does not support."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        dtype, x = x.dtype, x.to(torch.promote_types(x.dtype, torch.float32))
        ones = x.new_full((1,), x.numel() / x.shape[1])
        sums = _Sum.apply(torch.cat((x.sum((0, 2, 3)), ones)))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = x - mean[:, None, None]
        var = _Sum.apply(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * count / (count - 1), self.momentum)
        scale = self.weight * torch.rsqrt(var + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(dtype)
