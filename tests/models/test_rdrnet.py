"""RDRNet: sizes of both forms as published, and that the deployed form computes the same."""

import copy

import pytest
import torch
import torch.nn.functional as F
from networks import bilinear, count, multiply_adds, trained
from torch import nn

from models import SegModel, build_model, fuse
from models.rdrnet import RPPM, RepBlock, RepProcess, bottleneck_stage, rep_stage

# parameters with the auxiliary head, and deployed without it, where only the blocks and the
# pyramid are merged; 1e9 multiply-adds at 1024x2048 with several paths and deployed
PUBLISHED = {
    "rdrnet_s_simple": (8_833_126, 7_125_363, 49.38, 40.91),
    "rdrnet_s": (8_946_406, 7_200_435, 51.84, 43.37),
    "rdrnet_m": (30_867_366, 25_870_291, 194.47, 161.58),
    "rdrnet_l": (43_345_830, 36_653_011, 283.80, 238.03),
}
# blocks of the stem, of each branch in stages 4 and 5, bottlenecks of each branch in stage 6
DEPTHS = {
    "rdrnet_s_simple": (10, 6, 4, 1),
    "rdrnet_s": (10, 6, 4, 1),
    "rdrnet_m": (10, 6, 4, 1),
    "rdrnet_l": (14, 8, 6, 2),
}
NORMS_AFTER_FUSE = [f"context.scales.{i}.norm" for i in range(5)]
NORMS_AFTER_FUSE += ["context.compression.norm", "context.shortcut.norm", "context.process.0"]
NORMS_AFTER_FUSE += ["head.norm"]


def small(name: str = "rdrnet_s", **options) -> SegModel:
    widths = {"base_channels": 4, "context_channels": 6, "head_channels": 8}
    return trained(build_model(name, 3, **widths, **options))


def merged(model: nn.Module) -> nn.Module:
    """A copy without the auxiliary head in which only blocks and pyramid are merged."""
    model = copy.deepcopy(model)
    del model.aux_head
    for name, module in list(model.named_modules()):
        if isinstance(module, (RepBlock, RepProcess)):
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, module.fuse())
    return model


@pytest.mark.medium
@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_the_published_ones(name):
    with torch.device("meta"):
        model = build_model(name, 19).eval()
        deployed, fused = merged(model), fuse(model)
    train_form, inference_form, macs, deployed_macs = PUBLISHED[name]
    assert count(model) == train_form
    assert count(deployed) == inference_form
    assert count(fused) == pytest.approx(inference_form, rel=0.005)
    assert multiply_adds(model) == pytest.approx(macs, abs=0.005)
    assert multiply_adds(deployed) == pytest.approx(deployed_macs, abs=0.005)
    assert multiply_adds(fused) == pytest.approx(deployed_macs, abs=0.005)


