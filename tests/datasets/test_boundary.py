import numpy as np
import pytest

from datasets import label_boundary


def blocks(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Patches of random classes, some ignored."""
    step = int(rng.integers(3, 12))
    small = rng.choice([0, 1, 2, 5, 18, 255], (height // step + 1, width // step + 1))
    return np.kron(small, np.ones((step, step)))[:height, :width].astype(np.uint8)


@pytest.mark.parametrize("case", ["edge_a", "edge_b"])
def test_equals_the_official_target(shared, case):
    arrays = np.load(shared / "parity/losses_pidnet.npz")
    assert np.array_equal(label_boundary(arrays[f"{case}/label"]), arrays[f"{case}/edge"])


def test_a_straight_outline_is_four_pixels_wide_and_starts_six_from_the_border():
    label = np.zeros((24, 24), np.uint8)
    label[:, 12:] = 1
    expected = np.zeros_like(label)
    # Canny marks column 11; a 4x4 square with its anchor at (2, 2) reaches 2 back and 1 on.
    expected[5:20, 10:14] = 1
    result = label_boundary(label)
    assert result.dtype == np.uint8
    assert np.array_equal(result, expected), f"\n{result}"


def test_the_outline_of_an_ignored_region_counts():
    label = np.full((40, 40), 3, np.uint8)
    label[15:25, 15:25] = 255
    result = label_boundary(label)
    assert result[15, 15:25].all() and not result[19:21, 19:21].any()


def test_one_region_has_no_boundary():
    assert not label_boundary(np.full((30, 30), 255, np.uint8)).any()


def test_a_window_equals_the_same_part_of_the_whole():
    rng = np.random.default_rng(0)
    for _ in range(200):
        height, width = (int(n) for n in rng.integers(10, 70, 2))
        label = blocks(rng, height, width)
        rows, columns = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
        top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
        part = label_boundary(label, (top, left, rows, columns))
        whole = label_boundary(label)[top : top + rows, left : left + columns]
        assert np.array_equal(part, whole), (height, width, top, left, rows, columns)
