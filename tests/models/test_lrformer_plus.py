"""LRFormer+: the network, with the extra `query`."""

import sys

import pytest
import torch
from networks import count, multiply_adds
from query_networks import NARROW, SHALLOW, image, meta, small
from torch import Tensor, nn

from models import SegModel, build_model, fuse, list_models
from models.layers.drop_path import DropPath
from models.lrformer_plus import VARIANTS, DeformableAttention, pixel_centres, semantic_logits

# parameters with 150 classes; side of the image and 1e9 multiply-adds up to the masks at stride 4
PUBLISHED = {
    "lrformer_t_plus": (31_016_895, 512, 52.42),
    "lrformer_s_plus": (47_673_719, 512, 67.59),
    "lrformer_b_plus": (79_838_399, 512, 91.84),
    "lrformer_l_plus": (119_216_743, 640, 189.28),
    "lrformer_xl_plus": (204_730_391, 640, 314.63),
}


def test_a_library_of_another_kind_is_one_sentence(with_extra, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers.models.mask2former", None)
    with pytest.raises(ValueError, match=r"pip install -e \.\[query\] brings a version") as caught:
        meta()
    assert "\n" not in str(caught.value)


def test_names_need_the_extra(with_extra):
    assert set(list_models(extras=True)) == {*list_models(), *PUBLISHED}
    assert set(VARIANTS) == set(PUBLISHED)


class Predictions(nn.Module):
    """What is published as multiply-adds: without the sum over queries at full size."""

    def __init__(self, model: SegModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor):
        return self.model.forward_train(x)


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_the_published_ones(with_extra, name):
    parameters, side, macs = PUBLISHED[name]
    model = meta(name)
    assert count(model) == parameters
    assert all(value.is_meta for value in model.state_dict().values())
    assert multiply_adds(Predictions(model), side, side) == pytest.approx(macs, rel=0.01)
    combined = multiply_adds(model, side, side) - 100 * 150 * side**2 / 1e9
    assert combined == pytest.approx(macs, rel=0.01)


@pytest.mark.parametrize("size", [(64, 64), (65, 97), (59, 40), (1, 3)])
@torch.no_grad()
def test_forward_combines_the_last_predictions_at_the_size_of_the_image(with_extra, size):
    model, x = small(), image(*size)
    model.check_size(*size)
    logits, outputs = model(x), model.forward_train(x)
    assert logits.shape == (2, 7, *size) and model.output_stride == 1
    assert len(outputs.classes) == len(outputs.masks) == 1 + SHALLOW["decoder_layers"]
    quarter = tuple(-(-side // 4) for side in size)
    for classes, masks in zip(*outputs, strict=True):
        assert classes.shape == (2, 10, 8) and masks.shape == (2, 10, *quarter)
    assert torch.equal(logits, semantic_logits(outputs.classes[-1], outputs.masks[-1], size))
    assert model.upsample(logits, size) is logits


def test_semantic_logits_against_their_formula():
    torch.manual_seed(0)
    classes, masks = torch.randn(2, 5, 4), torch.randn(2, 5, 3, 6)
    masks_full = nn.functional.interpolate(masks, (11, 23), mode="bilinear", align_corners=False)
    expected = torch.zeros(2, 3, 11, 23)
    for query in range(5):
        share = classes[:, query].exp() / classes[:, query].exp().sum(1, keepdim=True)
        for c in range(3):  # the fourth is no object
            expected[:, c] += share[:, c, None, None] / (1 + (-masks_full[:, query]).exp())
    torch.testing.assert_close(semantic_logits(classes, masks, (11, 23)), expected)


@torch.no_grad()
def test_images_of_a_batch_do_not_mix(with_extra):
    model, batch = small(), image()
    alone = model(batch[1:])
    assert (model(batch)[1:] - alone).abs().max() <= 1e-4 * alone.abs().max()


@torch.no_grad()
def test_fuse_keeps_the_numbers(with_extra):
    model, x = small(), image(65, 97)
    before, fused, keys = model(x), fuse(model), list(model.state_dict())
    assert (fused(x) - before).abs().max() <= 1e-4 * before.abs().max()
    assert list(model.state_dict()) == keys
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())


@pytest.mark.medium
@torch.no_grad()
def test_fused_network_exports(with_extra):
    fused, x = fuse(small()), image(64, 64, 1)
    program = torch.export.export(fused, (x,), strict=False)
    assert (program.module()(x) - fused(x)).abs().max() <= 1e-4 * fused(x).abs().max()


@torch.no_grad()
def test_deformable_attention_is_the_librarys(with_extra):
    from transformers.models.mask2former import modeling_mask2former as library

    torch.manual_seed(0)
    theirs = library.Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention(32, 8, 3, 4)
    ours, shapes = DeformableAttention(32, 8), [(2, 3), (4, 6), (7, 11)]
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x, position = torch.randn(2, 2, 107, 32)
    x_centre, y_centre = pixel_centres(shapes, x)
    points = torch.stack((x_centre, y_centre), -1)[None, :, None].expand(2, -1, 3, -1)
    centres = library.Mask2FormerPixelDecoderEncoderOnly.get_reference_points
    torch.testing.assert_close(points, centres(shapes, torch.ones(2, 3, 2), x.device))
    rest = {"encoder_hidden_states": x, "reference_points": points}
    rest |= {"position_embeddings": position, "spatial_shapes_list": shapes}
    expected, _ = theirs(hidden_states=x, **rest)
    torch.testing.assert_close(ours(hidden_states=x, **rest)[0], expected)
    rest["position_embeddings"] = position.bfloat16()
    narrow, _ = ours.bfloat16()(hidden_states=x.bfloat16(), **rest)
    assert narrow.dtype == torch.bfloat16
    # bfloat16 keeps 8 bits; a few roundings of 0.4 % each add up to less than 2 % in the norm.
    assert (narrow - expected).norm() <= 0.02 * expected.norm()


@torch.no_grad()
def test_sampling_keeps_the_places_of_a_large_map():
    """Without offsets every pixel finds its own value, in 16 bits as well."""
    attention, shapes = DeformableAttention(8, 8, levels=1, points=1), [(3, 500)]
    for layer in (attention.sampling_offsets, attention.attention_weights):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    for layer in (attention.value_proj, attention.output_proj):
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)
    x = torch.randn(1, 1500, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    found, _ = attention.bfloat16()(x, torch.zeros_like(x), shapes)
    # Three roundings to bfloat16, of 0.4 % each at most.
    torch.testing.assert_close(found, x, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("fresh", [True, False])
@torch.no_grad()
def test_bfloat16_gives_numbers(with_extra, fresh):
    torch.manual_seed(0)
    model = build_model("lrformer_t_plus", 7, **NARROW).eval() if fresh else small()
    x = image(128, 192)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).isfinite().all()
    assert model.bfloat16()(x.bfloat16()).isfinite().all()


def test_gradients_reach_every_parameter(with_extra):
    model = small().train()
    for module in model.modules():
        if isinstance(module, DropPath):
            module.rate = 0.0
    outputs = model.forward_train(image())
    torch.stack([v.square().mean() for v in (*outputs.classes, *outputs.masks)]).sum().backward()
    parameters = dict(model.named_parameters())
    assert [n for n, p in parameters.items() if p.grad is None or not p.grad.isfinite().all()] == []
    for i in (1, 2, 3):  # a BatchNorm takes them away again
        del parameters[f"backbone.embeds.0.conv{i}.conv.bias"]
    assert [n for n, p in parameters.items() if not p.grad.any()] == []


def test_nothing_is_left_uninitialised(with_extra):
    was = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        torch.manual_seed(0)
        model = build_model("lrformer_t_plus", 7, **{**NARROW, "decoder_channels": 64})
    finally:
        torch.use_deterministic_algorithms(was)
    assert all(value.isfinite().all() for value in model.state_dict().values())
    pixels, transformer = model.head.pixel_decoder, model.head.transformer_module
    for code in (pixels.level_embed, transformer.level_embed.weight):
        assert 0.8 < code.std() < 1.2
    for layer in pixels.encoder.layers:
        offsets = layer.self_attn.sampling_offsets
        assert not offsets.weight.any() and not layer.self_attn.attention_weights.weight.any()
        rings = offsets.bias.detach().unflatten(0, (8, 3, 4, 2))  # heads, levels, points, x and y
        assert (rings.abs().amax(-1) == torch.arange(1.0, 5)).all()
        assert torch.allclose(rings[0, 0, 0], torch.tensor([1.0, 0.0]), atol=1e-6)
        assert torch.allclose(rings[2, 1, 3], torch.tensor([0.0, 4.0]), atol=1e-5)
        assert len({tuple(d) for d in rings[:, 0, 0].round(decimals=3).tolist()}) == 8
    for layer in transformer.decoder.layers:
        query = layer.self_attn.q_proj
        assert query.weight.abs().max() <= (6 / 128) ** 0.5 and not query.bias.any()
        assert layer.cross_attn.in_proj_weight.abs().max() <= (6 / 256) ** 0.5


@pytest.mark.parametrize("option", ["decoder_channels", "num_queries", "decoder_layers", "depths"])
def test_senseless_options_are_refused_in_one_sentence(with_extra, option):
    for bad in (-1, 0, float("nan"), "a", (), 1.5, True):
        with pytest.raises(ValueError, match=option) as caught:
            meta(**{option: bad})
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="decoder_channels is 48; a multiple of 32 is needed"):
        meta(decoder_channels=48)
