"""PIDNet: sizes as published, and the conventions that no weight file states."""

import pytest
import torch
from networks import count, multiply_adds
from torch import nn

from models import build_model, fuse
from models.layers.context import DAPPM, PAPPM
from models.pidnet import BoundaryMerge, LightBoundaryMerge, PixelGuide

# name: parameters with and without training heads, 1e9 multiply-adds at 1024x2048, norms after fuse
PUBLISHED = {
    "pidnet_s": (7_720_935, 7_625_715, 47.19, 9),
    "pidnet_m": (28_763_111, 28_538_515, 177.33, 9),
    "pidnet_l": (37_314_311, 36_939_571, 274.93, 13),
}


def small(**options):
    return build_model("pidnet_s", 3, base_channels=4, context_channels=6, **options).eval()


@pytest.mark.parametrize("name", PUBLISHED)
def test_size_is_the_published_one(name):
    with torch.device("meta"):
        model = build_model(name, 19).eval()
    train_form, inference_form, macs, _ = PUBLISHED[name]
    assert count(model) == train_form
    for head in model.training_only:
        delattr(model, head)
    assert count(model) == inference_form
    assert multiply_adds(model) == pytest.approx(macs, abs=0.005)


@pytest.mark.parametrize("name", PUBLISHED)
def test_norms_left_after_fuse_follow_no_convolution(name):
    fused = fuse(build_model(name, 19, base_channels=8))
    left = [n for n, m in fused.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(left) == PUBLISHED[name][3]
    assert all(n.startswith("context.") or n in ("merge.conv.norm", "head.norm") for n in left)


@torch.no_grad()
def test_training_heads_read_rectified_features():
    model, seen = small(), {}
    for name in ("aux_head", "boundary_head"):
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, args, name=name: seen.update({name: args[0].clone()})
        )
    model.forward_train(torch.randn(1, 3, 64, 96))
    assert all(feature.min() == 0 and feature.max() > 0 for feature in seen.values())
    assert len(seen) == 2


def test_last_upsampling_aligns_corners():
    model, logits = small(), torch.arange(4.0).view(1, 1, 2, 2)
    assert model.align_corners
    assert model.upsample(logits, (3, 3)).flatten().tolist() == [0, 0.5, 1, 1, 1.5, 2, 2, 2.5, 3]


@torch.no_grad()
def test_guide_takes_from_context_where_the_two_agree():
    guide = PixelGuide(4, 2).eval()
    p, i = torch.randn(1, 4, 6, 6), torch.randn(1, 4, 3, 3)
    up = nn.functional.interpolate(i, (6, 6), mode="bilinear")
    for embed in (guide.embed_p, guide.embed_i):
        nn.init.zeros_(embed.conv.weight)
    torch.testing.assert_close(guide(p, i), (p + up) / 2)
    for embed in (guide.embed_p, guide.embed_i):
        nn.init.constant_(embed.norm.bias, 10.0)  # sum of products 200: full agreement
    torch.testing.assert_close(guide(p, i), up)


@torch.no_grad()
def test_merge_takes_details_at_boundaries():
    p, i = torch.randn(2, 1, 4, 5, 5)
    edge = torch.full_like(p, 100.0)
    full = BoundaryMerge(4, 4).eval()
    torch.testing.assert_close(full(p, i, edge), full.conv(p))
    torch.testing.assert_close(full(p, i, -edge), full.conv(i))
    light = LightBoundaryMerge(4, 4).eval()
    torch.testing.assert_close(light(p, i, edge), light.conv_p(p) + light.conv_i(i + p))
    torch.testing.assert_close(light(p, i, -edge), light.conv_p(p + i) + light.conv_i(i))


def test_light_and_full_forms():
    light, full = small(), small(light=False)
    assert isinstance(light.context, PAPPM) and isinstance(light.merge, LightBoundaryMerge)
    assert isinstance(full.context, DAPPM) and isinstance(full.merge, BoundaryMerge)
    assert full(torch.randn(1, 3, 33, 70)).shape == (1, 3, 5, 9)
    deeper = small(stem_blocks=1, branch_blocks=4)
    assert [len(s) for s in (deeper.stage1, deeper.detail3, deeper.stage3)] == [1, 1, 4]


def test_initial_weights():
    torch.manual_seed(0)
    model = build_model("pidnet_s", 19)
    conv = model.stage4[0].conv2.conv
    assert conv.weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.02)
    assert {m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}
    assert {m.eps for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-5}


@torch.no_grad()
def test_mixed_precision_runs_on_the_cpu():
    torch.manual_seed(0)
    model, x = small(), torch.randn(1, 3, 64, 96)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model.forward_train(x)
    full = model(x)
    assert half.logits.dtype == torch.bfloat16
    assert (half.logits.float() - full).abs().mean() < 0.1 * full.abs().mean()
