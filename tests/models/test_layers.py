"""Shared layers: what folds equals what it was, and switches do what they say."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.layers.context import DAPPM, PAPPM
from models.layers.conv import ConvBN, NormActConv, NormConv
from models.layers.drop_path import DropPath
from models.layers.head import SegHead
from models.layers.init import kaiming_init
from models.layers.reparam import fuse
from models.layers.residual import BasicBlock, Bottleneck, basic_stage
from models.layers.resize import resize, resize_like
from models.layers.stem import Stem


def trained(module: nn.Module) -> nn.Module:
    """Eval mode with BatchNorms that do something."""
    torch.manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.3, 3)
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
    return module.eval()


FOLDING = [
    ConvBN(6, 8, 3, 2),
    ConvBN(6, 8, 1, bias=True, eps=1e-2),
    ConvBN(6, 12, 3, groups=3),
    NormConv(6, 8),
    NormConv(6, 8, 2, bias=True, eps=1e-2),
]


@pytest.mark.parametrize("module", FOLDING, ids=lambda m: type(m).__name__)
@torch.no_grad()
def test_folding_gives_one_equal_convolution(module):
    module, x = trained(module), torch.randn(2, 6, 9, 11)
    folded = module.fuse()
    assert isinstance(folded, nn.Conv2d)
    assert folded.bias is not None
    torch.testing.assert_close(folded(x), module(x), rtol=1e-4, atol=1e-5)


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
