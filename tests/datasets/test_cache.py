"""Decoded scenes: the same pixels, shared, limited, and never stale or half written."""

import multiprocessing
import os
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from datasets import EpochBatchSampler, EvalTransform, TrainTransform, make_cache, make_loader
from datasets.cache import DiskCache, MemoryCache, Source, stamp_of
from datasets.transforms import Sample

KINDS = ("ram", "disk")
FORK = multiprocessing.get_context("fork")


def scene(index: int, height: int = 20, width: int = 30, labelled: bool = True) -> Sample:
    rng = np.random.default_rng(index)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    label = rng.integers(0, 9, (height, width), dtype=np.uint8)
    return Sample(image, label if labelled else None)


def source(index: int, stamp: bytes = stamp_of(1)) -> Source:
    return Source(index, f"image {index}", stamp)


def assert_equal(one: Sample, two: Sample) -> None:
    assert np.array_equal(one.image, two.image)
    assert (one.label is None) == (two.label is None)
    assert one.label is None or np.array_equal(one.label, two.label)


@pytest.fixture(params=KINDS)
def cache(request, tmp_path):
    return make_cache(request.param, 100, 0.001, tmp_path / "cache")


def test_no_cache_and_unknown_caches(tmp_path):
    assert make_cache("none", 9, 1, tmp_path) is None and not any(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"DATASET.CACHE is 'tape'; accepted: none, ram, disk"):
        make_cache("tape", 9, 1, tmp_path)


def test_a_folder_that_is_none_is_said(tmp_path):
    (tmp_path / "file").touch()
    words = (
        rf"DATASET.CACHE_DIR {tmp_path}/file cannot be used \(File exists\); it must be a folder"
    )
    with pytest.raises(OSError, match=words):
        make_cache("disk", 9, 1, tmp_path / "file")


def test_what_is_stored_comes_back_and_cannot_be_changed(cache):
    assert cache.get(source(3)) is None
    for index, more in ((3, {}), (4, {"height": 7, "width": 5}), (5, {"labelled": False})):
        assert cache.put(source(index), scene(index, **more))
        found = cache.get(source(index))
        assert_equal(found, scene(index, **more))
        with pytest.raises(ValueError, match="read-only"):
            found.image[0, 0] = 0
    assert cache.usage()[0] == 3


def test_parts_of_larger_arrays_are_stored_as_they_look(cache):
    whole = scene(0, 40, 60)
    part = Sample(whole.image[5:9, ::-1], whole.label[5:9, ::-1])
    cache.put(source(0), part)
    assert_equal(cache.get(source(0)), part)


def test_a_changed_file_is_another_scene(cache):
    cache.put(source(0), scene(0))
    changed = source(0, stamp_of(2))
    assert cache.get(changed) is None
    cache.put(changed, scene(1))
    assert_equal(cache.get(changed), scene(1))
    assert cache.get(source(0)) is None


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_stored_beyond_the_limit(tmp_path, kind):
    each = 20 * 30 * 4 + (DiskCache.HEADER.size if kind == "disk" else 0)
    cache = make_cache(kind, 100, 7.9 * each / 1e9, tmp_path)
    stored = [cache.put(source(index), scene(index)) for index in range(20)]
    assert stored == [True] * 7 + [False] * 13
    assert cache.usage() == (7, 7 * each) and 7 * each <= cache.capacity
    assert_equal(cache.get(source(6)), scene(6))
    assert cache.get(source(7)) is None


def hammer(cache, order, results) -> None:
    wrong = 0
    for index in order:
        found = cache.get(source(index))
        if found is None:
            cache.put(source(index), scene(index))
            found = cache.get(source(index))
        wrong += found is None or not np.array_equal(found.image, scene(index).image)
    results.put(wrong)


def test_processes_write_and_read_at_once(cache):
    results, processes = FORK.Queue(), []
    for seed in range(6):
        order = np.random.default_rng(seed).integers(60, size=300).tolist()
        processes.append(FORK.Process(target=hammer, args=(cache, order, results)))
        processes[-1].start()
    assert [results.get(timeout=600) for _ in processes] == [0] * 6
    for process in processes:
        process.join()
    for index in range(60):
        found = cache.get(source(index))  # also in this process, which wrote none of them
        assert found is not None
        assert_equal(found, scene(index))
    if isinstance(cache, DiskCache):
        assert not list(cache.folder.glob("*.part"))
        with cache._usage() as usage:
            assert usage[0] == cache.usage()[1]


