"""The device path gives what the CPU path gives; tested on the CPU as device."""

from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory

from datasets import DataError, DeviceLoader, Draw, EpochBatchSampler, TrainTransform, make_loader
from datasets.color import OPERATIONS, ColorChange, recolor
from datasets.device.loader import SourceWindows, join_windows
from datasets.device.render import Pixels, Renderer, pack
from datasets.transforms import Augmentation, Sample

CPU = torch.device("cpu")
RESIDENT, STREAMED = 1.0, 0.0  # gigabytes
LEVEL = 1 / (0.224 * 255)  # one grey level after normalisation, of the least deviation


def smooth(height: int, width: int, seed: int = 0) -> Sample:
    """A scene without noise, so that a shift by a pixel shows and rounding does not."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    image = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    classes = rng.integers(0, 5, (height // 6 + 1, width // 6 + 1), dtype=np.uint8)
    label = np.kron(classes, np.ones((6, 6), np.uint8))[:height, :width]
    return Sample(image, np.ascontiguousarray(label))


@pytest.fixture
def scenes(open_dataset) -> Callable:
    """The CamVid fixture with smooth scenes of two sizes in place of noise."""

    def build(**more):
        dataset = open_dataset(need_boundary=True, **more)
        for index, entry in enumerate(dataset.entries):
            scene = smooth(*((64, 96), (70, 80), (64, 96))[index], index)
            image = cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR)
            cv2.imwrite(str(dataset.folder / entry.image), image)
            cv2.imwrite(str(dataset.folder / entry.label), scene.label)
        return dataset

    return build


def transform(**more) -> TrainTransform:
    return TrainTransform(
        (48, 64), **({"scale_range": (0.5, 2.0), "boundary": True, "pad_value": 90} | more)
    )


def assert_same(cpu: dict, device: dict, levels: float = 1.6, labels: float = 0.999) -> None:
    """Equal batches: pixels within interpolation tolerance, everything else the same."""
    assert cpu["name"] == device["name"] and cpu["size"] == device["size"]
    assert device["image"].dtype == torch.float32 and device["image"].shape == cpu["image"].shape
    difference = (cpu["image"] - device["image"].cpu()).abs()
    assert difference.max() < levels * LEVEL and difference.mean() < 0.5 * LEVEL
    for key in ("label", "boundary"):
        assert device[key].dtype == torch.uint8
        assert (device[key].cpu() == cpu[key]).float().mean() >= labels


RECIPES = {
    "plain": {},
    "mixed": {"cutmix": 1.0},
    "strong": {
        "cutmix": 0.6,
        "cat_max_ratio": 0.4,
        "scale_log": True,
        "flip": "alternate",
    },
}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("limit", [RESIDENT, STREAMED])
def test_both_paths_make_the_same_batches(scenes, limit, recipe):
    dataset = scenes(transform=transform(**RECIPES[recipe]))
    for epoch in range(6):
        samplers = [EpochBatchSampler(3, 3, seed=2) for _ in range(2)]
        for sampler in samplers:
            sampler.set_epoch(epoch)
        loader = DeviceLoader(dataset, samplers[1], CPU, limit=limit)
        assert (loader.resident is not None) == bool(limit) and len(loader) == 1
        for one, two in zip(make_loader(dataset, batch_sampler=samplers[0]), loader, strict=True):
            assert_same(one, two)
            assert two["image"].device == two["label"].device == CPU


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(
    ("window", "size"),
    [
        ((0, 0, 48, 64), (48, 64)),
        ((5, 9, 24, 32), (48, 64)),
        ((3, 0, 29, 41), (48, 64)),
        ((0, 0, 64, 96), (32, 48)),
        ((0, 0, 64, 96), (41, 64)),
        ((63, 95, 1, 1), (48, 64)),
    ],
)
def test_one_window_is_one_window_on_both_paths(window, size, mirrored):
    scene, rule = smooth(64, 96), transform()
    augmentation = Augmentation(window, size, mirrored)
    one = rule.apply(scene, augmentation)
    top, left = window[:2]
    batch = {"augmentation": [augmentation], "place": [(top * 96 + left, 96)]}
    pixels = Pixels(pack(scene.image, scene.label), None)
    two = Renderer(rule, CPU)(pixels, batch)
    assert np.abs(one.image - two["image"][0].numpy()).max() < 1.6 * LEVEL
    assert (one.label == two["label"][0].numpy()).mean() > 0.995
    if window[2:] == size:  # nothing to interpolate
        np.testing.assert_allclose(one.image, two["image"][0].numpy(), atol=1e-5)
        assert np.array_equal(one.label, two["label"][0].numpy())


@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_colour_change_is_the_same_on_both_paths(operation):
    scene = smooth(48, 64)
    for amount in (-1.0, -0.4, 0.0, 0.7, 1.0):
        changes = (ColorChange(operation, amount),)
        expected = recolor(scene.image, changes).astype(float)
        rule = Renderer(transform(), CPU)
        image = torch.from_numpy(scene.image).float().repeat(2, 1, 1, 1)
        result = rule._recolor(image, [changes, ()])
        assert np.array_equal(result[1], scene.image)  # its neighbour is left alone
        error = np.abs(result[0].numpy() - expected)
        # cv2 holds hue and saturation in 8 bits, the device in floating point.
        by_hsv = operation in ("hue", "tint", "purity")
        assert error.max() <= (10 if by_hsv else 1)
        assert error.mean() < (1.5 if by_hsv else 0.5)


@pytest.mark.parametrize("color", ["jitter", "photometric"])
def test_colour_batches_agree(scenes, color):
    dataset = scenes(transform=transform(color=color))
    for epoch in range(8):
        samplers = [EpochBatchSampler(3, 3, seed=4) for _ in range(2)]
        for sampler in samplers:
            sampler.set_epoch(epoch)
        loader = DeviceLoader(dataset, samplers[1], CPU, limit=RESIDENT)
        for one, two in zip(make_loader(dataset, batch_sampler=samplers[0]), loader, strict=True):
            assert torch.equal(one["boundary"], two["boundary"])
            difference = (one["image"] - two["image"]).abs()
            assert difference.max() < 16 * LEVEL and difference.mean() < 1.5 * LEVEL


@pytest.mark.parametrize("recipe", ["plain", "strong"])
def test_workers_and_residence_do_not_change_a_batch(scenes, recipe):
    dataset = scenes(transform=transform(color=True, **RECIPES[recipe]))

    def batches(limit, workers):
        sampler = EpochBatchSampler(3, 3 if recipe == "strong" else 1, seed=3)
        return list(DeviceLoader(dataset, sampler, CPU, limit=limit, workers=workers))

    first = batches(RESIDENT, 0)
    for others in (batches(STREAMED, 0), batches(STREAMED, 2), batches(RESIDENT, 2)):
        for one, two in zip(first, others, strict=True):
            assert one["name"] == two["name"]
            for key in ("image", "label", "boundary"):
                assert torch.equal(one[key], two[key])


def test_streamed_batches_can_be_pinned(scenes, monkeypatch):
    """What the pinning thread does to a batch, with a copy in place of page-locked memory."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, *_: tensor.clone())
    dataset = scenes(transform=transform(color=True))
    items = [SourceWindows(dataset)[Draw(index, 4)] for index in range(3)]
    batch = join_windows(items)
    pinned = pin_memory(batch)
    rendered = [
        Renderer(dataset.transform, CPU)(Pixels(b.pop("packed"), b.pop("edge")), b)
        for b in (dict(batch), pinned)
    ]
    assert pinned["augmentation"] == batch["augmentation"]
    assert isinstance(pinned["augmentation"][0], Augmentation)
    assert torch.equal(rendered[0]["image"], rendered[1]["image"])


