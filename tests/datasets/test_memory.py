"""Loader processes do not grow from epoch to epoch."""

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest

EPOCHS, SETTLED, GROWTH = 20, 3, 1.05

PROGRAM = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
import torch
from datasets import (
    DeviceLoader, EpochBatchSampler, SegmentationDataset, TrainTransform, get_meta, make_cache,
    make_loader,
)
root, way, epochs = sys.argv[2], sys.argv[3], int(sys.argv[4])
torch.set_num_threads(1)
transform = TrainTransform((96, 128), color=True, boundary=True)
dataset = SegmentationDataset(
    root, "list/train.lst", get_meta("camvid"), "index", transform=transform, need_boundary=True
)
sampler = EpochBatchSampler(len(dataset), 4, seed=0)
if way in ("none", "ram", "disk"):
    dataset = dataset.with_cache(make_cache(way, len(dataset), 0.05, root + "/cache"))
    loader = make_loader(dataset, batch_sampler=sampler, workers=2)
else:
    limit = 1.0 if way == "resident" else 0.0
    loader = DeviceLoader(dataset, sampler, torch.device("cpu"), limit=limit, workers=2)

def pids():
    me = os.getpid()
    return [me, *map(int, open(f"/proc/{me}/task/{me}/children").read().split())]

def memory(pid):
    # What the process allocated, shared memory by its share: sums are real memory. Pages of
    # libraries are left out: their shares change when other programs start or end.
    for line in open(f"/proc/{pid}/smaps_rollup"):
        name, number = line.split()[:2]
        if name == "Pss_Anon:":
            own = int(number)
        if name == "Pss_Shmem:":
            return own + int(number)

used = []
for epoch in range(epochs):
    sampler.set_epoch(epoch)
    for batch in loader:
        pass
    used.append([memory(pid) for pid in pids()])
print(json.dumps(used))
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """ROOT with 32 pairs of 200x150."""
    folder = tmp_path_factory.mktemp("pictures")
    for part in ("camvid/images", "camvid/labels", "list"):
        (folder / part).mkdir(parents=True)
    rng, lines = np.random.default_rng(0), []
    for index in range(32):
        image = rng.integers(0, 256, (15, 20, 3), dtype=np.uint8)
        image = cv2.resize(image, (200, 150), interpolation=cv2.INTER_CUBIC)
        label = rng.integers(0, 12, (150, 200), dtype=np.uint8)
        cv2.imwrite(f"{folder}/camvid/images/{index}.png", image)
        cv2.imwrite(f"{folder}/camvid/labels/{index}.png", label)
        lines.append(f"images/{index}.png\tlabels/{index}.png\n")
    (folder / "list/train.lst").write_text("".join(lines))
    return folder


@pytest.mark.medium
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("way", ["none", "ram", "disk", "streamed", "resident"])
def test_memory_is_flat_over_twenty_epochs(root, pictures, way):
    command = [sys.executable, "-c", PROGRAM, str(root), str(pictures), way, str(EPOCHS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    used = json.loads(done.stdout)
    processes = 1 if way == "resident" else 3
    assert len(used) == EPOCHS and all(len(each) == processes for each in used)
    settled, last = sum(used[SETTLED - 1]), max(sum(each) for each in used[-3:])
    assert last <= GROWTH * settled, [sum(each) for each in used]
