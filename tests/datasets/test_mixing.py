"""CutMix, the limit for one class in a crop, calm draws and flips by turns."""

import itertools

import cv2
import numpy as np
import pytest
import torch

from datasets import Draw, EpochBatchSampler, Sample, TrainTransform, make_loader
from datasets.color import PHOTOMETRIC, draw_color, recolor
from datasets.mixing import (
    STRIDE,
    Coarse,
    Patch,
    coarse_crop,
    draw_patches,
    largest_share,
    paste,
    thumbnail,
)
from datasets.synthetic import SyntheticScenes
from datasets.transforms import CROP_REDRAWS

RNG = np.random.default_rng
IGNORE = 255


def scenes(**more) -> SyntheticScenes:
    rule = {"scale_range": (0.5, 2.0), "boundary": True} | more
    transform = TrainTransform((48, 64), **rule)
    return SyntheticScenes(0, 8, (96, 128), transform=transform, need_boundary=True)


def batches(dataset, *, epoch=0, calm=False, size=4) -> list[dict]:
    sampler = EpochBatchSampler(len(dataset), size, seed=5)
    sampler.set_epoch(epoch)
    sampler.calm = lambda batch: calm
    return list(make_loader(dataset, batch_sampler=sampler))


# CutMix


def test_a_batch_is_its_crops_with_rectangles_of_one_another():
    for plain, mixed in zip(batches(scenes()), batches(scenes(cutmix=1.0)), strict=True):
        assert plain["name"] == mixed["name"] and plain.keys() == mixed.keys()
        for index in range(4):
            changed = (plain["image"][index] != mixed["image"][index]).any(0)
            rows, columns = changed.any(1).nonzero()[:, 0], changed.any(0).nonzero()[:, 0]
            place = (
                ...,
                slice(rows.min(), rows.max() + 1),
                slice(columns.min(), columns.max() + 1),
            )
            share = mixed["label"][index][place].numel() / (48 * 64)
            assert 0.05 < share < 0.55
            sources = [
                other
                for other in range(4)
                if all(
                    torch.equal(mixed[key][index][place], plain[key][other][place])
                    for key in ("image", "label", "boundary")
                )
            ]
            assert sources and index not in sources


def test_the_probability_is_that_of_batches():
    crops = [Coarse(seed, RNG(seed).integers(0, 3, (12, 16), dtype=np.uint8)) for seed in range(4)]
    for probability in (0.0, 0.3, 1.0):
        drawn = 0
        for seed in range(500):
            crops[0] = crops[0]._replace(seed=seed)
            drawn += draw_patches(crops, probability, (48, 64), IGNORE) is not None
        assert abs(drawn / 500 - probability) < 0.08
    assert draw_patches(crops[:1], 1.0, (48, 64), IGNORE) is None


