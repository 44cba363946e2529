"""RTFormer: sizes as published, attention against its formulas, conventions of the recipe."""

import numpy as np
import pytest
import torch
from networks import count, multiply_adds
from torch import nn

from models import build_model, fuse
from models.layers.drop_path import DropPath
from models.rtformer import CrossAttention, GroupedAttention, RTFormerBlock

# options; parameters with and without the auxiliary head, 1e9 multiply-adds at 1024x2048
PUBLISHED = [
    ("rtformer_slim", 19, {}, 5_403_398, 5_365_043, 37.79),
    ("rtformer_slim", 19, {"injection": (True, False)}, 5_034_374, 4_996_019, None),
    (
        "rtformer_slim",
        150,
        {"injection": (True, False), "cross_size": 8},
        5_059_788,
        5_012_918,
        None,
    ),
    ("rtformer_base", 19, {}, 17_916_390, 17_765_971, 138.89),
    ("rtformer_base", 150, {}, 17_966_956, 17_799_638, None),
]
NORMS_AFTER_FUSE = {"rtformer_slim": 25, "rtformer_base": 24}


def small(**options):
    return build_model(
        "rtformer_slim", 3, base_channels=4, context_channels=6, head_channels=8, **options
    ).eval()


@pytest.mark.parametrize(("name", "classes", "options", "train", "inference", "macs"), PUBLISHED)
def test_size_is_the_published_one(name, classes, options, train, inference, macs):
    with torch.device("meta"):
        model = build_model(name, classes, **options).eval()
    assert count(model) == train
    del model.aux_head
    assert count(model) == inference
    if macs:
        assert multiply_adds(model) == pytest.approx(macs, abs=0.005)


@pytest.mark.parametrize("name", NORMS_AFTER_FUSE)
def test_norms_left_after_fuse(name):
    fused = fuse(build_model(name, 19, base_channels=4))
    left = [n for n, m in fused.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(left) == NORMS_AFTER_FUSE[name]
    # A ReLU, a max pool, zero padding or the fused attention kernel stands behind each.
    kinds = ("context.", "head.norm", "low_to_high3.norm")
    parts = ("ffn.norm", "low_to_high.norm", "cross_tokens.norm", "high_attention.norm")
    assert all(n.startswith(kinds) or n.endswith((*parts, "injection.norm")) for n in left)


@torch.no_grad()
def test_grouped_attention_formula():
    torch.manual_seed(0)
    attention = GroupedAttention(4, 8, num_heads=2).eval()
    x = torch.randn(2, 4, 5, 6)
    keys = attention.keys.conv.weight[:, :, 0, 0].double().numpy()
    values = attention.values.weight[:, :, 0, 0].double().numpy()
    for n in range(2):
        tokens = x[n, :, ::2, ::2].double().reshape(4, -1).numpy() / np.sqrt(1 + 1e-5)
        scores = np.exp(keys @ tokens)
        scores /= scores.sum(1, keepdims=True)  # over the positions
        heads = scores.reshape(2, 4, -1)
        heads = heads / (heads.sum(1, keepdims=True) + 1e-6)  # over the channels of a head
        expected = values @ heads.reshape(8, -1)
        np.testing.assert_allclose(attention(x)[n].reshape(8, -1), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="8 channels do not split into num_heads=3"):
        GroupedAttention(8, 8, num_heads=3)


@torch.no_grad()
def test_cross_attention_formula():
    attention = CrossAttention(4).eval()
    x, tokens = 3 * torch.randn(2, 4, 5, 6), 3 * torch.randn(2, 8, 3, 3)
    out = attention(x, tokens)
    assert out.shape == x.shape
    for n in range(2):
        query = x[n].double().reshape(4, -1).numpy() / np.sqrt(1 + 1e-5)
        key, value = tokens[n].double().reshape(8, 9).numpy().reshape(2, 4, 9)
        scores = np.exp(key.T @ query / 3)  # sqrt of 9 tokens
        expected = value @ (scores / scores.sum(0))
        np.testing.assert_allclose(out[n].reshape(4, -1), expected, rtol=1e-4, atol=1e-5)


def test_block_order_and_grids():
    torch.manual_seed(0)
    block = RTFormerBlock(8, 16, 32, cross_size=3, drop_path=0.0).eval()
    high, low = torch.randn(1, 8, 13, 21), torch.randn(1, 16, 7, 11)
    kept = high.clone(), low.clone()
    with torch.no_grad():
        new_high, new_low = block(high, low)
        assert new_high.shape == high.shape
        assert new_low.shape == (1, 32, 4, 6)
        assert torch.equal(high, kept[0]) and torch.equal(low, kept[1])
        step = block.low_shortcut(low) + block.low_attention(low)
        step = step + block.low_ffn(step)
        torch.testing.assert_close(new_low - block.injection(new_high), step, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_auxiliary_head_reads_rectified_features():
    model, seen = small(), []
    model.aux_head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model.forward_train(torch.randn(1, 3, 64, 96))
    assert seen[0].min() == 0 and seen[0].max() > 0


def test_conventions_of_the_published_training():
    model = small()
    norms = {n: m for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert {m.momentum for m in norms.values()} == {0.9}
    small_eps = {n for n, m in norms.items() if m.eps == 1e-6}
    assert small_eps == {f"block{i}.{s}_ffn.norm" for i in (4, 5) for s in ("low", "high")}
    assert {m.eps for n, m in norms.items() if n not in small_eps} == {1e-5}
    assert {m.rate for m in model.modules() if isinstance(m, DropPath)} == {0.2}
    assert not model.align_corners
    assert dict(model.lr_multipliers) == {"context": 10.0, "head": 10.0, "aux_head": 10.0}


def test_initial_weights():
    torch.manual_seed(0)
    model = build_model("rtformer_slim", 19)
    for block in (model.block4, model.block5):
        assert block.low_attention.keys.conv.weight.std().item() == pytest.approx(1e-3, rel=0.05)
        assert block.low_attention.values.weight.std().item() == pytest.approx(1e-3, rel=0.05)
        assert block.cross_tokens.conv.weight.std().item() == pytest.approx(0.02, rel=0.05)
        ffn = block.low_ffn.conv1
        assert ffn.weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.02)
        assert not ffn.bias.any()


def test_options():
    assert small(injection=(False, True)).block4.injection is None
    assert small(drop_path=0.0).block4.drop_path.rate == 0
    assert small(cross_size=5).block5.cross_tokens.pool.output_size == 5
    with pytest.raises(ValueError, match="injection is "):
        small(injection=(True,))


@pytest.mark.medium
@torch.no_grad()
def test_exports_with_a_free_batch():
    model = small()
    batch = torch.export.Dim("batch", min=1, max=8)
    x = torch.randn(2, 3, 64, 96)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},), strict=False)
    y = torch.randn(3, 3, 64, 96)
    torch.testing.assert_close(program.module()(y), model(y), rtol=1e-4, atol=1e-4)
