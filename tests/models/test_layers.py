"""Shared layers: what folds equals what it was, and switches do what they say."""

import pytest
import torch
import torch.nn.functional as F
from networks import trained
from torch import nn

from models.layers.bilateral import BilateralStage
from models.layers.context import DAPPM, PAPPM
from models.layers.conv import ConvBN, ConvBNReLU, NormActConv, NormConv, ResidualDepthwise
from models.layers.drop_path import DropPath
from models.layers.head import FCNHead, SegHead
from models.layers.init import classifier_init, kaiming_init
from models.layers.reparam import fuse
from models.layers.residual import BasicBlock, Bottleneck, basic_stage, make_shortcut
from models.layers.resize import resize, resize_like
from models.layers.stem import Stem

FOLDING = [
    ConvBN(6, 8, 3, 2),
    ConvBN(6, 8, 1, bias=True, eps=1e-2),
    ConvBN(6, 12, 3, groups=3),
    NormConv(6, 8),
    NormConv(6, 8, 2, bias=True, eps=1e-2),
    ResidualDepthwise(6),
]


@pytest.mark.parametrize("module", FOLDING, ids=lambda m: type(m).__name__)
@torch.no_grad()
def test_folding_gives_one_equal_convolution(module):
    module, x = trained(module), torch.randn(2, 6, 9, 11)
    expected = module(x)
    folded = fuse(nn.Sequential(module))[0]
    assert isinstance(folded, nn.Conv2d)
    assert folded.bias is not None
    torch.testing.assert_close(folded(x), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(module(x), expected)


@torch.no_grad()
def test_folding_keeps_the_relu():
    module, x = trained(ConvBNReLU(6, 8, 3, 2, groups=2)), torch.randn(2, 6, 9, 11)
    expected = F.relu(module.norm(module.conv(x)))
    torch.testing.assert_close(module(x), expected)
    conv, act = folded = module.fuse()
    assert isinstance(conv, nn.Conv2d) and isinstance(act, nn.ReLU)
    torch.testing.assert_close(folded(x), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_residual_depthwise_adds_its_input():
    layer, x = ResidualDepthwise(6), torch.randn(2, 6, 5, 7)
    added = F.conv2d(x, layer.conv.weight, layer.conv.bias, padding=1, groups=6)
    torch.testing.assert_close(layer(x), x + added)


def test_fuse_leaves_preactivation_norms_and_the_source():
    block = trained(nn.Sequential(NormActConv(4, 4, 3), ConvBN(4, 4, 3)))
    fused = fuse(block.train())
    assert block.training
    assert not fused.training
    assert isinstance(fused[0].norm, nn.BatchNorm2d)
    assert isinstance(fused[1], nn.Conv2d)
    assert isinstance(block[1], ConvBN)


@torch.no_grad()
def test_residual_blocks_add_their_shortcut():
    x = torch.randn(1, 8, 6, 7)
    for block in (BasicBlock(8, 8, last_act=False), Bottleneck(8, 4)):
        block, kept = trained(block), x.clone()
        nn.init.zeros_((block.conv3 if isinstance(block, Bottleneck) else block.conv2).conv.weight)
        last = block.conv3 if isinstance(block, Bottleneck) else block.conv2
        constant = last.norm.bias - last.norm.running_mean * last.norm.weight * torch.rsqrt(
            last.norm.running_var + 1e-5
        )
        torch.testing.assert_close(block(x), x + constant[:, None, None], rtol=1e-4, atol=1e-4)
        assert torch.equal(x, kept)
    assert BasicBlock(8, 16, 2)(x).shape == (1, 16, 3, 4)
    assert Bottleneck(8, 16, 2)(x).shape == (1, 32, 3, 4)


def test_last_block_of_a_stage_has_no_relu_unless_it_is_alone():
    assert [b.last_act for b in basic_stage(4, 4, 3)] == [True, True, False]
    assert [b.last_act for b in basic_stage(4, 4, 1)] == [True]
    assert basic_stage(4, 8, 2, 2)[0].conv1.conv.stride == (2, 2)
    assert [b.last_act for b in basic_stage(4, 4, 3, last_act=True)] == [True] * 3
    assert not Bottleneck(4, 4).last_act and Bottleneck(4, 4, last_act=True).last_act


def test_shortcuts_project_where_the_shape_changes():
    assert isinstance(make_shortcut(4, 4, 1), nn.Identity)
    for shape in ((4, 8, 1), (4, 4, 2), (4, 8, 2)):
        shortcut = make_shortcut(*shape)
        assert isinstance(shortcut, ConvBN)
        assert shortcut.conv.kernel_size == (1, 1) and shortcut.conv.stride == (shape[2],) * 2


@pytest.mark.parametrize(
    "make",
    [
        lambda norm: basic_stage(4, 8, 2, 2, **norm),
        lambda norm: Bottleneck(4, 4, 2, **norm),
        lambda norm: DAPPM(8, 4, 6, **norm),
        lambda norm: PAPPM(8, 4, 6, **norm),
        lambda norm: BilateralStage(nn.Identity(), nn.Identity(), 8, 4, 2, **norm),
        lambda norm: NormConv(4, 4, **norm),
        lambda norm: ConvBNReLU(4, 4, 3, **norm),
    ],
)
def test_eps_and_momentum_reach_every_norm(make):
    for norm in ({}, {"eps": 1e-3, "momentum": 0.03}):
        expected = (norm.get("eps", 1e-5), norm.get("momentum", 0.1))
        norms = [m for m in make(norm).modules() if isinstance(m, nn.BatchNorm2d)]
        assert norms and {(m.eps, m.momentum) for m in norms} == {expected}


@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize("steps", [1, 2])
@torch.no_grad()
def test_branches_exchange_what_they_had_before(steps, rectified):
    low_stage, high_stage = basic_stage(6, 12, 2, 2**steps), basic_stage(4, 4, 2)
    stage = trained(BilateralStage(low_stage, high_stage, 12, 4, steps, rectified=rectified))
    assert [conv.conv.out_channels for conv in stage.down] == {1: [12], 2: [8, 12]}[steps]
    low, high = torch.randn(2, 6, 13, 18), torch.randn(2, 4, 13, 18)
    kept = low.clone(), high.clone()
    new_low, new_high = stage(low, high)
    assert torch.equal(low, kept[0]) and torch.equal(high, kept[1])
    own_low, own_high = low_stage(low), high_stage(high)
    down = own_high
    for conv in stage.down:
        assert conv.conv.kernel_size == (3, 3) and conv.conv.stride == (2, 2)
        down = conv.norm(conv.conv(F.relu(down)))
    up = stage.compress.norm(stage.compress.conv(F.relu(own_low)))
    if rectified:
        own_low, own_high = F.relu(own_low), F.relu(own_high)
    torch.testing.assert_close(new_low, own_low + down)
    up = F.interpolate(up, size=(13, 18), mode="bilinear", align_corners=False)
    torch.testing.assert_close(new_high, own_high + up)
    assert new_low.min() < 0 and new_high.min() < 0  # sums, not rectified


@pytest.mark.parametrize("kind", [DAPPM, PAPPM])
@torch.no_grad()
def test_pyramids_count_the_padding_and_keep_the_grid(kind):
    pyramid = trained(kind(8, 4, 6))
    assert pyramid(torch.randn(2, 8, 5, 9)).shape == (2, 6, 5, 9)
    ones = torch.ones(1, 8, 5, 9)
    assert pyramid.pools[1](ones)[0, 0, 0, 0] == pytest.approx(9 / 25)
    assert pyramid.pools[4](ones).shape == (1, 8, 1, 1)


@torch.no_grad()
def test_dappm_is_hierarchical_and_pappm_is_not():
    x = torch.randn(1, 8, 16, 16)
    deep = trained(DAPPM(8, 4, 6))
    parallel = trained(PAPPM(8, 4, 6))
    for pyramid in (deep, parallel):
        levels = {}
        pyramid.compression.register_forward_pre_hook(
            lambda m, a, at=levels: at.update(before=a[0])
        )
        pyramid(x)
        pyramid.scales[1].conv.weight += 0.5  # enters level 1, in DAPPM also the later ones
        first = levels["before"]
        pyramid(x)
        changed = [
            not torch.allclose(first[:, 4 * k : 4 * k + 4], levels["before"][:, 4 * k : 4 * k + 4])
            for k in range(5)
        ]
        later = pyramid is deep
        assert changed == [False, True, later, later, later]


@torch.no_grad()
def test_stem_and_head_shapes():
    assert Stem(4)(torch.randn(1, 3, 33, 50)).shape == (1, 4, 9, 13)
    assert Stem(4, bias=False).conv1.conv.bias is None
    head, x = trained(SegHead(4, 6, 3)), torch.randn(1, 4, 5, 7)
    kept = x.clone()
    assert head(x).shape == (1, 3, 5, 7)
    assert torch.equal(x, kept)


@torch.no_grad()
def test_fcn_head_against_its_formula():
    head, x = trained(FCNHead(4, 6, 3, depth=2)), torch.randn(2, 4, 5, 7)
    y = x
    for conv in head.convs:
        y = F.relu(conv.norm(F.conv2d(y, conv.conv.weight, padding=1)))
    expected = F.conv2d(y, head.classify.weight, head.classify.bias)
    torch.testing.assert_close(head(x), expected)
    assert len(head.convs) == 2 and len(FCNHead(4, 6, 3).convs) == 1
    torch.manual_seed(0)
    dropped = head.dropout.train()(torch.ones(400, 10, 2, 2))
    assert torch.equal(dropped.amin((2, 3)), dropped.amax((2, 3)))  # whole channels
    assert (dropped[:, :, 0, 0] == 0).float().mean().item() == pytest.approx(0.1, abs=0.02)


def test_resize_is_free_where_nothing_changes():
    x = torch.randn(1, 2, 4, 6)
    assert resize(x, (4, 6)) is x
    assert torch.equal(
        resize(x, (8, 9), align_corners=True),
        F.interpolate(x, (8, 9), mode="bilinear", align_corners=True),
    )
    assert torch.equal(
        resize_like(x, torch.empty(1, 1, 3, 3)),
        F.interpolate(x, (3, 3), mode="bilinear", align_corners=False),
    )


def test_drop_path_keeps_the_mean_and_acts_per_sample():
    torch.manual_seed(0)
    drop, x = DropPath(0.25), torch.ones(4000, 2, 1, 1)
    y = drop(x)
    assert y.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert torch.equal(y[:, 0], y[:, 1])
    assert y.mean().item() == pytest.approx(1, abs=0.05)
    assert drop.eval()(x) is x
    with pytest.raises(ValueError, match=r"drop_path is 1\.0; it must be in"):
        DropPath(1.0)


@pytest.mark.parametrize(("mode", "fan"), [("fan_in", 64 * 9), ("fan_out", 128 * 9)])
def test_kaiming_init(mode, fan):
    torch.manual_seed(0)
    module = trained(ConvBN(64, 128, 3, bias=True))
    kaiming_init(module, mode)
    assert module.conv.weight.std().item() == pytest.approx((2 / fan) ** 0.5, rel=0.02)
    assert not module.conv.bias.any()
    assert torch.equal(module.norm.weight, torch.ones(128))
    assert not module.norm.bias.any()


def test_classifier_init_changes_the_last_convolutions_only():
    torch.manual_seed(0)
    model = nn.Sequential(FCNHead(4, 64, 50), SegHead(4, 64, 50))
    before = {name: value.clone() for name, value in model.named_parameters()}
    classifier_init(model)
    for name, value in model.named_parameters():
        if "classify.weight" in name:
            assert value.std().item() == pytest.approx(0.01, rel=0.05)
        elif "classify.bias" in name:
            assert not value.any()
        else:
            assert torch.equal(value, before[name])


def test_initialisation_leaves_shapes_without_values_alone():
    with torch.device("meta"):
        model = nn.Sequential(FCNHead(4, 8, 3), ConvBN(3, 4, 3))
    kaiming_init(model, "fan_out")
    classifier_init(model)
    assert all(value.is_meta for value in model.parameters())