def test_memory_is_not_a_file_and_does_not_outgrow_the_machine():
    before = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    cache = MemoryCache(10, 1e6)  # a petabyte: cut to what is free
    assert cache.capacity < 1e13
    cache.put(source(0), scene(0))
    if os.path.isdir("/dev/shm"):
        new = set(os.listdir("/dev/shm")) - before
        assert not [n for n in new if not n.startswith(("sem.", "torch_", "pym-"))]


# on disk


def test_a_disk_cache_outlives_its_program(tmp_path):
    DiskCache(tmp_path, 1).put(source(0), scene(0))
    assert_equal(DiskCache(tmp_path, 1).get(source(0)), scene(0))
    full = DiskCache(tmp_path, 3000 / 1e9)
    assert not full.put(source(1), scene(1))  # what earlier runs stored counts
    assert full.put(source(0, stamp_of(5)), scene(2))  # a replaced file makes its own room


@pytest.mark.parametrize("damage", ["empty", "cut", "longer", "foreign", "header"])
def test_damaged_files_are_absent_files(tmp_path, damage):
    cache = DiskCache(tmp_path, 1)
    cache.put(source(0), scene(0))
    (file,) = tmp_path.glob("*.scene")
    data = file.read_bytes()
    file.write_bytes(
        {
            "empty": b"",
            "cut": data[:-1],
            "longer": data + b"0",
            "foreign": b"x" * len(data),
            "header": data[:40],
        }[damage]
    )
    assert cache.get(source(0)) is None
    assert cache.put(source(0), scene(0))
    assert_equal(cache.get(source(0)), scene(0))


def test_a_writer_that_was_killed_leaves_nothing_for_good(tmp_path):
    fresh, old = tmp_path / "a.part", tmp_path / "b.part"
    for file in (fresh, old):
        file.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    cache = DiskCache(tmp_path, 1)
    assert fresh.exists() and not old.exists() and cache.usage() == (0, 0)


def test_a_full_disk_only_means_not_cached(tmp_path, monkeypatch):
    cache = DiskCache(tmp_path, 1)

    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("datasets.cache.os.replace", no_space)
    assert not cache.put(source(0), scene(0))
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["usage"]
    with cache._usage() as usage:
        assert usage[0] == 0


# with a dataset


def cached(dataset, kind, folder: Path):
    return dataset.with_cache(make_cache(kind, len(dataset), 0.01, folder / "cache"))


@pytest.mark.parametrize("kind", KINDS)
def test_workers_share_what_one_of_them_decoded(open_dataset, folder, kind, monkeypatch):
    dataset = cached(open_dataset(), kind, folder)
    list(make_loader(dataset, workers=2))
    assert dataset.cache.usage()[0] == 3
    monkeypatch.setattr(dataset, "load", lambda index: pytest.fail(f"{index} is decoded again"))
    assert len(list(make_loader(dataset, workers=0))) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_does_not_change_a_batch(open_dataset, folder, kind):
    def batches(cache, workers):
        transform = TrainTransform((12, 16), color=True, boundary=True)
        dataset = open_dataset(transform=transform, need_boundary=True)
        if cache:
            dataset = cached(dataset, kind, folder)
        sampler = EpochBatchSampler(3, 3, seed=3)
        loader, result = make_loader(dataset, batch_sampler=sampler, workers=workers), []
        for epoch in range(3):
            sampler.set_epoch(epoch)
            result += list(loader)
        return result

    for workers in (0, 2):
        for one, two in zip(batches(False, 0), batches(True, workers), strict=True):
            assert one["name"] == two["name"]
            for key in ("image", "label", "boundary"):
                assert torch.equal(one[key], two[key])


@pytest.mark.parametrize("kind", KINDS)
def test_a_label_from_the_cache_can_be_written_to(open_dataset, folder, kind):
    dataset = cached(open_dataset(transform=EvalTransform()), kind, folder)
    before = dataset[0]["label"].clone()
    dataset[0]["label"].zero_()
    assert torch.equal(dataset[0]["label"], before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", ["images", "labels"])
def test_an_edited_or_lost_file_is_noticed(open_dataset, folder, kind, part):
    dataset = cached(open_dataset(), kind, folder)
    dataset[0]
    file = folder / f"camvid/{part}/a.png"
    content = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(file), content[::-1])
    plain = open_dataset()
    for key in ("image", "label"):
        assert torch.equal(dataset[0][key], plain[0][key])
    file.unlink()
    with pytest.raises(ValueError, match=rf"{part}/a.png does not exist"):
        dataset[0]


def test_another_label_encoding_is_another_scene(open_dataset, folder):
    meta = open_dataset().meta
    index = open_dataset()
    color = open_dataset(encoding="color")
    assert index.source(0).identity != color.source(0).identity
    assert meta.name in index.source(0).identity
    assert index.source(0) == open_dataset().source(0)
