import cv2
import numpy as np
import pytest

from datasets import (
    DataError,
    EvalTransform,
    Normalize,
    Sample,
    TrainTransform,
    check_crop,
    label_boundary,
)
from datasets.color import _turn_hue, distort_color
from datasets.synthetic import SyntheticScenes
from datasets.transforms import IMAGENET_MEAN, IMAGENET_STD, _span

RNG = np.random.default_rng


def scene(height: int = 40, width: int = 60, seed: int = 0) -> Sample:
    """An image whose red channel is the column and green the row; the label is their sum."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([columns, rows, rows + columns], axis=2).astype(np.uint8)
    return Sample(image, ((rows // 7 + columns // 7) % 5).astype(np.uint8))


def pixels(sample: Sample) -> np.ndarray:
    """The normalised image as 0..255 again, (H, W, 3)."""
    mean, std = (np.array(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((sample.image * std + mean) * 255).transpose(1, 2, 0)


def test_normalisation_is_that_of_imagenet():
    image = RNG(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    expected = (image / 255 - IMAGENET_MEAN) / IMAGENET_STD
    out = Normalize()(image)
    assert out.dtype == np.float32 and out.flags.c_contiguous
    np.testing.assert_allclose(out, expected.transpose(2, 0, 1), atol=1e-6)


def test_a_crop_is_a_window_of_the_source():
    transform = TrainTransform((16, 24), scale_range=(1, 1), flip=False)
    corners = set()
    for seed in range(60):
        source = scene()
        out = transform(source, RNG(seed))
        left, top = (round(float(value)) for value in pixels(out)[0, 0, :2])
        window = (slice(top, top + 16), slice(left, left + 24))
        np.testing.assert_allclose(pixels(out), source.image[window], atol=1e-3)
        assert np.array_equal(out.label, source.label[window])
        corners.add((top, left))
    rows, columns = zip(*corners, strict=True)
    assert min(rows) >= 0 and max(rows) <= 24 and max(columns) <= 36
    assert len(corners) > 40 and max(columns) > 30 and min(columns) < 6


def test_flipping_mirrors_image_label_and_boundary_together():
    kept = TrainTransform((40, 60), scale_range=(1, 1), flip=False, boundary=True)
    turned = TrainTransform((40, 60), scale_range=(1, 1), boundary=True)
    mirrored = 0
    for seed in range(20):
        one, two = kept(scene(), RNG(seed)), turned(scene(), RNG(seed))
        if np.array_equal(one.image, two.image):
            assert np.array_equal(one.label, two.label)
            continue
        mirrored += 1
        assert np.array_equal(one.image[..., ::-1], two.image)
        assert np.array_equal(one.label[:, ::-1], two.label)
        assert np.array_equal(one.boundary[:, ::-1], two.boundary)
    assert 4 <= mirrored <= 16


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.3, 2.0])
def test_scaling_keeps_image_label_and_boundary_aligned(factor):
    transform = TrainTransform((30, 44), scale_range=(factor, factor), flip=False, boundary=True)
    source = scene(90, 120)
    whole = label_boundary(source.label)
    for seed in range(5):
        out = transform(source, RNG(seed))
        # The image tells for every pixel which source pixel it came from.
        positions = pixels(out)
        steps = np.diff(positions[..., 0], axis=1)[:, 2:-2]
        assert abs(steps.mean() * factor - 1) < 0.04
        for array, result in ((source.label, out.label), (whole, out.boundary)):
            assert _lies_within_a_pixel(array, result, positions[..., 1], positions[..., 0])


@pytest.mark.parametrize("factor", [0.5, 0.7, 1.0, 1.3, 1.9])
def test_scaling_the_window_equals_the_window_of_the_scaled_image(factor):
    """As the published loaders do it: scale all of the image, then crop."""
    rng = RNG(5)
    small = rng.integers(0, 256, (14, 20, 3), dtype=np.uint8)
    image = cv2.resize(small, (240, 160), interpolation=cv2.INTER_CUBIC)
    label = np.kron(rng.integers(0, 6, (16, 24), dtype=np.uint8), np.ones((10, 10), np.uint8))
    edge = label_boundary(label)
    transform = TrainTransform((60, 90), scale_range=(factor, factor), flip=False, boundary=True)
    for seed in range(20):
        drawn = transform.draw((160, 240), RNG(seed))
        out = transform.apply(Sample(image, label), drawn)
        (top, left, rows, columns), (high, wide) = drawn.window, drawn.size
        down, right = high / rows, wide / columns
        assert abs(down / factor - 1) < 0.5 / rows + 1e-9  # half a source pixel per side at most
        assert abs(right / factor - 1) < 0.5 / columns + 1e-9
        # The whole image scaled by just these factors, moved so that the window lies at (0, 0).
        to_source = np.array(
            [
                [1 / right, 0, left + 0.5 / right - 0.5],
                [0, 1 / down, top + 0.5 / down - 0.5],
            ]
        )
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        whole = cv2.warpAffine(
            image, to_source, (wide, high), flags=flags, borderMode=cv2.BORDER_REPLICATE
        )
        difference = np.abs(pixels(out)[:high, :wide] - whole)
        inner = difference[2:-2, 2:-2]  # the outermost pixels see no neighbour beyond the window
        assert inner.max() < 6 and inner.mean() < 1 and difference.mean() < 2
        y = np.minimum((np.arange(high) / down).astype(int), rows - 1) + top
        x = np.minimum((np.arange(wide) / right).astype(int), columns - 1) + left
        assert (out.label[:high, :wide] == label[np.ix_(y, x)]).mean() > 0.99
        assert (out.boundary[:high, :wide] == edge[np.ix_(y, x)]).mean() > 0.99


def _lies_within_a_pixel(array, result, rows, columns) -> bool:
    """Whether every value of `result` is in `array` beside the position it came from."""
    found = np.zeros(result.shape, bool)
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            y = np.clip(np.rint(rows + down), 0, array.shape[0] - 1).astype(int)
            x = np.clip(np.rint(columns + right), 0, array.shape[1] - 1).astype(int)
            found |= array[y, x] == result
    return bool(found.all())


def test_what_does_not_fill_the_crop_is_padded_right_and_below():
    transform = TrainTransform(
        (50, 80), scale_range=(1, 1), flip=False, pad_value=127.5, boundary=True
    )
    out = transform(scene(), RNG(0))
    assert np.allclose(pixels(out)[40:], 128) and np.allclose(pixels(out)[:, 60:], 128)
    assert (out.label[40:] == 255).all() and (out.label[:, 60:] == 255).all()
    assert not out.boundary[40:].any() and not out.boundary[:, 60:].any()
    np.testing.assert_allclose(pixels(out)[:40, :60], scene().image, atol=1e-3)
    assert np.array_equal(out.boundary[:40, :60], label_boundary(scene().label))


@pytest.mark.parametrize("scale", [0.37, 0.5, 0.75, 1.0, 1.61, 2.1])
def test_every_result_has_the_size_of_the_crop(scale):
    for height, width in ((40, 60), (41, 33), (7, 120)):
        transform = TrainTransform((32, 48), scale_range=(scale, scale), color=True, boundary=True)
        out = transform(scene(height, width), RNG(3))
        assert out.image.shape == (3, 32, 48) and out.image.dtype == np.float32
        assert out.label.shape == out.boundary.shape == (32, 48)
        assert all(a.flags.c_contiguous for a in (out.image, out.label, out.boundary))


def test_the_source_is_left_alone():
    source, copy = scene(), scene()
    TrainTransform((40, 60), scale_range=(1, 1), color=True)(source, RNG(0))
    assert np.array_equal(source.image, copy.image) and np.array_equal(source.label, copy.label)


def test_scales_are_those_of_the_recipes():
    def drawn(**arguments):
        transform = TrainTransform((8, 8), **arguments)
        rng = RNG(0)
        return sorted({round(transform.draw_factor(rng), 6) for _ in range(2000)})

    pidnet = drawn(scale_range=(0.5, 2.1), scale_step=0.1)
    assert pidnet == [round(0.5 + k / 10, 6) for k in range(17)]
    rtformer = drawn(scale_range=(0.5, 2.0), scale_step=0.25)
    assert rtformer == [0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0]
    continuous = drawn(scale_range=(0.5, 2.0))
    assert len(continuous) > 1900 and min(continuous) < 0.51 and max(continuous) > 1.99


def test_a_base_size_is_the_long_side_at_factor_one():
    transform = TrainTransform((8, 8), base_size=120)
    assert transform.base_scale((40, 60)) == transform.base_scale((60, 40)) == 2.0
    assert transform.largest_size((40, 60)) == (160, 240)
    assert TrainTransform((8, 8)).base_scale((40, 60)) == 1.0


def test_the_window_is_as_large_as_the_crop_after_scaling():
    assert _span(1024, 1024, 0.5) == (1024, 512)
    assert _span(1024, 1024, 2.0) == (512, 1024)
    assert _span(1024, 512, 1.0) == (512, 512)
    assert _span(360, 480, 1.0) == (360, 360)
    assert _span(3, 1, 9.0) == (1, 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"crop_size": (0, 5)}, r"crop size is \(0, 5\)"),
        ({"scale_range": (2.0, 0.5)}, r"scale range is \(2.0, 0.5\)"),
        ({"scale_range": (0, 1)}, "scale range"),
        ({"scale_step": -1}, "scale step -1"),
        ({"pad_value": 256}, "pad value is 256"),
    ],
)
def test_bad_arguments_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        TrainTransform(**({"crop_size": (8, 8)} | change))


def test_a_crop_must_fit_the_largest_scale_of_one_image_at_least():
    transform = TrainTransform((720, 960), scale_range=(0.5, 2.0))
    check_crop(transform, [(360, 480)])
    check_crop(transform, [(100, 100), (360, 480)])
    check_crop(transform, [])
    words = r"crop 720x960 .* \(359x480\) .* \(718x960\); accepted: at most 718x960"
    with pytest.raises(ValueError, match=words):
        check_crop(transform, [(359, 480), (100, 100)])
    stepped = TrainTransform((100, 100), scale_range=(0.5, 2.0), scale_step=0.4)
    check_crop(stepped, [(59, 59)])
    with pytest.raises(ValueError, match="at most 95x95"):  # 0.5, 0.9, 1.3, 1.7, never 2.0
        check_crop(stepped, [(56, 56)])
    with pytest.raises(ValueError, match="at most 99x99"):
        check_crop(TrainTransform((100, 100), scale_range=(0.5, 1.7)), [(58, 58)])


def test_evaluation_scales_the_image_and_keeps_the_label():
    source = scene(40, 60)
    plain = EvalTransform()(source)
    np.testing.assert_allclose(pixels(plain), source.image, atol=1e-3)
    for size, shape in (((20, 36), (3, 20, 36)), (90, (3, 60, 90)), (30, (3, 20, 30))):
        out = EvalTransform(size)(source)
        assert out.image.shape == shape and out.label is source.label
    with pytest.raises(ValueError, match="evaluation size is 0"):
        EvalTransform(0)


# colour


def test_colour_stays_within_its_ranges():
    gray = np.full((4, 4, 3), 100, np.uint8)
    seen = {int(distort_color(gray, RNG(seed))[0, 0, 0]) for seed in range(200)}
    assert min(seen) >= 60 and max(seen) <= 140 and len(seen) > 20
    assert all(np.ptp(distort_color(gray, RNG(seed))) <= 1 for seed in range(20))


def test_every_second_sample_or_so_keeps_each_property():
    image = np.full((8, 8, 3), (200, 120, 40), np.uint8)
    unchanged = sum(np.array_equal(distort_color(image, RNG(s)), image) for s in range(400))
    assert 8 <= unchanged <= 50  # one in 16


def test_hue_turns_by_at_most_18_steps_and_comes_back():
    image = np.full((2, 2, 3), (200, 40, 40), np.uint8)
    hues = [
        int(cv2.cvtColor(_turn_hue(image, round(18 * amount)), cv2.COLOR_RGB2HSV_FULL)[0, 0, 0])
        for amount in (-1, 0, 1)
    ]
    assert np.abs(np.subtract(hues, [256 - 18, 0, 18])).max() <= 1
    noise = RNG(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)
    error = np.abs(_turn_hue(noise, 0).astype(int) - noise)
    assert error.max() <= 10 and error.mean() < 1.5


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((512, 683), (512, 704)),  # short side reached, long side stretched up to 22 x 32
        ((256, 341), (512, 704)),  # 682 -> 704
        ((1024, 768), (704, 512)),  # 682.7 -> 683 -> 704
        ((300, 2000), (320, 2048)),  # the long side counts first: 307.2 -> 320
        ((512, 2048), (512, 2048)),
    ],
)
def test_published_evaluation_size_of_ade20k(size, expected):
    transform = EvalTransform(short_side=512, long_side=2048, divisor=32)
    assert transform.target_size(size) == expected


def test_scaled_evaluation_leaves_the_label_alone():
    sample = Sample(np.zeros((50, 70, 3), np.uint8), np.ones((50, 70), np.uint8))
    done = EvalTransform(short_side=64, long_side=256, divisor=32)(sample)
    assert done.image.shape == (3, 64, 96) and done.label.shape == (50, 70)


def test_the_base_scale_reaches_the_short_side_within_the_long_one():
    transform = TrainTransform((512, 512), base_size=2048, short_side=512)
    assert transform.base_scale((256, 300)) == 2.0
    assert transform.base_scale((300, 256)) == 2.0
    assert transform.base_scale((512, 4096)) == 0.5
    assert TrainTransform((8, 8), short_side=100).base_scale((200, 9000)) == 0.5
    assert TrainTransform((8, 8)).base_scale((200, 9000)) == 1.0


@pytest.mark.parametrize("bad", [{"short_side": -1}, {"long_side": -1}, {"divisor": 0}])
def test_impossible_evaluation_sides_are_refused(bad):
    with pytest.raises(ValueError, match="accepted: 0 and above"):
        EvalTransform(**bad)


@pytest.mark.parametrize("side", [10**8, 2**31 - 1, 2**40])
def test_a_size_that_cannot_be_is_a_data_error(side):
    sample = Sample(np.zeros((4, 6, 3), np.uint8))
    for transform in (EvalTransform((side, side)), EvalTransform(short_side=side, divisor=8)):
        with pytest.raises(DataError, match=r"^a picture of 4x6 cannot be scaled to \d+x") as told:
            transform(sample)
        assert "\n" not in str(told.value)
    with pytest.raises(DataError, match="a picture of 1x1 cannot be scaled to"):
        TrainTransform((side, side), scale_range=(side, side))(sample, np.random.default_rng(0))


@pytest.mark.parametrize("error", [MemoryError(), DataError("too large")])
def test_what_a_transform_cannot_do_is_told_with_the_image(error):
    def transform(sample, rng):
        raise error

    dataset = SyntheticScenes(0, 2, (48, 64), transform=transform)
    with pytest.raises(DataError, match=rf"^{dataset.name(1)}: (out of memory|too large)$"):
        dataset[1]