def test_rectangles_prefer_rare_classes_and_hold_them():
    classes = np.zeros((12, 16), np.uint8)
    classes[2:4, 3:5] = 7  # 4 of 192 cells
    crops = [Coarse(0, classes), Coarse(1, classes)]
    holding = 0
    for seed in range(400):
        crops[0] = crops[0]._replace(seed=seed)
        for patch in draw_patches(crops, 1.0, (48, 64), IGNORE):
            assert 0 <= patch.top < patch.bottom <= 48 and 0 <= patch.left < patch.right <= 64
            area = (patch.bottom - patch.top) * (patch.right - patch.left) / (48 * 64)
            assert 0.09 < area < 0.52
            centers = [STRIDE * cell + STRIDE // 2 for cell in range(16)]
            rows = [centers[y] for y in (2, 3) if patch.top <= centers[y] < patch.bottom]
            columns = [centers[x] for x in (3, 4) if patch.left <= centers[x] < patch.right]
            holding += bool(rows and columns)
    # Drawn with (1 / sqrt(8)) / (1 / sqrt(8) + 1 / sqrt(376)), 0.87, and now and then by chance.
    assert holding / 800 > 0.85


def test_nothing_labelled_is_no_reason_to_fail():
    crops = [Coarse(seed, np.full((12, 16), IGNORE, np.uint8)) for seed in range(3)]
    assert len(draw_patches(crops, 1.0, (48, 64), IGNORE)) == 3


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("factor", [0.4, 0.8, 1.0, 1.7])
def test_cells_are_what_the_crop_shows_there(factor, mirrored):
    label = np.kron(RNG(1).integers(0, 6, (12, 16), dtype=np.uint8), np.ones((8, 8), np.uint8))
    rule = TrainTransform((50, 66), scale_range=(factor, factor), flip=False)
    for seed in range(10):
        drawn = rule.draw(label.shape, RNG(seed))._replace(mirrored=mirrored)
        crop = rule.apply(Sample(np.zeros((*label.shape, 3), np.uint8), label), drawn).label
        cells = coarse_crop(thumbnail(label), *drawn[:3], (50, 66), IGNORE)
        assert cells.shape == (13, 17)
        centers = [np.minimum(np.arange(2, n + 2, STRIDE), n - 1) for n in (50, 66)]
        shown = crop[np.ix_(*centers)]
        assert np.array_equal(cells == IGNORE, shown == IGNORE)
        assert (cells == shown).mean() > 0.8  # a cell may lie up to 3 source pixels beside it


# one class in a crop


def two_halves() -> Sample:
    label = np.zeros((384, 512), np.uint8)
    label[:, 256:] = 1
    label[:8] = IGNORE
    return Sample(np.zeros((384, 512, 3), np.uint8), label)


def exact_share(label: np.ndarray) -> float:
    counts = np.bincount(label[label != IGNORE].ravel())
    return counts.max() / counts.sum() if len(counts) else 1.0


def test_crops_of_one_class_are_drawn_again():
    rule = {"scale_range": (1, 1), "flip": False}
    sample, thumb = two_halves(), thumbnail(two_halves().label)
    free, bound = (TrainTransform((128, 128), cat_max_ratio=r, **rule) for r in (1.0, 0.75))
    shares = {free: [], bound: []}
    for seed in range(300):
        for transform, found in shares.items():
            drawn = transform.draw((384, 512), RNG(seed), thumb=thumb)
            found.append(exact_share(transform.apply(sample, drawn).label))
    above = {t: np.mean(np.array(found) >= 0.75) for t, found in shares.items()}
    chance = 1 - 63 / 385  # of 385 places 63 hold more than 32 columns of both halves
    assert abs(above[free] - chance) < 0.07
    assert abs(above[bound] - chance ** (1 + CROP_REDRAWS)) < 0.07  # all eleven draws failed


def test_a_first_draw_within_the_limit_stays_as_it_is():
    thumb = thumbnail(two_halves().label)
    kept, free = (TrainTransform((128, 128), cat_max_ratio=r) for r in (0.999, 1.0))
    for seed in range(50):
        one, two = (t.draw((384, 512), RNG(seed), thumb=thumb) for t in (kept, free))
        if largest_share(thumb, two.window, IGNORE) < 0.999:
            assert one == two


def test_shares_leave_ignored_pixels_out():
    thumb = thumbnail(two_halves().label)
    assert largest_share(thumb, (0, 0, 384, 512), IGNORE) == 0.5
    assert largest_share(thumb, (0, 0, 384, 256), IGNORE) == 1.0
    assert largest_share(thumb, (0, 0, 8, 512), IGNORE) == 1.0
    assert largest_share(thumb, (9, 9, 1, 1), IGNORE) == 1.0  # no cell at all


def test_the_outline_of_a_patch_is_no_boundary():
    """As docs/recipe.md says: boundaries are those that the two pictures had."""
    label = torch.zeros(2, 8, 12, dtype=torch.uint8)
    label[1] = 3
    edge = torch.zeros_like(label)
    edge[1, 4] = 1
    batch = {"image": torch.zeros(2, 3, 8, 12), "label": label, "boundary": edge}
    paste(batch, [Patch(1, 2, 2, 6, 8), Patch(0, 0, 0, 8, 6)])
    expected = torch.zeros_like(edge)
    expected[0, 4, 2:8] = expected[1, 4, 6:] = 1
    assert torch.equal(batch["boundary"], expected)
    assert (batch["label"][0, 2:6, 2:8] == 3).all() and not batch["label"][1, :, :6].any()


# the calm end, flips by turns


def test_calm_crops_have_scale_one_and_nothing_but_flips():
    strong = scenes(cutmix=1.0, color="photometric", scale_log=True)
    for batch in batches(strong, calm=True):
        assert "coarse" not in batch
        for image, name in zip(batch["image"], batch["name"], strict=True):
            whole = strong.transform.normalize(strong.load(int(name[-6:])).image)
            views = torch.from_numpy(whole).unfold(1, 48, 1).unfold(2, 64, 1)
            same = [
                (views == view[:, None, None]).all((0, 3, 4)) for view in (image, image.flip(2))
            ]
            assert (same[0] | same[1]).any()  # it is a window of its scene, mirrored or not
    drawn, coarse = strong.transform.draw_for(Draw(0, 3, calm=True), (96, 128), None)
    assert drawn.color == () and drawn.size == drawn.window[2:] == (48, 64) and coarse is None


@pytest.mark.parametrize(
    ("low", "high", "factor"), [(0.5, 2.0, 1.0), (1.2, 2.0, 1.2), (0.3, 0.8, 0.8)]
)
def test_the_calm_scale_is_the_nearest_that_is_allowed(low, high, factor):
    assert TrainTransform((8, 8), scale_range=(low, high)).calm_factor((8, 8)) == factor


@pytest.mark.parametrize(
    ("size", "rule", "factor"),
    [
        ((60, 80), {}, 1.6),  # height decides
        ((96, 64), {}, 1.875),  # width decides
        ((96, 120), {}, 1.0),  # fills as it is
        ((200, 300), {}, 1.0),
        ((40, 50), {}, 2.0),  # cannot fill
        ((60, 80), {"scale_range": (0.5, 1.3)}, 1.3),
        ((40, 50), {"scale_range": (0.5, 2.1), "scale_step": 0.5}, 2.0),
        ((480, 640), {"base_size": 80}, 1.6),  # 60 x 80 at factor 1
        ((480, 640), {"base_size": 640, "short_side": 48}, 2.0),
    ],
    ids=str,
)
def test_a_calm_crop_is_enlarged_until_it_is_filled(size, rule, factor):
    transform = TrainTransform((96, 120), **{"scale_range": (0.5, 2.0), **rule}, flip=False)
    assert transform.calm_factor(size) == pytest.approx(factor)
    drawn = transform.draw(size, RNG(0), calm=True)
    image = np.full((*size, 3), 255, np.uint8)
    found = transform.apply(Sample(image, np.zeros(size, np.uint8)), drawn)
    filled = all(
        side * factor * transform.base_scale(size) >= crop - 0.5
        for side, crop in zip(size, (96, 120), strict=True)
    )
    assert bool((found.label == 0).all()) == filled


def test_every_image_is_mirrored_in_every_other_epoch():
    sampler = EpochBatchSampler(200, 10, seed=4)
    turns = []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        turns.append({d.index: d.mirror for d in itertools.chain(*sampler)})
    assert turns[0] == turns[2] and turns[1] == turns[3]
    assert all(turns[0][index] != turns[1][index] for index in range(200))
    assert 70 < sum(turns[0].values()) < 130
    sampler.set_epoch(0, start_batch=7)
    assert all(d.mirror == turns[0][d.index] for d in itertools.chain(*sampler))


def test_flips_by_turns_are_those_of_the_draw():
    rule = TrainTransform((48, 64), flip="alternate", color=True)
    random = TrainTransform((48, 64), color=True)
    for seed, mirror in itertools.product(range(20), (False, True)):
        drawn, _ = rule.draw_for(Draw(0, seed, mirror), (96, 128), None)
        assert drawn.mirrored == mirror
        assert drawn == random.draw((96, 128), RNG(seed))._replace(mirrored=mirror)


def test_scales_are_even_in_their_logarithm():
    rule, rng = TrainTransform((8, 8), scale_range=(0.5, 2.0), scale_log=True), RNG(0)
    factors = np.array([rule.draw_factor(rng) for _ in range(4000)])
    assert 0.5 <= factors.min() < 0.51 and 1.98 < factors.max() <= 2.0
    assert abs((factors < 1).mean() - 0.5) < 0.03
    assert abs((factors < 0.5**0.5).mean() - 0.25) < 0.03


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"flip": "both"}, "flip is 'both'; accepted: none, random, alternate"),
        ({"color": "grey"}, "color is 'grey'; accepted: none, jitter, photometric"),
        ({"scale_log": True, "scale_step": 0.25}, "scale_log with scale step 0.25"),
    ],
)
def test_bad_arguments_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        TrainTransform((8, 8), **change)


