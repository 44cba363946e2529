"""Loader processes do the same however they are started; Python 3.14 starts them by forkserver."""

import gc
import multiprocessing
import os
import sys

import pytest
import torch

from datasets import DeviceLoader, EpochBatchSampler, TrainTransform, make_cache, make_loader
from datasets.cache import NOT_SHAREABLE, MemoryCache
from datasets.checking import CheckedList, examine_all
from datasets.machine import start_context

METHODS = [m for m in ("forkserver", "spawn") if m in multiprocessing.get_all_start_methods()]
pytestmark = pytest.mark.medium  # new interpreters import torch


@pytest.fixture(params=METHODS)
def method(request):
    """A program that starts its processes so."""
    before = multiprocessing.get_start_method(allow_none=True)
    if request.param == "forkserver":
        multiprocessing.set_forkserver_preload(["datasets"])  # imports torch once for all
    multiprocessing.set_start_method(request.param, force=True)
    assert start_context().get_start_method() == request.param
    yield request.param
    multiprocessing.set_start_method(before, force=True)


def augmenting(open_dataset):
    transform = TrainTransform((12, 16), color=True, boundary=True)
    return open_dataset(transform=transform, need_boundary=True)


def two_epochs(loader, sampler):
    batches = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        batches += list(loader)
    return batches


def assert_equal(ones, others):
    assert len(ones) == len(others) == 2
    for one, two in zip(ones, others, strict=True):
        assert one["name"] == two["name"]
        assert all(torch.equal(one[key], two[key]) for key in ("image", "label", "boundary"))


@pytest.mark.parametrize("kind", ["none", "ram", "disk"])
def test_batches_and_caches(open_dataset, folder, method, kind, monkeypatch):
    sampler = EpochBatchSampler(3, 3, seed=3)
    plain = two_epochs(make_loader(augmenting(open_dataset), batch_sampler=sampler), sampler)
    dataset = augmenting(open_dataset)
    dataset.cache = make_cache(kind, len(dataset), 0.01, folder / "cache")
    loader = make_loader(dataset, batch_sampler=sampler, workers=1)
    assert_equal(plain, two_epochs(loader, sampler))
    if kind != "none":
        assert dataset.cache.usage()[0] == 3  # this process sees what the other one stored
        monkeypatch.setattr(dataset, "load", lambda index: pytest.fail(f"{index} is decoded again"))
        assert_equal(plain, two_epochs(make_loader(dataset, batch_sampler=sampler), sampler))


@pytest.mark.parametrize("kind", ["none", "ram"])
def test_the_device_path(open_dataset, folder, method, kind):
    def batches(workers):
        sampler, dataset = EpochBatchSampler(3, 3, seed=3), augmenting(open_dataset)
        dataset.cache = make_cache(kind, len(dataset), 0.01, folder)
        cpu = torch.device("cpu")
        return two_epochs(DeviceLoader(dataset, sampler, cpu, limit=0, workers=workers), sampler)

    assert_equal(batches(0), batches(1))


def test_checking(open_dataset, folder, method):
    (folder / "camvid/images/b.png").write_bytes(b"")
    dataset = CheckedList(folder, "list/train.lst", open_dataset().meta, "index")
    found = [(f.index, f.problems, f.size) for f in examine_all(dataset, 1)]
    assert found == [(f.index, f.problems, f.size) for f in examine_all(dataset, 0)]
    assert "b.png is empty" in found[1][1][0]


def test_a_cache_that_cannot_be_handed_over_says_so_before_processes_start(
    open_dataset, method, monkeypatch
):
    monkeypatch.delattr("os.memfd_create", raising=False)  # as on macOS and Windows
    dataset = open_dataset()
    dataset.cache = make_cache("ram", 3, 0.01, "unused")
    assert len(list(make_loader(dataset, workers=0))) == 3 and dataset.cache.usage()[0] == 3
    with pytest.raises(
        ValueError, match=r"DATASET.CACHE ram cannot be shared .*; set WORKERS 0, or"
    ):
        make_loader(dataset, workers=1)
    with pytest.raises(ValueError, match=NOT_SHAREABLE):
        multiprocessing.reduction.ForkingPickler.dumps(dataset.cache)


@pytest.mark.skipif(sys.platform != "linux", reason="counts open files in /proc")
def test_a_cache_that_is_gone_leaves_no_file_open(method):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        cache = MemoryCache(3, 0.001)
        assert cache.shareable
        del cache
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before + 1
