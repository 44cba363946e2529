"""LRFormer's low-resolution attention: its grids, its formula written out, its cost."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models import build_model
from models.layers.conv import ResidualDepthwise
from models.lrformer import LowResolutionAttention, PyramidPool, pooled_grid
from utils.benchmark import count_macs


def sharp(num_heads: int, channels: int, query_size: int) -> LowResolutionAttention:
    """A layer whose scores are far from uniform and whose norm and biases do something."""
    torch.manual_seed(0)
    layer = LowResolutionAttention(channels, num_heads, query_size).eval()
    for linear in (layer.query, layer.key_value, layer.project):
        nn.init.normal_(linear.weight, 0, 0.5)
        nn.init.normal_(linear.bias, 0, 0.3)
    nn.init.uniform_(layer.norm.weight, 0.5, 1.5)
    nn.init.normal_(layer.norm.bias, 0, 0.3)
    return layer


def multiply_adds(layer: nn.Module, channels: int, side: int) -> float:
    """Without those of the pooling."""
    x = torch.empty(1, channels, side, side, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(x)
    with FlopCounterMode(display=False) as pooling, torch.no_grad():
        layer.pool(x)
    return (counter.get_total_flops() - pooling.get_total_flops()) / 2


@pytest.mark.parametrize(
    ("height", "width", "size", "grid"),
    [
        (24, 40, 16, (16, 27)),
        (24, 40, 11, (11, 18)),
        (24, 40, 8, (8, 13)),
        (24, 40, 6, (6, 10)),
        (24, 40, 4, (4, 7)),
        (45, 28, 16, (26, 16)),
        (45, 28, 11, (18, 11)),
        (45, 28, 8, (13, 8)),
        (45, 28, 6, (10, 6)),
        (45, 28, 4, (6, 4)),
        (7, 10, 16, (16, 23)),
        (7, 10, 4, (4, 6)),
        (32, 33, 16, (16, 17)),  # 16.5: up, not to the even neighbour
        (33, 32, 16, (17, 16)),
        (32, 35, 16, (16, 18)),  # 17.5
        (8, 9, 4, (4, 5)),  # 4.5
        (128, 128, 11, (11, 11)),
        (1, 3, 16, (16, 48)),
    ],
)
def test_pooled_grid(height, width, size, grid):
    assert pooled_grid(height, width, size) == grid


def adaptive_pool(x: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Means over cells from floor(i * side / cells) to ceil((i + 1) * side / cells)."""
    height, width = x.shape[1:]
    out = np.empty((len(x), *grid))
    for i in range(grid[0]):
        for j in range(grid[1]):
            rows = slice(i * height // grid[0], -(-(i + 1) * height // grid[0]))
            columns = slice(j * width // grid[1], -(-(j + 1) * width // grid[1]))
            out[:, i, j] = x[:, rows, columns].mean((1, 2))
    return out


def interpolation(source: int, target: int) -> np.ndarray:
    """Weights (target, source) of linear interpolation with half-pixel centres."""
    weights = np.zeros((target, source))
    for i in range(target):
        at = min(max((i + 0.5) * source / target - 0.5, 0), source - 1)
        low = int(at)
        weights[i, low] += 1 - (at - low)
        weights[i, min(low + 1, source - 1)] += at - low
    return weights


def depthwise(x: np.ndarray, conv: nn.Conv2d) -> np.ndarray:
    weight, bias = conv.weight.double().numpy()[:, 0], conv.bias.double().numpy()
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    shifts = [(i, j) for i in range(3) for j in range(3)]
    return bias[:, None, None] + sum(
        weight[:, i, j, None, None] * padded[:, i : i + x.shape[1], j : j + x.shape[2]]
        for i, j in shifts
    )


def attention_written_out(layer, x: np.ndarray, sides: tuple[int, ...], refine) -> np.ndarray:
    """C, H, W to the same; sides: of the queries' grid, then of the pyramid."""

    def linear(tokens, module):
        return tokens @ module.weight.double().numpy().T + module.bias.double().numpy()

    channels, height, width = x.shape
    grid, *levels = (pooled_grid(height, width, side) for side in sides)
    query = linear(adaptive_pool(x, grid).reshape(channels, -1).T, layer.query)
    tokens = []
    for i, level in enumerate(levels):
        pooled = adaptive_pool(x, level)
        if refine is not None:
            pooled = pooled + depthwise(pooled, refine[i].conv)
        tokens.append(pooled.reshape(channels, -1).T)
    tokens = np.concatenate(tokens)
    tokens = tokens - tokens.mean(1, keepdims=True)
    tokens /= np.sqrt((tokens**2).mean(1, keepdims=True) + 1e-5)
    tokens = tokens * layer.norm.weight.double().numpy() + layer.norm.bias.double().numpy()
    both = linear(tokens, layer.key_value)
    key, value = both[:, :channels], both[:, channels:]
    dim, out = channels // layer.num_heads, []
    for h in range(layer.num_heads):
        part = slice(h * dim, (h + 1) * dim)
        scores = np.exp(query[:, part] @ key[:, part].T / math.sqrt(dim))
        out.append(scores / scores.sum(1, keepdims=True) @ value[:, part])
    y = linear(np.concatenate(out, 1), layer.project).T.reshape(channels, *grid)
    return interpolation(grid[0], height) @ y @ interpolation(grid[1], width).T


@pytest.mark.parametrize("size", [(24, 40), (45, 28), (7, 10), (16, 16), (2, 3), (1, 1)])
@pytest.mark.parametrize("refined", [True, False])
@torch.no_grad()
def test_attention_against_its_formula(size, refined):
    layer = sharp(3, 12, 16)
    refine = nn.ModuleList(ResidualDepthwise(12) for _ in range(4)) if refined else None
    x = torch.randn(2, 12, *size)
    out = layer(x, refine)
    assert out.shape == x.shape
    for n in range(2):
        image = x[n].double().numpy()
        expected = attention_written_out(layer, image, (16, 11, 8, 6, 4), refine)
        np.testing.assert_allclose(out[n], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_attention_of_the_head_uses_twice_the_grid():
    layer, x = sharp(2, 8, 32), torch.randn(1, 8, 9, 14)
    assert layer.pool.sizes == (32, 22, 16, 12, 8)
    expected = attention_written_out(layer, x[0].double().numpy(), (32, 22, 16, 12, 8), None)
    np.testing.assert_allclose(layer(x)[0], expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="8 channels do not split into 3 heads"):
        LowResolutionAttention(8, 3, 16)


@pytest.mark.parametrize("size", [(256, 40), (90, 120), (7, 13), (45, 60), (3, 100), (1, 1)])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_pooling_by_products_is_adaptive_pooling(size, layout):
    x = torch.randn(2, 5, *size).to(memory_format=layout)
    pool = PyramidPool(16)
    levels = pool(x, pool.matrices(x))
    assert pool.means(x) is None and pool.means(x.to("meta")) is not None
    assert [level.shape[2:] for level in levels] == pool.grids(*size)
    for level in levels:
        expected = F.adaptive_avg_pool2d(x.double(), level.shape[2:])
        torch.testing.assert_close(level.double(), expected, rtol=1e-6, atol=1e-6)
    half = pool(x.bfloat16(), pool.matrices(x.bfloat16()))
    for level, exact in zip(half, levels, strict=True):
        assert level.dtype == torch.bfloat16
        torch.testing.assert_close(level.float(), exact, rtol=0.02, atol=0.02)


@pytest.mark.medium
def test_cost_is_linear_in_the_number_of_pixels():
    with torch.device("meta"):
        model, layer = build_model("lrformer_t", 19).eval(), LowResolutionAttention(48, 2, 16)
    side256, side512, side1024 = (count_macs(model, (side, side)) for side in (256, 512, 1024))
    assert side1024 - side512 == 4 * (side512 - side256) > 0
    # Whatever the map, 256 queries meet 121 + 64 + 36 + 16 keys.
    linears = 48 * 48 * (2 * 256 + 2 * 237)
    costs = [multiply_adds(layer, 48, side) for side in (16, 64, 256)]
    assert costs == [linears + 2 * 48 * 256 * 237] * 3