# the photometric distortion


def distorted(image, changes):
    """As mmsegmentation does it: float32, cut to bytes after every step, hue in half degrees."""
    for name, amount in changes:
        if name == "shift":
            image = np.clip(image.astype(np.float32) + 32 * amount, 0, 255).astype(np.uint8)
        elif name == "gain":
            image = np.clip(image.astype(np.float32) * (1 + amount / 2), 0, 255).astype(np.uint8)
        else:
            hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV).astype(np.float32)
            if name == "purity":
                hsv[..., 1] = np.clip(hsv[..., 1] * (1 + amount / 2), 0, 255)
            else:
                hsv[..., 0] = (hsv[..., 0].astype(int) + round(18 * amount)) % 180
            image = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)
    return image


def test_photometric_changes_are_those_of_mmsegmentation():
    small = RNG(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    image = cv2.resize(small, (40, 40), interpolation=cv2.INTER_CUBIC)
    seen = set()
    for seed in range(600):
        changes = draw_color(RNG(seed), "photometric")
        error = np.abs(recolor(image, changes).astype(int) - distorted(image, changes))
        assert error.mean() < 4 and np.quantile(error, 0.99) < 20
        seen.add(tuple(change.operation for change in changes))
    shift, gain, purity, tint = PHOTOMETRIC
    assert (shift, gain, purity, tint) in seen and (shift, purity, tint, gain) in seen
    assert () in seen and len(seen) == 22  # 16 sets, of which 6 have two orders
    with pytest.raises(ValueError, match="accepted: jitter, photometric"):
        draw_color(RNG(0), "sepia")


def test_each_property_changes_every_second_time_and_in_its_range():
    drawn = [draw_color(RNG(seed), "photometric") for seed in range(2000)]
    for operation in PHOTOMETRIC:
        amounts = [c.amount for changes in drawn for c in changes if c.operation == operation]
        assert abs(len(amounts) / 2000 - 0.5) < 0.05
        assert -1 <= min(amounts) < -0.98 and 0.98 < max(amounts) <= 1