@pytest.mark.parametrize("name", PUBLISHED)
def test_deployed_form_has_one_convolution_per_block(name):
    with torch.device("meta"):
        model = build_model(name, 19).eval()
        fused = fuse(model)
    left = [n for n, m in fused.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert sorted(left) == sorted(NORMS_AFTER_FUSE)
    blocks = [n for n, m in model.named_modules() if isinstance(m, RepBlock)]
    stem, low, high, _ = DEPTHS[name]
    assert len(blocks) == stem + 2 * (low + high)
    for block in blocks:
        convs = [m for m in fused.get_submodule(block).modules() if isinstance(m, nn.Conv2d)]
        assert [conv.kernel_size for conv in convs] == [(3, 3)]
    process = [m for m in fused.context.process.modules() if isinstance(m, nn.Conv2d)]
    assert [(conv.kernel_size, conv.groups) for conv in process] == [((3, 3), 4)]


@pytest.mark.parametrize("name", PUBLISHED)
def test_depths_and_where_a_stack_ends_without_relu(name):
    model = small(name)
    stem, low, high, last = DEPTHS[name]
    assert len(model.stem) == stem and all(block.act for block in model.stem)
    strides = [block.conv3x3.conv.stride[0] for block in model.stem]
    assert strides.count(2) == 3 and strides[:2] == [2, 2]
    for stage in (model.stage4, model.stage5):
        assert (len(stage.low), len(stage.high)) == (low, high)
        for stack in (stage.low, stage.high):
            assert [block.act for block in stack] == [True] * (len(stack) - 1) + [False]
        assert [block.conv3x3.conv.stride[0] for block in stage.low] == [2] + [1] * (low - 1)
        assert {block.conv3x3.conv.stride[0] for block in stage.high} == {1}
    for stack, stride in ((model.low6, 2), (model.high6, 1)):
        assert len(stack) == last and not any(block.last_act for block in stack)
        assert stack[0].conv2.conv.stride == (stride, stride)


def paths_written_out(block: RepBlock, x: torch.Tensor) -> torch.Tensor:
    """The block's formula from its tensors, path by path."""

    def normed(y, norm):
        scale = norm.weight / torch.sqrt(norm.running_var + 1e-3)
        return (y - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[
            :, None, None
        ]

    conv, stride = block.conv3x3.conv, block.conv3x3.conv.stride
    y = normed(F.conv2d(x, conv.weight, stride=stride, padding=1), block.conv3x3.norm)
    first, second = block.conv1x1
    point = normed(F.conv2d(x, first.conv.weight, first.conv.bias, stride=stride), first.norm)
    y = y + normed(F.conv2d(point, second.conv.weight, second.conv.bias), second.norm)
    if stride == (1, 1) and x.shape[1] == y.shape[1]:
        y = y + normed(x, block.identity)
    else:
        assert block.identity is None
    return y.clamp_min(0) if block.act else y


@pytest.mark.parametrize("act", [True, False])
@pytest.mark.parametrize(
    ("channels", "stride"), [((8, 8), 1), ((8, 8), 2), ((6, 10), 1), ((6, 10), 2)]
)
@torch.no_grad()
def test_block_and_its_fusion_equal_the_written_out_paths(channels, stride, act):
    block = trained(RepBlock(*channels, stride, act=act))
    x = torch.randn(2, channels[0], 9, 12, dtype=torch.float64)
    for dtype, relative in ((torch.float64, 1e-10), (torch.float32, 1e-6)):
        network, image = copy.deepcopy(block).to(dtype), x.to(dtype)
        expected = paths_written_out(copy.deepcopy(network).double(), image.double())
        limit = relative * expected.abs().max()
        assert (network(image) - expected).abs().max() <= limit
        fused = copy.deepcopy(network).fuse()
        assert (fused(image) - expected).abs().max() <= limit
        assert {p.dtype for p in fused.parameters()} == {dtype}
        assert isinstance(fused, nn.Sequential if act else nn.Conv2d)


@pytest.mark.parametrize("path", ["conv3x3", "conv1x1.0", "conv1x1.1", "identity"])
@torch.no_grad()
def test_every_path_counts(path):
    block = trained(RepBlock(8, 8, act=False))
    x = torch.randn(2, 8, 9, 12)
    before = block(x), copy.deepcopy(block).fuse()(x)
    module = block.get_submodule(path)
    norm = module if isinstance(module, nn.BatchNorm2d) else module.norm
    norm.running_mean += 1
    after = block(x), copy.deepcopy(block).fuse()(x)
    for old, new in zip(before, after, strict=True):
        assert (new - old).abs().max() > 0.01
    torch.testing.assert_close(after[1], after[0], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_pyramid_convolutions_merge():
    process = trained(RepProcess(24, 4))
    x = torch.randn(2, 24, 5, 7, dtype=torch.float64)
    for dtype, relative in ((torch.float64, 1e-10), (torch.float32, 1e-6)):
        network = copy.deepcopy(process).to(dtype)
        double = copy.deepcopy(network).double()
        rectified = F.relu(double.norm(x.to(dtype).double()))
        expected = sum(
            conv.norm(F.conv2d(rectified, conv.conv.weight, padding=1, groups=4))
            for conv in double.convs
        )
        limit = relative * expected.abs().max()
        assert (network(x.to(dtype)) - expected).abs().max() <= limit
        fused = network.fuse()
        assert (fused(x.to(dtype)) - expected).abs().max() <= limit
    pyramid = trained(RPPM(8, 6, 10))
    assert isinstance(pyramid.process, RepProcess) and pyramid.process.convs[0].conv.groups == 4
    y = torch.randn(2, 8, 5, 7)
    torch.testing.assert_close(fuse(pyramid)(y), pyramid(y), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_fused_network_in_both_precisions():
    model, x = small(), torch.randn(1, 3, 65, 97)
    for dtype, relative in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        model = model.to(dtype)
        before, after = model(x.to(dtype)), fuse(model)(x.to(dtype))
        assert (after - before).abs().max() <= relative * before.abs().max()


@torch.no_grad()
def test_network_against_its_formula():
    model, x = small(), torch.randn(2, 3, 97, 130)
    y = model.stem(x)
    low, high = model.stage4.low(y), model.stage4.high(y)
    low4 = low + model.stage4.down[0](F.relu(high))
    high4 = high + bilinear(model.stage4.compress(F.relu(low)), high)
    low, high = model.stage5.low(F.relu(low4)), model.stage5.high(F.relu(high4))
    first, second = model.stage5.down
    low5 = low + second(F.relu(first(F.relu(high))))
    high5 = high + bilinear(model.stage5.compress(F.relu(low)), high)
    high6 = model.high6(F.relu(high5))
    logits = model.head(high6 + bilinear(model.context(model.low6(F.relu(low5))), high6))
    out = model.forward_train(x)
    assert logits.shape == (2, 3, 13, 17)
    torch.testing.assert_close(out.logits, logits, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(out.aux[0], model.aux_head(high4), rtol=1e-4, atol=1e-3)
    assert high4.min() < 0 < high4.max()


def test_conventions_of_the_published_training():
    model = small()
    norms = {n: m for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    heads = {n for n in norms if n.startswith(("head.", "aux_head."))}
    assert heads == {f"{h}.{n}" for h in ("head", "aux_head") for n in ("norm", "conv.norm")}
    assert {(norms[n].eps, norms[n].momentum) for n in heads} == {(1e-5, 0.1)}
    others = {(m.eps, m.momentum) for n, m in norms.items() if n not in heads}
    assert others == {(1e-3, 0.03)}
    assert not model.align_corners


def test_initial_weights():
    torch.manual_seed(0)
    model = build_model("rdrnet_s", 19)
    block = model.stage5.low[1]
    assert block.conv3x3.conv.weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.02)
    assert block.conv1x1[0].conv.weight.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.02)
    assert not block.conv1x1[0].conv.bias.any()
    grouped = model.context.process.convs[1].conv
    assert grouped.weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.02)
    assert model.head.classify.weight.std().item() == pytest.approx((2 / 19) ** 0.5, rel=0.05)


@pytest.mark.parametrize(
    "blocks",
    [
        (4, 3, (5, 4), (5, 4)),
        (4, 3, (5, 4), (5, 4), (1, 1), (1, 1)),
        (4, 3, (5, 4), (5, 4), 1),
        (4, 3, (5, 4), (5, 4, 3), (1, 1)),
        (4, 3, (0, 4), (5, 4), (1, 1)),
        (4, 3, (5, 4), (5, 4), (1, 0)),
        (4, 3.5, (5, 4), (5, 4), (1, 1)),
        ("4", 3, (5, 4), (5, 4), (1, 1)),
        (-1, 3, (5, 4), (5, 4), (1, 1)),
        (4, -3, (5, 4), (5, 4), (1, 1)),
        "4,3",
        (),
    ],
)
def test_bad_depths_are_refused(blocks):
    with pytest.raises(ValueError, match=r"blocks_per_stage is .*three pairs") as e:
        small(blocks_per_stage=blocks)
    assert "\n" not in str(e.value)


def test_depths_are_options():
    model = small(blocks_per_stage=[1, 0, [1, 2], [2, 1], [3, 2]])
    stages = model.stage4.low, model.stage4.high, model.stage5.low, model.stage5.high
    assert [len(s) for s in (model.stem, *stages)] == [4, 2, 2, 3, 1]
    assert [b.last_act for b in bottleneck_stage(4, 4, 3)] == [False, True, False]
    assert [b.act for b in rep_stage(4, 4, 1)] == [False]
    assert model(torch.randn(1, 3, 33, 70)).shape == (1, 3, 5, 9)


@pytest.mark.medium
@torch.no_grad()
def test_both_forms_export_with_a_free_batch():
    options = {"blocks_per_stage": (1, 1, (2, 2), (2, 2), (2, 2))}
    batch = torch.export.Dim("batch", min=1, max=8)
    x, y = torch.randn(2, 3, 65, 96), torch.randn(3, 3, 65, 96)
    for network in (small(**options), fuse(small(**options))):
        program = torch.export.export(network, (x,), dynamic_shapes=({0: batch},), strict=False)
        expected = network(y)
        assert (program.module()(y) - expected).abs().max() <= 1e-4 * expected.abs().max()