def test_an_interrupted_epoch_goes_on(scenes):
    dataset = scenes(transform=transform(color=True))
    sampler = EpochBatchSampler(3, 1, seed=3)
    for limit in (RESIDENT, STREAMED):
        loader = DeviceLoader(dataset, sampler, CPU, limit=limit)
        sampler.set_epoch(5)
        whole = list(loader)
        sampler.set_epoch(5, start_batch=1)
        rest = list(loader)
        assert [b["name"] for b in rest] == [b["name"] for b in whole[1:]]
        assert torch.equal(rest[-1]["image"], whole[-1]["image"])


def test_what_does_not_fit_is_not_resident(scenes):
    dataset = scenes(transform=transform())
    pixels = 2 * 64 * 96 + 70 * 80
    for spare, fits in ((0, True), (-1, False)):
        limit = (5 * pixels + spare) / 1e9
        loader = DeviceLoader(dataset, EpochBatchSampler(3, 1, seed=0), CPU, limit=limit)
        assert (loader.resident is not None) == fits
        if fits:
            assert loader.resident.used == pixels


@pytest.mark.parametrize("limit", [RESIDENT, STREAMED])
def test_unreadable_images_stop_or_are_replaced_as_on_the_cpu(scenes, limit):
    dataset = scenes(transform=transform())
    (dataset.folder / "images/b.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match=r"images/b.png is a truncated PNG"):
        list(DeviceLoader(dataset, EpochBatchSampler(3, 3, seed=0), CPU, limit=limit))
    dataset = scenes(transform=transform(), skip_unreadable=True)
    (dataset.folder / "images/b.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    samplers = [EpochBatchSampler(3, 3, seed=0) for _ in range(2)]
    loader = DeviceLoader(dataset, samplers[1], CPU, limit=limit)
    for one, two in zip(make_loader(dataset, batch_sampler=samplers[0]), loader, strict=True):
        assert_same(one, two)
        assert one["skipped"] == two["skipped"] and sum(map(bool, two["skipped"])) == 1
