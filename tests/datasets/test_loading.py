import os
import re
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import torch

from datasets import DataError, EpochBatchSampler, TrainTransform, make_loader

ITERATE = """
import sys, time
sys.path.insert(0, sys.argv[1])
from datasets import EpochBatchSampler, TrainTransform, make_loader
from datasets.synthetic import SyntheticScenes

scenes = SyntheticScenes(0, 400, (64, 96), transform=TrainTransform((64, 96)))
loader = make_loader(scenes, batch_sampler=EpochBatchSampler(400, 4, seed=0), workers=2)
batches = iter(loader)
next(batches)
try:
    print(*(worker.pid for worker in batches._workers), flush=True)
    time.sleep(600)
except KeyboardInterrupt:
    next(batches)  # workers still work: the trainer can finish its step
    print("saved", flush=True)
"""


@pytest.fixture
def batches(open_dataset):
    def load(workers: int, **more):
        transform = TrainTransform((12, 16), color=True, boundary=True)
        dataset = open_dataset(transform=transform, need_boundary=True, **more)
        sampler = EpochBatchSampler(len(dataset), 2, seed=3)
        return list(make_loader(dataset, batch_sampler=sampler, workers=workers))

    return load


def test_a_batch_stacks_tensors_and_lists_the_rest(batches):
    (batch,) = batches(0)
    assert batch["image"].shape == (2, 3, 12, 16) and batch["image"].dtype == torch.float32
    assert batch["label"].shape == batch["boundary"].shape == (2, 12, 16)
    assert batch["label"].dtype == batch["boundary"].dtype == torch.uint8
    assert len(batch["name"]) == 2 and batch["size"] == [(20, 30), (20, 30)]


def test_workers_do_not_change_a_batch(batches):
    for one, two in zip(batches(0), batches(2), strict=True):
        assert one["name"] == two["name"]
        for key in ("image", "label", "boundary"):
            assert torch.equal(one[key], two[key])


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_is_one_sentence_with_and_without_workers(open_dataset, folder, workers):
    (folder / "camvid/images/a.png").write_bytes(b"")
    batches = iter(make_loader(open_dataset(), workers=workers))
    with pytest.raises(DataError) as error:
        next(batches)
    if workers:
        batches._shutdown_workers()  # left to the garbage collector this takes 5 s per worker
    place = re.escape(f"{folder}/list/train.lst:1: images/a.png is empty (0 bytes); ")
    assert re.fullmatch(place + "tools/check_data.py finds all at once", str(error.value))


def test_in_order_without_a_sampler(open_dataset):
    dataset = open_dataset()
    names = [batch["name"] for batch in make_loader(dataset, batch_size=2)]
    assert names == [["images/a.png", "images/b.png"], ["images/c.png"]]
    names = [batch["name"] for batch in make_loader(dataset, indices=range(1, 3))]
    assert names == [["images/b.png"], ["images/c.png"]]


def test_images_of_different_size_cannot_share_a_batch(open_dataset, folder):
    for part in ("images", "labels"):
        cv2.imwrite(str(folder / f"camvid/{part}/b.png"), np.zeros((20, 31), np.uint8))
    words = r"images/a.png and images/b.png differ in size .* use a batch size of 1"
    with pytest.raises(DataError, match=words):
        list(make_loader(open_dataset(), batch_size=2))


def test_a_negative_number_of_workers_is_refused(open_dataset):
    with pytest.raises(ValueError, match="WORKERS is -1"):
        make_loader(open_dataset(), workers=-1)


@pytest.mark.alone
def test_ctrl_c_leaves_the_trainer_in_charge_and_no_worker_behind(root):
    process = subprocess.Popen(
        [sys.executable, "-c", ITERATE, str(root)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    workers = [int(pid) for pid in process.stdout.readline().split()]
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, err = process.communicate(timeout=600)
    assert (process.returncode, out, err) == (0, "saved\n", "")
    deadline = time.monotonic() + 300
    while alive := [pid for pid in workers if os.path.exists(f"/proc/{pid}")]:
        assert time.monotonic() < deadline, f"workers {alive} still run"
        time.sleep(0.1)
