"""LRFormer: sizes as published, blocks, stem and head against their formulas."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import count, multiply_adds
from torch import nn

from models import SegModel, build_backbone, build_model, fuse
from models.layers.conv import ResidualDepthwise
from models.layers.drop_path import DropPath
from models.lrformer import (
    BACKBONES,
    Block,
    InvertedResidual,
    LayerNorm2d,
    Stem,
)

# parameters with 150 and with 19 classes and of the backbone, drop path rate; 1e9 multiply-adds
# at 512x512 with 150 classes and at 1024x2048 with 19
PUBLISHED = {
    "lrformer_t": (13_264_894, 13_231_227, 11_269_992, 0.1, 16.55, 117.98),
    "lrformer_s": (32_223_670, 32_173_235, 27_861_280, 0.2, 39.72, 287.89),
    "lrformer_b": (67_505_406, 67_438_203, 59_993_192, 0.4, 74.36, 539.47),
    "lrformer_l": (110_979_750, 110_895_779, 99_306_000, 0.6, 121.36, 885.73),
}
HEAD_NORMS = [f"head.block{i}.norm{j}" for i in (1, 2) for j in (1, 2)]
NARROW = {"embed_dims": (4, 8, 20, 32), "expansions": (2, 2, 2, 2)}


def trained(module: nn.Module) -> nn.Module:
    """Eval mode; norms, biases and layer scales do something."""
    torch.manual_seed(0)
    scales = ("weight", "running_var", "scale1", "scale2")
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if value.ndim == 1:
            if name.endswith(scales):
                nn.init.uniform_(value, 0.5, 1.5)
            else:
                nn.init.normal_(value, 0, 0.3)
    return module.eval()


def small(**options) -> SegModel:
    """A narrow and shallow network with all stages and the whole head."""
    defaults = {"depths": (1, 1, 2, 1), "head_channels": 16, **NARROW}
    return trained(build_model("lrformer_t", 3, **{**defaults, **options}))


@pytest.mark.medium
@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_the_published_ones(name):
    with torch.device("meta"):
        wide, model = build_model(name, 150).eval(), build_model(name, 19).eval()
        backbone, fused = build_backbone(name), fuse(model)
    many, few, alone, rate, square, full = PUBLISHED[name]
    assert (count(wide), count(model), count(backbone)) == (many, few, alone)
    assert count(model.backbone) == alone
    assert multiply_adds(wide, 512, 512) == pytest.approx(square, abs=0.006)
    assert multiply_adds(model, 1024, 2048) == pytest.approx(full, abs=0.006)
    assert multiply_adds(fused, 1024, 2048) == pytest.approx(full, abs=0.006)
    assert [n for n, m in fused.named_modules() if isinstance(m, nn.BatchNorm2d)] == HEAD_NORMS
    rates = [block.drop_path.rate for stage in model.backbone.stages for block in stage.blocks]
    assert rates == pytest.approx(np.linspace(0, rate, len(rates)), abs=1e-6)
    assert rates[0] == 0


@pytest.mark.medium
def test_largest_backbone():
    with torch.device("meta"):
        backbone = build_backbone("lrformer_xl").eval()
        fused = fuse(backbone)
    assert count(backbone) == 184_721_344
    assert multiply_adds(backbone, 640, 640) == pytest.approx(246.78, abs=0.006)
    normed = [f"stages.2.blocks.{j}.pre_norm" for j in (7, 15)]
    for network in (backbone, fused):
        norms = [n for n, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)]
        assert [n for n in norms if "blocks" in n] == normed
    assert norms == normed


@pytest.mark.parametrize("name", ["lrformer_t", "lrformer_l"])
def test_smaller_backbones_have_no_norm_in_the_residual_stream(name):
    with torch.device("meta"):
        backbone = build_backbone(name)
    norms = [n for n, m in backbone.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms == [f"embeds.0.conv{i}.norm" for i in (1, 2, 3)]


@torch.no_grad()
def test_block_against_its_formula():
    x = torch.randn(2, 8, 9, 14)
    block = trained(Block(8, 2, 3, 16, norm=LayerNorm2d, pre_norm=True))
    refine = nn.ModuleList(ResidualDepthwise(8) for _ in range(4))
    y = block.pre_norm(x)
    y = y + F.conv2d(y, block.position.conv.weight, block.position.conv.bias, padding=1, groups=8)
    y = y + block.scale1[:, None, None] * block.attention(block.norm1(y), refine)
    z = F.gelu(block.ffn.expand(block.norm2(y)))
    conv = block.ffn.depthwise.conv
    z = z + F.conv2d(z, conv.weight, conv.bias, padding=1, groups=24)
    y = y + block.scale2[:, None, None] * block.ffn.reduce(z)
    torch.testing.assert_close(block(x, refine), y, rtol=1e-4, atol=1e-4)
    plain = Block(8, 2, 3, 16, norm=LayerNorm2d, layer_scale=False)
    assert plain.scale1 is None and plain.scale2 is None
    assert isinstance(plain.pre_norm, nn.Identity)
    assert InvertedResidual(8, 3).depthwise.conv.groups == 24


@torch.no_grad()
def test_layer_norm_is_over_the_channels():
    norm, x = trained(LayerNorm2d(6, eps=1e-6)), torch.randn(2, 6, 3, 5)
    centred = x - x.mean(1, keepdim=True)
    normed = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
    expected = normed * norm.weight[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(norm(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", BACKBONES)
def test_layer_scale_eps_and_pooled_sizes(name):
    with torch.device("meta"):
        backbone = build_backbone(name)
    for i, stage in enumerate(backbone.stages):
        assert len(stage.refine) == 4  # shared by the blocks of the stage
        for block in stage.blocks:
            assert (block.scale1 is not None) == (block.scale2 is not None) == (i >= 2)
            assert block.attention.pool.sizes == (16, 11, 8, 6, 4)
    assert_norm_eps(backbone)


def assert_norm_eps(model: nn.Module) -> None:
    for name, norm in model.named_modules():
        if isinstance(norm, nn.LayerNorm):
            assert norm.eps == (1e-5 if name.endswith("attention.norm") else 1e-6), name
        elif isinstance(norm, nn.BatchNorm2d):
            assert (norm.eps, norm.momentum) == (1e-5, 0.1), name


def test_conventions_of_the_head():
    model = small()
    for block in (model.head.block1, model.head.block2):
        assert isinstance(block.norm1, nn.BatchNorm2d) and isinstance(block.norm2, nn.BatchNorm2d)
        assert isinstance(block.attention.norm, nn.LayerNorm)
        assert block.attention.pool.sizes[0] == 32 and block.attention.num_heads == 8
        assert block.ffn.expand.out_channels == 4 * 16
        assert block.scale1 is not None and block.drop_path.rate == 0
        assert isinstance(block.pre_norm, nn.Identity)
    assert_norm_eps(model)
    assert not model.align_corners and model.num_aux == 0
    assert dict(model.lr_multipliers) == {"head": 10.0}


@pytest.mark.parametrize("size", [(64, 96), (65, 97), (101, 53), (33, 40)])
@torch.no_grad()
def test_features_and_head_against_their_formula(size):
    model, x = small(), torch.randn(1, 3, *size)
    features = model.backbone(x)
    grids = [tuple(-(-side // s) for side in size) for s in (4, 4, 8, 16, 32)]
    channels = (4, 4, 8, 20, 32)
    assert [f.shape for f in features] == [(1, c, *g) for c, g in zip(channels, grids, strict=True)]
    x8, x16, x32 = (
        F.interpolate(f, size=grids[2], mode="bilinear", align_corners=False) for f in features[2:]
    )
    head = model.head
    y = head.block1(head.squeeze1(torch.cat((x8, x16, x32), 1)))
    y = head.block2(head.squeeze2(torch.cat((y, x32), 1)))
    torch.testing.assert_close(model(x), head.classify(y), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_stem_activates_after_all_but_the_last_convolution():
    stem, x = trained(Stem(8)), torch.randn(2, 3, 33, 46)
    y = x
    for conv, stride in ((stem.conv1, 2), (stem.conv2, 1), (stem.conv3, 2)):
        y = F.gelu(conv.norm(F.conv2d(y, conv.conv.weight, conv.conv.bias, stride, 1)))
    y = stem.norm(F.conv2d(y, stem.conv4.weight, stem.conv4.bias, padding=1))
    assert y.shape == (2, 8, 9, 12)
    torch.testing.assert_close(stem(x), y, rtol=1e-4, atol=1e-4)


def test_drop_path_is_linear_and_an_option():
    model = small(drop_path=0.4)
    rates = [m.rate for m in model.backbone.modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    with pytest.raises(ValueError, match=r"drop_path is 1\.0; it must be in"):
        small(drop_path=1.0)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"depths": (2, 2, 6)}, r"depths is \(2, 2, 6\); four numbers of 1 or more"),
        ({"depths": (2, 2, 6, 3, 4)}, "depths is .*four numbers of 1 or more"),
        ({"depths": (0, 2, 6, 3)}, "depths is .*four numbers of 1 or more"),
        ({"depths": 4}, "lrformer_t cannot be built with options"),
        ({"embed_dims": (48, 96, 240)}, "embed_dims is .*four numbers of 1 or more"),
        ({"embed_dims": (48, 97, 240, 384)}, "97 channels do not split into 4 heads"),
        ({"expansions": (8,)}, r"expansions is \(8,\); four numbers of 1 or more"),
        ({"num_heads": (2, 4, 10)}, "num_heads is .*four numbers of 1 or more"),
        ({"num_heads": (0, 4, 10, 16)}, "num_heads is .*four numbers of 1 or more"),
        ({"head_channels": 100}, "100 channels do not split into 8 heads"),
        ({"drop_path": -0.1}, r"drop_path is -0\.1; it must be in"),
    ],
)
def test_bad_options_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        build_model("lrformer_t", 3, **options)
    assert "\n" not in str(caught.value)


def test_initial_weights():
    torch.manual_seed(0)
    model = build_model("lrformer_t", 19)
    for attention in (model.backbone.stages[3].blocks[0].attention, model.head.block1.attention):
        for linear in (attention.query, attention.key_value, attention.project):
            assert linear.weight.std().item() == pytest.approx(0.02, rel=0.02)
            assert not linear.bias.any()
    conv = model.backbone.stages[3].blocks[0].ffn.expand
    bound = 384**-0.5  # torch's own start: uniform over plus and minus 1 / sqrt(inputs)
    assert 0.99 * bound < conv.weight.abs().max() <= bound and conv.bias.any()
    squeeze = model.head.squeeze1.conv.weight
    assert squeeze.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.02)
    assert model.head.classify.weight.std().item() == pytest.approx(0.01, rel=0.05)
    scales = [p for n, p in model.named_parameters() if n.endswith(("scale1", "scale2"))]
    assert len(scales) == 2 * (6 + 3 + 2)
    assert all((p == 1e-6).all() for p in scales)


@pytest.mark.parametrize("depths", [(2, 1, 3, 1), (1, 1, 21, 1)])
@torch.no_grad()
def test_fused_network(depths):
    model, x = small(depths=depths), torch.randn(2, 3, 65, 96)
    fused, expected = fuse(model), model(x)
    assert (fused(x) - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert not any(isinstance(m, ResidualDepthwise) for m in fused.modules())


@torch.no_grad()
@pytest.mark.medium
def test_exports_with_a_free_batch():
    fused, y = fuse(small(depths=(1, 1, 1, 1))), torch.randn(3, 3, 65, 96)
    batch = torch.export.Dim("batch", min=1, max=8)
    x = torch.randn(2, 3, 65, 96)
    program = torch.export.export(fused, (x,), dynamic_shapes=({0: batch},), strict=False)
    torch.testing.assert_close(program.module()(y), fused(y), rtol=1e-4, atol=1e-4)
