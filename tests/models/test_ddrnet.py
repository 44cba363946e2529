"""DDRNet: sizes as published, what the branches exchange, what the auxiliary head reads."""

import pytest
import torch
import torch.nn.functional as F
from networks import count, multiply_adds, trained
from torch import nn

from models import SegModel, build_model, fuse
from models.layers.context import DAPPM
from models.layers.residual import BasicBlock, Bottleneck

# parameters with and without the auxiliary head, 1e9 multiply-adds at 1024x2048
PUBLISHED = {
    "ddrnet_23_slim": (5_734_342, 5_695_987, 36.28),
    "ddrnet_23": (20_299_366, 20_148_947, 143.06),
    "ddrnet_39": (32_660_838, 32_360_275, 281.12),
}
CONTEXT_NORMS = [f"context.scales.{i}.norm" for i in range(5)]
CONTEXT_NORMS += ["context.compression.norm", "context.shortcut.norm"]
CONTEXT_NORMS += [f"context.process.{i}.norm" for i in range(4)]


def small(name: str = "ddrnet_23_slim", **options) -> SegModel:
    """A narrow network in eval mode whose BatchNorms do something."""
    widths = {"base_channels": 4, "context_channels": 6, "head_channels": 8}
    return trained(build_model(name, 3, **widths, **options))


@pytest.mark.parametrize("name", PUBLISHED)
def test_size_is_the_published_one(name):
    with torch.device("meta"):
        model = build_model(name, 19).eval()
        fused = fuse(model)
    train_form, inference_form, macs = PUBLISHED[name]
    assert count(model) == train_form
    assert count(model) - count(model.aux_head) == inference_form
    assert count(fused) == pytest.approx(inference_form, rel=0.005)
    assert multiply_adds(model) == pytest.approx(macs, abs=0.005)
    assert multiply_adds(fused) == pytest.approx(macs, abs=0.005)


