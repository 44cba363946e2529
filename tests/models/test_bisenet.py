"""BiSeNet V1 and V2: sizes as published, paths, gates and aggregation against their formulas."""

import pytest
import torch
import torch.nn.functional as F
from networks import bilinear, count, multiply_adds, trained
from torch import nn

from models import SegModel, build_model, fuse
from models.bisenetv1 import AttentionRefinement, ContextPath, FeatureFusion
from models.bisenetv2 import ContextEmbedding, GatherExpansion, GuidedAggregation, SemanticStem

# parameters with and without the auxiliary heads, 1e9 multiply-adds, norms after fuse
PUBLISHED = {
    "bisenetv1_r18": (13_425_721, 13_275_539, 118.34, []),
    "bisenetv2": (14_804_255, 3_358_883, 98.41, ["embedding.norm"]),
}


def small(name: str, **options) -> SegModel:
    widths = {"base_channels": 8, "head_channels": 12}
    return trained(build_model(name, 3, **widths, **options))


def mean(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(2).mean(2)[:, :, None, None]


def nearest(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Every target pixel takes the source pixel at the rounded-down proportional place."""
    rows = torch.arange(height) * x.shape[2] // height
    columns = torch.arange(width) * x.shape[3] // width
    return x[:, :, rows][:, :, :, columns]


@pytest.mark.parametrize("name", PUBLISHED)
def test_size_is_the_published_one(name):
    with torch.device("meta"):
        model = build_model(name, 19).eval()
        fused = fuse(model)
    train_form, inference_form, macs, norms = PUBLISHED[name]
    assert count(model) == train_form
    assert count(model) - count(model.aux_heads) == inference_form
    assert count(fused) == pytest.approx(inference_form, rel=0.005)
    assert multiply_adds(model) == pytest.approx(macs, abs=0.005)
    assert multiply_adds(fused) == pytest.approx(macs, abs=0.005)
    assert [n for n, m in fused.named_modules() if isinstance(m, nn.BatchNorm2d)] == norms


@pytest.mark.parametrize(("height", "width"), [(128, 192), (101, 165), (33, 70)])
@torch.no_grad()
def test_outputs_have_their_strides(height, width):
    x = torch.randn(1, 3, height, width)
    sizes = {s: (-(-height // s), -(-width // s)) for s in (4, 8, 16, 32)}
    for name, strides in (("bisenetv1_r18", (8, 16)), ("bisenetv2", (4, 8, 16, 32))):
        model = small(name)
        out = model.forward_train(x)
        assert out.logits.shape == (1, 3, *sizes[8])
        assert [aux.shape for aux in out.aux] == [(1, 3, *sizes[s]) for s in strides]
        assert len(out.aux) == model.num_aux == len(model.aux_heads)


# BiSeNet


@torch.no_grad()
def test_resnet_against_its_formula():
    net = small("bisenetv1_r18").context.backbone
    x = torch.randn(1, 3, 70, 101)

    def block(b, y):
        shortcut = y if isinstance(b.shortcut, nn.Identity) else b.shortcut(y)
        return F.relu(b.conv2(F.relu(b.conv1(y))) + shortcut)

    y = net.stem.norm(F.conv2d(x, net.stem.conv.weight, stride=2, padding=3))
    y = F.max_pool2d(F.relu(y), 3, 2, 1)
    features = []
    for stage in (net.stage1, net.stage2, net.stage3, net.stage4):
        assert len(stage) == 2
        for b in stage:
            y = block(b, y)
        features.append(y)
    x16, x32 = net(x)
    assert x16.shape == (1, 32, 5, 7) and x32.shape == (1, 64, 3, 4)
    torch.testing.assert_close(x16, features[2])
    torch.testing.assert_close(x32, features[3])


@torch.no_grad()
def test_refinement_weighs_channels_by_their_means():
    refine, x = trained(AttentionRefinement(6, 8)), torch.randn(2, 6, 5, 7)
    y = refine.conv(x)
    gate = torch.sigmoid(refine.attention.norm(F.conv2d(mean(y), refine.attention.conv.weight)))
    torch.testing.assert_close(refine(x), y * gate)
    nn.init.constant_(refine.attention.norm.bias, -100.0)  # no ReLU stands before the sigmoid
    assert refine(x).abs().max() < 1e-6


@torch.no_grad()
def test_context_path_resizes_with_nearest_neighbours():
    path, x = trained(ContextPath(4, 8)), torch.randn(2, 3, 101, 165)
    x16, x32 = path.backbone(x)
    y32 = path.refine32(x32) + path.tail(mean(x32))
    context16 = path.conv32(nearest(y32, 7, 11))
    y16 = path.refine16(x16) + context16
    context8 = path.conv16(nearest(y16, 13, 21))
    for out, expected in zip(path(x, torch.Size((13, 21))), (context8, context16), strict=True):
        torch.testing.assert_close(out, expected)


@torch.no_grad()
def test_fusion_adds_the_weighed_feature():
    fusion = trained(FeatureFusion(10, 8))
    spatial, context = torch.randn(2, 4, 5, 7), torch.randn(2, 6, 5, 7)
    y = fusion.conv(torch.cat((spatial, context), 1))
    gate = fusion.attention.norm(F.conv2d(mean(y), fusion.attention.conv.weight))
    expected = y * (1 + torch.sigmoid(gate.clamp_min(0)))
    torch.testing.assert_close(fusion(spatial, context), expected)


@torch.no_grad()
def test_bisenetv1_joins_its_paths_and_heads():
    model, x = small("bisenetv1_r18"), torch.randn(1, 3, 97, 130)
    spatial = model.spatial(x)
    assert spatial.shape == (1, 16, 13, 17)
    assert [c.conv.kernel_size[0] for c in model.spatial] == [7, 3, 3, 1]
    context8, context16 = model.context(x, spatial.shape[-2:])
    out = model.forward_train(x)
    torch.testing.assert_close(out.logits, model.head(model.fusion(spatial, context8)))
    torch.testing.assert_close(out.aux[0], model.aux_heads[0](context8))
    torch.testing.assert_close(out.aux[1], model.aux_heads[1](context16))


# BiSeNet V2


@torch.no_grad()
def test_semantic_stem_joins_convolution_and_pooling():
    stem, x = trained(SemanticStem(8)), torch.randn(2, 3, 37, 50)
    y = stem.conv(x)
    narrow, strided = stem.left
    joined = torch.cat((strided(narrow(y)), F.max_pool2d(y, 3, 2, 1)), 1)
    assert narrow.conv.out_channels == 4
    torch.testing.assert_close(stem(x), stem.merge(joined))
    assert stem(x).shape == (2, 8, 10, 13)


def test_gather_expansion_forms():
    same, strided = GatherExpansion(8, 8), GatherExpansion(8, 12, 2, expansion=3)
    assert isinstance(same.shortcut, nn.Identity)
    assert (same.expand.conv.groups, same.expand.conv.out_channels) == (8, 48)
    first, second = strided.expand
    assert (first.conv.groups, first.conv.out_channels, first.conv.stride) == (8, 24, (2, 2))
    assert (second.conv.groups, second.conv.out_channels, second.conv.stride) == (24, 24, (1, 1))
    depthwise, pointwise = strided.shortcut
    assert (depthwise.conv.groups, depthwise.conv.stride) == (8, (2, 2))
    assert (pointwise.conv.kernel_size, pointwise.conv.out_channels) == ((1, 1), 12)


@torch.no_grad()
def test_gather_expansion_against_its_formula():
    x = torch.randn(2, 8, 7, 10)
    same = trained(GatherExpansion(8, 8))
    y = F.relu(same.conv1(x))
    y = F.relu(same.expand.norm(F.conv2d(y, same.expand.conv.weight, padding=1, groups=8)))
    y = same.conv2.norm(F.conv2d(y, same.conv2.conv.weight))
    torch.testing.assert_close(same(x), F.relu(y + x))

    strided = trained(GatherExpansion(8, 12, 2))
    first, second = strided.expand
    y = first.norm(F.conv2d(F.relu(strided.conv1(x)), first.conv.weight, None, 2, 1, groups=8))
    y = F.relu(second.norm(F.conv2d(y, second.conv.weight, padding=1, groups=48)))
    y = strided.conv2.norm(F.conv2d(y, strided.conv2.conv.weight))
    depthwise, pointwise = strided.shortcut
    s = depthwise.norm(F.conv2d(x, depthwise.conv.weight, None, 2, 1, groups=8))
    s = pointwise.norm(F.conv2d(s, pointwise.conv.weight))
    torch.testing.assert_close(strided(x), F.relu(y + s))


@torch.no_grad()
def test_context_embedding_adds_the_global_mean():
    embedding, x = trained(ContextEmbedding(8)), torch.randn(2, 8, 4, 6)
    normed = embedding.norm(mean(x))
    added = F.relu(embedding.conv1.norm(F.conv2d(normed, embedding.conv1.conv.weight)))
    torch.testing.assert_close(embedding(x), embedding.conv2(x + added))


@pytest.mark.parametrize("grid", [(16, 24), (13, 17)])
@torch.no_grad()
def test_aggregation_against_its_formula(grid):
    layer = trained(GuidedAggregation(8))
    detail = torch.randn(2, 8, *grid)
    semantic = torch.randn(2, 8, *(-(-side // 4) for side in grid))

    def gated(branch, x):
        depthwise, pointwise = branch
        x = depthwise.norm(F.conv2d(x, depthwise.conv.weight, padding=1, groups=8))
        return F.conv2d(x, pointwise.weight, pointwise.bias)

    def conv3x3(conv, x, stride=1):
        return conv.norm(F.conv2d(x, conv.conv.weight, stride=stride, padding=1))

    fine = gated(layer.detail, detail)
    fine = fine * torch.sigmoid(bilinear(conv3x3(layer.semantic_up, semantic), detail))
    down = conv3x3(layer.detail_down[0], detail, 2)
    padded = F.pad(down, (1, 1, 1, 1))  # zeros, which count in the mean
    down = F.avg_pool2d(padded, 3, 2)
    coarse = down * torch.sigmoid(gated(layer.semantic, semantic))
    expected = F.relu(conv3x3(layer.conv, fine + bilinear(coarse, detail)))
    torch.testing.assert_close(layer(detail, semantic), expected)


@torch.no_grad()
def test_bisenetv2_joins_its_branches_and_heads():
    model, x = small("bisenetv2"), torch.randn(1, 3, 97, 130)
    semantic, y = [], model.stem(x)
    for stage in (None, *model.stages):
        y = y if stage is None else stage(y)
        semantic.append(y)
    assert [tuple(y.shape[1:]) for y in semantic] == [
        (2, 25, 33),
        (4, 13, 17),
        (8, 7, 9),
        (16, 4, 5),
    ]
    assert [len(stage) for stage in model.stages] == [2, 2, 4]
    detail = model.detail(x)
    assert detail.shape == (1, 16, 13, 17)
    assert sum(isinstance(m, nn.Conv2d) for m in model.detail.modules()) == 8
    out = model.forward_train(x)
    merged = model.aggregation(detail, model.embedding(semantic[3]))
    torch.testing.assert_close(out.logits, model.head(merged))
    for aux, head, y in zip(out.aux, model.aux_heads, semantic, strict=True):
        torch.testing.assert_close(aux, head(y))


def test_width_too_small_for_the_semantic_stem_is_refused():
    assert build_model("bisenetv2", 3, base_channels=8).stem.left[0].conv.out_channels == 1
    with pytest.raises(ValueError, match="base_channels is 4; at least 8"):
        build_model("bisenetv2", 3, base_channels=4)


@pytest.mark.parametrize("name", PUBLISHED)
def test_conventions_of_the_published_training(name):
    model = small(name)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-5, 0.1)}
    assert not model.align_corners
    drops = [m.p for m in model.modules() if isinstance(m, nn.Dropout2d)]
    assert drops == [0.1] * (1 + model.num_aux)
    biased = {
        n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.bias is not None
    }
    expected = {"head.classify", *(f"aux_heads.{i}.classify" for i in range(model.num_aux))}
    if name == "bisenetv2":
        expected |= {"aggregation.detail.1", "aggregation.semantic.1"}
    assert biased == expected


def test_initial_weights():
    torch.manual_seed(0)
    first, second = (build_model(name, 19) for name in PUBLISHED)
    for conv, fan_out in (
        (first.context.backbone.stage3[1].conv2.conv, 256 * 9),
        (first.fusion.conv.conv, 256),
        (second.detail[2][2].conv, 128 * 9),
        (second.stages[2][1].expand.conv, 128 * 6 * 9),
    ):
        assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.04)
    for model in (first, second):
        assert model.head.classify.weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert not model.head.classify.bias.any()


@pytest.mark.parametrize("name", PUBLISHED)
@torch.no_grad()
def test_exports_with_a_free_batch(name):
    model = fuse(small(name))
    batch = torch.export.Dim("batch", min=1, max=8)
    x, y = torch.randn(2, 3, 65, 96), torch.randn(3, 3, 65, 96)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},), strict=False)
    torch.testing.assert_close(program.module()(y), model(y), rtol=1e-4, atol=1e-4)
