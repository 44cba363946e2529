"""Bytes, operations and the least time: by hand, and against what was measured."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models import build_model, fuse
from models.linear_attention import Scale
from utils.benchmark import count_macs
from utils.errors import InputError
from utils.roofline import (
    CARDS,
    KERNEL_SECONDS,
    LEAST_SECONDS,
    PRECISIONS,
    Card,
    expected_ms,
    floor_ms,
    get_card,
    summary,
    trace,
)

RECORD = Path(__file__).resolve().parents[2] / "docs/records/h200_speed_1024x2048.json"
MEASURED = json.loads(RECORD.read_text(encoding="utf-8"))
GRAPHS = {"tf32": "graph fp32 nhwc", "fp16": "graph fp16 nhwc"}
# 1 byte/s of memory, 10 of cache, 100 operations/s: seconds can be read off.
SLOW = Card("slow", 1.0, 0, 10.0, 100.0, 100.0, 100.0)


class Function(nn.Module):
    """`function` of the image and of the parameters named w0, w1, ..."""

    def __init__(self, function, *shapes):
        super().__init__()
        self.function = function
        self.weights = nn.ParameterList(torch.zeros(shape) for shape in shapes)

    def forward(self, x):
        return self.function(x, *self.weights)


def only(layers):
    (layer,) = layers
    return layer


@functools.cache
def traced(name, precision):
    """The layers of the deployed network as it was measured: size, options, and RTLinearFormer's
    scales, which did not fold then."""
    with torch.device("meta"), pytest.MonkeyPatch.context() as patch:
        patch.delattr(Scale, "fuse")
        model = fuse(build_model(name, 19, **MEASURED.get("options", {}).get(name, {})))
    return trace(model, tuple(MEASURED["size"]), dtype=PRECISIONS[precision])


def ranks(values):
    return np.argsort(np.argsort(values))


def test_convolution_by_hand():
    conv = nn.Conv2d(3, 8, 3, stride=2, padding=1, groups=1)
    layer = only(trace(nn.Sequential(conv), (16, 32), batch=2))
    assert (layer.name, layer.op, layer.dtype) == ("0", "convolution", torch.float16)
    read, written = 2 * (2 * 3 * 16 * 32 + 8 * 27 + 8), 2 * (2 * 8 * 8 * 16)
    assert layer.macs == 2 * 8 * 16 * 8 * 27
    assert (layer.bytes_read, layer.bytes_written) == (read, written)
    assert (layer.least_read, layer.least_written) == (read, written)
    assert layer.weighted and not layer.is_fused
    assert next(conv.parameters()).device.type == "cpu" and conv.training
    operations = 2 * layer.macs / 100  # seconds
    memory = read + written  # no cache: all comes from memory
    assert memory > operations
    floor = (memory + LEAST_SECONDS) * 1e3
    assert floor_ms([layer], SLOW, "fp16") == pytest.approx(floor)
    expected = (memory + KERNEL_SECONDS) * 1e3
    assert expected_ms([layer], SLOW, "fp16") == pytest.approx(expected)


def test_matrix_product_by_hand():
    layers = trace(Function(lambda x, w: x @ w, (32, 5)), (16, 32), dtype=torch.float32)
    layer = only(layers)
    assert layer.macs == 3 * 16 * 32 * 5 and layer.weighted
    assert layer.bytes_read == layer.least_read == 4 * (3 * 16 * 32 + 32 * 5)
    assert layer.bytes_written == layer.least_written == 4 * 3 * 16 * 5


def test_time_is_the_longest_of_operations_memory_and_cache():
    layer = only(trace(nn.Conv2d(3, 8, 1), (10, 10)))
    read, written = layer.least_read, layer.least_written  # 664, 1600
    cases = {
        2 * layer.macs / 1.0: Card("a", 1e9, 0, 1e9, 1.0, 1.0, 1.0),
        read - 600 + written - 600: Card("b", 1.0, 600, 1e9, 1e9, 1e9, 1e9),
        written / 2.0: Card("c", 1.0, 10**6, 2.0, 1e9, 1e9, 1e9),
    }
    for seconds, card in cases.items():
        assert floor_ms([layer], card, "fp16") == pytest.approx(seconds * 1e3)


def test_views_cost_nothing():
    def views(x):
        x = x.permute(0, 2, 3, 1).unsqueeze(0)[..., :2].squeeze(0).transpose(1, 2).detach()
        return x.expand(4, -1, -1, -1)

    assert trace(Function(views), (16, 32)) == []


def test_expanded_elements_count_once():
    layer = only(trace(Function(lambda x: x[:, :1].expand(-1, 3, -1, -1) * 2), (16, 32)))
    assert layer.bytes_read == 2 * 16 * 32 and layer.bytes_written == 3 * layer.bytes_read


def test_what_has_no_weights_is_fused():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(True), nn.Softmax(1))
    layers = trace(model, (16, 32))
    assert [layer.op for layer in layers if not layer.is_fused] == ["convolution"]
    assert sum(layer.least_read + layer.least_written for layer in layers[1:]) == 0
    assert floor_ms(layers, SLOW, "fp16") == floor_ms(layers[:1], SLOW, "fp16")
    assert expected_ms(layers, SLOW, "fp16") > expected_ms(layers[:1], SLOW, "fp16")


def test_small_side_of_a_resize_is_what_passes():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1),
        nn.AvgPool2d(4),
        nn.Conv2d(4, 4, 1, bias=False),
        nn.Upsample(scale_factor=8, mode="bilinear"),
        nn.Conv2d(4, 4, 1, bias=False),
    )
    first, second, third = (x for x in trace(model, (16, 32)) if x.weighted)
    small = 2 * 4 * 4 * 8
    assert first.least_written == small and first.bytes_written == 16 * small
    assert second.least_read == small + 2 * 16 and second.least_written == small
    assert third.least_read == small + 2 * 16 and third.least_written == 64 * small


def test_attention_counts_by_operations_alone():
    def attention(x, w):
        q = F.conv2d(x, w).flatten(2).transpose(1, 2).unsqueeze(1)
        return F.scaled_dot_product_attention(q, q, q)

    layers = trace(Function(attention, (4, 3, 1, 1)), (8, 8))
    products = [layer for layer in layers if layer.macs]
    assert [layer.weighted for layer in products] == [True, False, False]
    assert products[1].macs == products[2].macs == 64 * 64 * 4
    assert products[0].least_written == 2 * 64 * 4  # q, not the 64 x 64 scores
    fast = Card("fast", 1e12, 0, 1e12, 1e6, 1e6, 1e6)
    macs = sum(layer.macs for layer in products)
    expected = 2 * macs / 1e6 + LEAST_SECONDS
    assert floor_ms(layers, fast, "fp16") == pytest.approx(expected * 1e3)


def test_products_of_weights_are_made_beforehand():
    layers = trace(Function(lambda x, v, w: x @ (v @ w), (32, 6), (6, 5)), (16, 32))
    made, applied = layers
    assert made.macs and made.constant and made.is_fused and applied.weighted
    assert floor_ms(layers, SLOW, "fp16") == floor_ms([applied], SLOW, "fp16")


def test_summary():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU())
    layers = trace(model, (16, 32))
    total = summary(layers)
    assert total["layers"] == 4 and total["macs"] == 16 * 32 * 8 * 11
    assert total["macs"] == sum(op["macs"] for op in total["ops"].values())
    assert total["ops"]["convolution"]["layers"] == 2
    assert total["ops"]["convolution"]["macs_share"] == 1
    assert sum(op["bytes_share"] for op in total["ops"].values()) == pytest.approx(1)
    assert total["least_bytes"] < total["bytes_read"] + total["bytes_written"]
    json.dumps(total)
    assert summary([])["macs"] == 0


@pytest.mark.parametrize("name", ["rtlinearformer_slim", "lrformer_t", "pidnet_s", "bisenetv2"])
def test_macs_are_those_of_the_benchmark(name):
    with torch.device("meta"):
        model = fuse(build_model(name, 19, **MEASURED.get("options", {}).get(name, {})))
    size = (256, 512)
    assert summary(trace(model, size))["macs"] == count_macs(model, size)
    assert summary(trace(model, size, batch=2))["macs"] == 2 * count_macs(model, size)


def test_names_are_module_paths():
    names = {layer.name for layer in traced("pidnet_s", "fp16") if layer.weighted}
    assert "" not in names and len(names) == 75


@pytest.mark.parametrize("precision", GRAPHS)
def test_floor_is_below_everything_measured(precision):
    card = get_card("h200")
    for name, columns in MEASURED["models"].items():
        floor = floor_ms(traced(name, precision), card, precision)
        word = "fp16" if precision == "fp16" else "fp32"
        times = {column: ms for column, ms in columns.items() if word in column}
        assert times and all(0 < floor <= ms for ms in times.values()), (name, floor, times)


@pytest.mark.parametrize("precision", GRAPHS)
@pytest.mark.parametrize("estimate", [floor_ms, expected_ms])
def test_ranks_are_those_of_measured_graphs(precision, estimate):
    """The floor in fp16 is close to the limit: 0.806, and 0.782 if LEAST_SECONDS were 0."""
    card, models = get_card("h200"), MEASURED["models"]
    told = [estimate(traced(name, precision), card, precision) for name in models]
    measured = [columns[GRAPHS[precision]] for columns in models.values()]
    assert np.corrcoef(ranks(told), ranks(measured))[0, 1] >= 0.8


def test_cards_are_plausible():
    layers = traced("pidnet_s", "fp16")
    for name, card in CARDS.items():
        assert card.name == name
        assert card.fp32 <= card.tf32 < card.fp16 and card.bandwidth < card.l2_bandwidth
        assert card.peak("bf16") == card.peak("fp16") == card.fp16
        assert 0 < floor_ms(layers, card, "fp16") < expected_ms(layers, card, "fp16")
    floors = [floor_ms(layers, CARDS[name], "fp16") for name in ("h200", "a100", "orin64")]
    assert floors == sorted(floors)


def test_unknown_card():
    assert get_card("h200").l2_bytes == 50 * 2**20
    with pytest.raises(InputError, match=r"h20.*did you mean h200.*rtx4090"):
        get_card("h20")
    with pytest.raises(InputError, match=r"tpu.*Known: rtx3090"):
        get_card("tpu")


def test_bad_requests():
    layers = trace(nn.Conv2d(3, 8, 1), (8, 8))
    with pytest.raises(InputError, match=r"int8.*Known: fp32, tf32"):
        floor_ms(layers, SLOW, "int8")
    with pytest.raises(InputError, match=r"traced in torch.float16; precision tf32"):
        expected_ms(layers, SLOW, "tf32")
    with pytest.raises(InputError, match=r"batch 0 of 8x8"):
        trace(nn.Conv2d(3, 8, 1), (8, 8), batch=0)