@pytest.mark.parametrize("name", PUBLISHED)
def test_norms_left_after_fuse_follow_no_convolution(name):
    with torch.device("meta"):
        fused = fuse(build_model(name, 19))
    left = [n for n, m in fused.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert sorted(left) == sorted([*CONTEXT_NORMS, "head.norm"])


@pytest.mark.parametrize(
    ("name", "blocks", "exchanges"),
    [
        ("ddrnet_23_slim", (2, 2, 2, 2), 1),
        ("ddrnet_23", (2, 2, 2, 2), 1),
        ("ddrnet_39", (3, 4, 6, 3), 2),
    ],
)
def test_depths(name, blocks, exchanges):
    model = small(name)
    depth1, depth2, depth3, depth4 = blocks
    assert [len(model.stage1), len(model.stage2)] == [depth1, depth2]
    assert len(model.stage3) == exchanges
    for stage in model.stage3:
        assert len(stage.low) == len(stage.high) == depth3 // exchanges
        assert len(stage.down) == 1
    assert len(model.stage4.low) == len(model.stage4.high) == depth4
    assert len(model.stage4.down) == 2
    # Only the first block of stage 3 halves the grid, however often the branches meet.
    assert [s.low[0].conv1.conv.stride[0] for s in model.stage3] == [2] + [1] * (exchanges - 1)
    assert isinstance(model.low5, Bottleneck) and isinstance(model.high5, Bottleneck)
    assert isinstance(model.context, DAPPM)
    for stack in (model.stage2, *(s.low for s in model.stage3), model.stage4.high):
        acts = [block.last_act for block in stack if isinstance(block, BasicBlock)]
        assert acts == [True] * (len(stack) - 1) + [False]


@torch.no_grad()
def test_branches_resolutions():
    model, seen = small("ddrnet_39"), {}
    names = ("stage1", "stage2", "stage3.0", "stage3.1", "stage4", "low5", "high5", "context")
    for name in names:
        model.get_submodule(name).register_forward_hook(
            lambda module, args, out, name=name: seen.update({name: out})
        )
    model(torch.randn(1, 3, 130, 193))
    shapes = {
        name: [tuple(o.shape[1:]) for o in (out if isinstance(out, tuple) else (out,))]
        for name, out in seen.items()
    }
    assert shapes == {
        "stage1": [(4, 33, 49)],
        "stage2": [(8, 17, 25)],
        "stage3.0": [(16, 9, 13), (8, 17, 25)],
        "stage3.1": [(16, 9, 13), (8, 17, 25)],
        "stage4": [(32, 5, 7), (8, 17, 25)],
        "low5": [(64, 3, 4)],
        "high5": [(16, 17, 25)],
        "context": [(16, 3, 4)],
    }


def exchanged(stage, low, high):
    """The exchange written out: both sides are computed before either receives anything."""
    low, high = stage.low(F.relu(low)), stage.high(F.relu(high))
    down = high
    for conv in stage.down:
        down = conv.norm(F.conv2d(F.relu(down), conv.conv.weight, stride=2, padding=1))
    up = stage.compress.norm(F.conv2d(F.relu(low), stage.compress.conv.weight))
    return low + down, high + F.interpolate(up, size=high.shape[-2:], mode="bilinear")


@pytest.mark.parametrize("name", ["ddrnet_23_slim", "ddrnet_39"])
@torch.no_grad()
def test_network_against_its_formula(name):
    model, x = small(name), torch.randn(2, 3, 97, 130)
    y = model.stage2(F.relu(model.stage1(model.stem(x))))
    low = high = y
    for stage in model.stage3:
        low, high = exchanged(stage, low, high)
    high3 = high
    low, high = exchanged(model.stage4, low, high)
    high = model.high5(F.relu(high))
    context = model.context(model.low5(F.relu(low)))
    logits = model.head(high + F.interpolate(context, size=high.shape[-2:], mode="bilinear"))
    out = model.forward_train(x)
    torch.testing.assert_close(out.logits, logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(out.aux[0], model.aux_head(high3), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["ddrnet_23_slim", "ddrnet_39"])
@torch.no_grad()
def test_auxiliary_head_reads_the_high_branch_before_its_relu(name):
    model, seen = small(name), {}
    model.aux_head.register_forward_pre_hook(lambda module, args: seen.update(aux=args[0].clone()))
    model.stage3[-1].register_forward_hook(
        lambda module, args, out: seen.update(high=out[1].clone())
    )
    model.forward_train(torch.randn(1, 3, 64, 96))
    assert torch.equal(seen["aux"], seen["high"])
    assert seen["aux"].min() < 0 < seen["aux"].max()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"blocks_per_stage": (2, 2, 2)}, r"blocks_per_stage is \(2, 2, 2\); .*four numbers"),
        ({"blocks_per_stage": (2, 2, 2, 2, 2)}, r"blocks_per_stage is .*four numbers"),
        ({"exchanges": 0}, r"2 blocks of stage 3 .*0 exchanges"),
        ({"exchanges": -1}, r"2 blocks of stage 3 .*-1 exchanges"),
        ({"exchanges": 3}, r"2 blocks of stage 3 .*3 exchanges"),
        ({"blocks_per_stage": (2, 2, 0, 2)}, r"blocks_per_stage is .*four numbers of 1 or more"),
        ({"blocks_per_stage": (0, 2, 2, 2)}, r"blocks_per_stage is .*four numbers of 1 or more"),
        ({"blocks_per_stage": (2, -1, 2, 2)}, r"blocks_per_stage is .*four numbers of 1 or more"),
        ({"blocks_per_stage": 2}, "ddrnet_23_slim cannot be built with options"),
        ({"blocks_per_stage": (2, 2, "two", 2)}, "ddrnet_23_slim cannot be built with options"),
    ],
)
def test_bad_depths_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        small(**options)
    assert "\n" not in str(caught.value)


def test_conventions_of_the_published_training():
    model = small()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-5, 0.1)}
    assert not model.align_corners
    biased = {n for n, m in model.named_modules() if getattr(m, "bias", None) is not None}
    biased -= {n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert biased == {"stem.conv1.conv", "stem.conv2.conv", "head.classify", "aux_head.classify"}


def test_initial_weights():
    torch.manual_seed(0)
    model = build_model("ddrnet_23_slim", 19)
    for conv in (model.stage4.low[1].conv2.conv, model.stage4.down[1].conv):
        assert conv.weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.02)
    assert model.head.classify.weight.std().item() == pytest.approx((2 / 19) ** 0.5, rel=0.05)


@pytest.mark.medium
@torch.no_grad()
def test_exports_with_a_free_batch():
    model = fuse(small(blocks_per_stage=(1, 1, 4, 1), exchanges=2))
    batch = torch.export.Dim("batch", min=1, max=8)
    x = torch.randn(2, 3, 65, 96)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},), strict=False)
    y = torch.randn(3, 3, 65, 96)
    torch.testing.assert_close(program.module()(y), model(y), rtol=1e-4, atol=1e-4)
