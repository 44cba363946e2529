"""What the machine gives to loading: memory under limits, start methods, shared memory."""

import errno
import multiprocessing
import os
import subprocess
import sys

import pytest
import torch
from torch.utils.data import Dataset

from datasets import EpochBatchSampler, TrainTransform, make_loader
from datasets import machine as machine_module
from datasets.loading import LoaderError, require_shared_memory, worker_failure
from datasets.machine import cpu_count, free_memory, shared_memory_left, start_context

INFINITE = float("inf")
MEMINFO = "MemTotal: 99 kB\nMemAvailable:   50000 kB\nSwapTotal: 0 kB\n"  # 51 200 000 bytes


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Writes a tree of /proc and /sys/fs/cgroup, from paths to contents."""
    monkeypatch.setattr(machine_module, "PROC", tmp_path / "proc")
    monkeypatch.setattr(machine_module, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine_module, "resource", None)

    def build(**files: str) -> None:
        for name, content in {"proc/meminfo": MEMINFO, **files}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)

    return build


def v2(limit, usage, cached=0, high="max", group=""):
    stat = f"anon 5\nfile 7\ninactive_file {cached}\nactive_file 3\ninactive_file_other 9\n"
    values = {"memory.max": limit, "memory.high": high, "memory.current": usage}
    files = {f"cgroup/{group}{name}": f"{value}\n" for name, value in values.items()}
    return files | {f"cgroup/{group}memory.stat": stat}


def v1(limit, usage, cached=0, group=""):
    values = {"memory.limit_in_bytes": limit, "memory.usage_in_bytes": usage}
    files = {f"cgroup/memory/{group}{name}": f"{value}\n" for name, value in values.items()}
    stat = f"inactive_file 1\ntotal_inactive_file {cached}\n"
    return files | {f"cgroup/memory/{group}memory.stat": stat}


V2, V1 = "0::/a/b\n", "7:blkio:/\n4:cpu,memory:/docker/c0ffee\n1:name=systemd:/\n0::/\n"
LIMITS = {
    "no group at all": ({}, 51_200_000),
    "no limit": ({"proc/self/cgroup": V2, **v2("max", 9, group="a/b/")}, 51_200_000),
    "v2, own group": ({"proc/self/cgroup": V2, **v2(9000, 4000, group="a/b/")}, 5000),
    "v2, what is cached comes back": (
        {"proc/self/cgroup": V2, **v2(9000, 4000, 1000, group="a/b/")},
        6000,
    ),
    "v2, high": ({"proc/self/cgroup": V2, **v2(9000, 4000, high=7000, group="a/b/")}, 3000),
    "v2, a group around it": (
        {
            "proc/self/cgroup": V2,
            **v2(90000, 4000, group="a/b/"),
            **v2(9000, 6500, group="a/"),
            **v2("max", 0),
        },
        2500,
    ),
    "v2, used up": ({"proc/self/cgroup": V2, **v2(9000, 9500, group="a/b/")}, 0),
    "v2, seen from a container": ({"proc/self/cgroup": "0::/\n", **v2(9000, 4000)}, 5000),
    "v2, from above its root": ({"proc/self/cgroup": "0::/../x\n", **v2(9000, 4000)}, 5000),
    "v1, own group": (
        {"proc/self/cgroup": V1, **v1(9000, 4000, 200, group="docker/c0ffee/")},
        5200,
    ),
    "v1, seen from a container": ({"proc/self/cgroup": V1, **v1(9000, 4000)}, 5000),
    "v1, no limit": ({"proc/self/cgroup": V1, **v1(9223372036854771712, 4000)}, 51_200_000),
    "both, v1 has the memory": (
        {"proc/self/cgroup": V1, **v1(9000, 4000), "cgroup/unified/cgroup.procs": "1\n"},
        5000,
    ),
    "nonsense": ({"proc/self/cgroup": "x\n0:\n::\n", "cgroup/memory.max": "?\n"}, 51_200_000),
}


@pytest.mark.parametrize("name", LIMITS)
def test_free_memory_is_the_least_that_anything_leaves(machine, name):
    files, expected = LIMITS[name]
    machine(**files)
    assert free_memory() == expected


def test_the_machine_itself_may_have_the_least(machine):
    machine(**{"proc/self/cgroup": V2, "proc/meminfo": "MemAvailable: 2 kB\n", **v2(9000, 4000)})
    assert free_memory() == 2048


def test_without_proc_nothing_limits(tmp_path, monkeypatch):
    monkeypatch.setattr(machine_module, "PROC", tmp_path / "none")
    monkeypatch.setattr(machine_module, "resource", None)
    assert free_memory() == INFINITE


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_address_space_is_a_limit_too(machine, monkeypatch):
    class Limits:
        RLIMIT_AS, RLIM_INFINITY = 9, -1
        limit = 10_000_000

        @classmethod
        def getrlimit(cls, _which):
            return cls.limit, -1

        @staticmethod
        def getpagesize():
            return 4096

    machine(**{"proc/self/statm": "1000 500 300 1 0 200 0\n"})
    monkeypatch.setattr(machine_module, "resource", Limits)
    assert free_memory() == 10_000_000 - 1000 * 4096
    Limits.limit = -1
    assert free_memory() == 51_200_000


def test_the_real_machine_leaves_something():
    assert 0 < free_memory() and cpu_count() >= 1 and 0 < shared_memory_left()


def methods(monkeypatch, own, chosen, platform="linux"):
    everything = [own, *({"fork", "spawn", "forkserver"} - {own})]
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: everything)
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: chosen)
    monkeypatch.setattr(sys, "platform", platform)
    return start_context().get_start_method()


def test_how_processes_start(monkeypatch):
    assert methods(monkeypatch, "fork", None) == "fork"  # Python 3.10 to 3.13 on Linux
    assert methods(monkeypatch, "forkserver", None) == "fork"  # 3.14
    assert methods(monkeypatch, "forkserver", "forkserver") == "fork"  # which another library asked
    assert methods(monkeypatch, "forkserver", "spawn") == "spawn"  # what a program wants, it gets
    assert methods(monkeypatch, "fork", "forkserver") == "forkserver"
    assert methods(monkeypatch, "spawn", None, "darwin") == "spawn"
    assert methods(monkeypatch, "spawn", "fork", "darwin") == "fork"
    monkeypatch.delattr(os, "fork", raising=False)
    assert methods(monkeypatch, "spawn", None, "win32") == "spawn"


# shared memory


def test_a_dev_shm_that_is_too_small_is_refused_with_what_would_do(monkeypatch):
    monkeypatch.setattr("datasets.loading.shared_memory_left", lambda: 64e6)
    require_shared_memory(7_000_000, 4)  # nine batches
    for size, workers, most, cure in (
        (9_000_000, 4, 9, "set WORKERS 3, "),
        (88_000_000, 2, 5, r"set WORKERS 0 \(reads in this process\), "),
        (32_000_000, 1, 3, r"set WORKERS 0 \(reads"),
    ):
        words = rf"/dev/shm has room for 64 MB, but {workers} loader .* up to {most} batches of "
        with pytest.raises(ValueError, match=words + rf"{size / 1e6:.1f} MB .*{cure}.*shm-size=1g"):
            require_shared_memory(size, workers)
    monkeypatch.setattr("datasets.loading.shared_memory_left", lambda: INFINITE)
    require_shared_memory(10**15, 100)


def test_a_loader_asks_for_the_room_of_its_own_batches(open_dataset, monkeypatch):
    dataset = open_dataset(transform=TrainTransform((12, 16), boundary=True), need_boundary=True)
    one = 12 * 16 * (3 * 4 + 1 + 1)
    sampler = EpochBatchSampler(3, 2, seed=0)
    for left, workers in ((3 * 2 * one, 1), (3 * 2 * one - 1, 0)):
        monkeypatch.setattr("datasets.loading.shared_memory_left", lambda left=left: left)
        make_loader(dataset, batch_sampler=sampler, workers=workers)
    with pytest.raises(ValueError, match="set WORKERS 0"):
        make_loader(dataset, batch_sampler=sampler, workers=1)
    with pytest.raises(ValueError, match="set WORKERS 0"):
        make_loader(open_dataset(), batch_size=3, workers=1)


SAYINGS = {
    "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that "
    "dataloader's workers are out of shared memory.": "/dev/shm",
    "Caught RuntimeError in DataLoader worker process 0.\nunable to allocate shared memory(shm) "
    "for file </torch_1_2_0>: No space left on device (28)": "/dev/shm",
    "unable to open shared memory object </torch_1> in read-write mode: Too many open files (24)": (
        "ulimit"
    ),
    "received 0 items of ancdata": "ulimit",
    "DataLoader worker (pid 7) is killed by signal: Killed. ": "got no memory",
    "DataLoader worker (pid(s) 7, 8) exited unexpectedly": "WORKERS 0",
}


@pytest.mark.parametrize("said", SAYINGS)
def test_what_loader_processes_die_of_is_one_sentence(said):
    failure = worker_failure(RuntimeError(said))
    assert SAYINGS[said] in str(failure) and "WORKERS" in str(failure)
    assert "\n" not in str(failure) and isinstance(failure, OSError)


def test_other_errors_are_not_taken_for_the_machines():
    for error in (
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError("Caught RuntimeError in DataLoader worker process 0.\nmat1 and mat2 shapes"),
        OSError(28, "No space left on device"),
        MemoryError(),
    ):
        assert worker_failure(error) is None


class Dying(Dataset):
    """Its samples end the process that reads them, `how`."""

    def __init__(self, how: str) -> None:
        self.how, self.parent = how, os.getpid()

    def __len__(self) -> int:
        return 4

    def __getitem__(self, _draw):
        if os.getpid() != self.parent:
            if self.how == "memory":
                raise MemoryError
            os._exit(3)
        return {"image": torch.zeros(1), "name": "x"}


@pytest.mark.parametrize(("how", "word"), [("exit", "without a word"), ("memory", "no memory")])
def test_a_dead_loader_process_ends_the_loop_with_a_sentence(how, word):
    batches = iter(make_loader(Dying(how), workers=1))
    with pytest.raises(LoaderError, match=word):
        list(batches)
    batches._shutdown_workers()


def test_semaphores_that_find_no_room_are_told_alike(open_dataset, monkeypatch):
    def full(_self):
        raise OSError(errno.ENOSPC, "No space left on device")

    loader = make_loader(open_dataset(), workers=1)
    monkeypatch.setattr("datasets.loading.DataLoader.__iter__", full)
    with pytest.raises(LoaderError, match="/dev/shm"):
        iter(loader)


PROGRAM = """
import sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/tools"]
import _init_paths
from datasets import EvalTransform, make_loader
from datasets.synthetic import SyntheticScenes
scenes = SyntheticScenes(0, 4, (64, 96), transform=EvalTransform())
if sys.argv[2] == "late":
    import datasets.loading
    datasets.loading.require_shared_memory = lambda *_: None
_init_paths.run_main(lambda: list(make_loader(scenes, workers=1)) and 0)
"""


@pytest.mark.medium
@pytest.mark.skipif(sys.platform != "linux", reason="mounts another /dev/shm")
@pytest.mark.parametrize("when", ["early", "late"])
def test_a_real_dev_shm_of_64_kilobytes(root, when):
    shell = 'mount -t tmpfs -o size=64k tmpfs /dev/shm || exit 77; exec "$@"'
    command = ["unshare", "-m", "sh", "-c", shell, "sh", sys.executable, "-c", PROGRAM, root, when]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if done.returncode in (1, 77) and "error: " not in done.stderr:
        pytest.skip("this user cannot mount a file system")
    assert done.returncode == 2 and done.stderr.startswith("error: "), done.stderr
    assert "/dev/shm" in done.stderr and "WORKERS" in done.stderr
    assert done.stderr.count("\n") == 1
