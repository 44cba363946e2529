"""LRFormer+: what runs with the extra `query`, and what is said without it."""

import copy
import re
import subprocess
import sys

import pytest
import torch
import verify_parity
from networks import count, multiply_adds
from torch import Tensor, nn

from models import (
    SegModel,
    accepted_options,
    build_backbone,
    build_model,
    fuse,
    list_backbones,
    list_models,
    resolve_name,
)
from models.layers.drop_path import DropPath
from models.lrformer_plus import (
    VARIANTS,
    DeformableAttention,
    LRFormerPlus,
    pixel_centres,
    semantic_logits,
)
from models.weights import (
    class_count,
    convert_state_dict,
    load_weights,
    needs_extra,
    read_checkpoint,
    recognise,
    rename_for,
)
from models.weights.convert import DIALECTS
from models.weights.rules import rename_keys
from utils.parity import read_fixture

SENTENCE = "lrformer_t_plus needs transformers, which is not installed: pip install -e .[query]"
# parameters with 150 classes; side of the image and 1e9 multiply-adds up to the masks at stride 4
PUBLISHED = {
    "lrformer_t_plus": (31_016_895, 512, 52.42),
    "lrformer_s_plus": (47_673_719, 512, 67.59),
    "lrformer_b_plus": (79_838_399, 512, 91.84),
    "lrformer_l_plus": (119_216_743, 640, 189.28),
    "lrformer_xl_plus": (204_730_391, 640, 314.63),
}
NARROW = {
    "embed_dims": (4, 8, 20, 32),
    "expansions": (2, 2, 2, 2),
    "decoder_channels": 32,
    "num_queries": 10,
}
SHALLOW = {"depths": (1, 1, 2, 1), "encoder_layers": 2, "decoder_layers": 4}
LAYERS = {"depths": (2, 2, 6, 3), "encoder_layers": 6, "decoder_layers": 9}  # as published


@pytest.fixture
def without_extra(monkeypatch):
    """As on a machine that has no transformers."""
    monkeypatch.setitem(sys.modules, "transformers", None)


@pytest.fixture
def with_extra():
    """The library of the extra `query`."""
    return pytest.importorskip("transformers", reason="needs pip install -e .[query]")


def meta(name: str = "lrformer_t_plus", classes: int = 150, **options) -> SegModel:
    """Names and shapes, without values."""
    with torch.device("meta"):
        return build_model(name, classes, **options)


def small(classes: int = 7, seed: int = 0, **options) -> SegModel:
    """A narrow and shallow network in which every tensor does something, in eval mode."""
    torch.manual_seed(seed)
    model = build_model("lrformer_t_plus", classes, **{**NARROW, **SHALLOW, **options})
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith(("sampling_offsets.weight", "attention_weights.weight")):
                value.normal_(0, 0.1)  # 0 at the start
            elif value.ndim == 1 and name.endswith(("weight", "var", "scale1", "scale2")):
                value.uniform_(0.5, 1.5)
            elif value.ndim == 1 and "sampling_offsets" not in name:
                value.normal_(0, 0.1)
    return model.eval()


def image(height: int = 64, width: int = 96, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


# Without the extra


def test_one_sentence_names_the_command(without_extra):
    for name in VARIANTS:
        with pytest.raises(ValueError) as caught:
            build_model(name, 150)
        assert str(caught.value) == SENTENCE.replace("lrformer_t_plus", name)
    assert resolve_name("lrformer_t_plus") == "lrformer_t_plus"
    assert {"drop_path", "num_queries"} <= set(accepted_options("lrformer_t_plus"))
    with pytest.raises(ValueError, match="did you mean lrformer_t_plus"):
        build_model("lrformer_t_pls", 150)


def test_everything_else_builds(without_extra):
    assert not set(VARIANTS) & set(list_models())
    assert list_models(extras=True) == list_models()
    for name in list_models():
        assert meta(name, 3).architecture == name
    with torch.device("meta"):
        assert all(build_backbone(name).architecture == name for name in list_backbones())


def test_the_library_is_not_imported_before_a_network_is_built(root):
    code = (
        "import sys, models, models.weights; models.list_models(extras=True); "
        "assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, timeout=120)


@pytest.mark.parametrize("tool", ["train", "eval"])
def test_tools_refuse_without_the_extra(without_extra, refuses, tiny, tmp_path, tool):
    options = {i for i, word in enumerate(tiny) if word.startswith("MODEL.OPTIONS.")}
    kept = [word for i, word in enumerate(tiny) if not {i, i - 1} & options]
    words = [*kept, "MODEL.NAME", "lrformer_t_plus", "OUTPUT_DIR", tmp_path]
    refuses([SENTENCE], f"tools/{tool}.py", *words)
    assert list(tmp_path.iterdir()) == []


def test_the_speed_script_refuses_without_the_extra(without_extra, refuses):
    refuses([SENTENCE], "models/speed/speed.py", "--a", "lrformer_t_plus", "--r", "64", "64")


def test_conversion_names_the_extra(without_extra, refuses, shared, save, tmp_path):
    pairs = read_fixture(shared / "parity" / "lrformer_t_plus.json").tensors()
    published = save({key: torch.zeros([1] * len(shape)) for key, shape in pairs})
    words = ["holds LRFormer+ weights, which need transformers: pip install -e .[query]"]
    out = ("--out", tmp_path / "ours.pt")
    assert recognise(read_checkpoint(published).tensors) == words[0].removeprefix("holds ")
    refuses(words, "tools/convert_weights.py", published, *out)
    refuses(words, "tools/convert_weights.py", published, *out, "--a", "lrformer_t")
    content = {"model": {"head.classify.bias": torch.zeros(8)}, "architecture": "lrformer_t_plus"}
    own = save(content, "own.pt")
    refuses([SENTENCE], "tools/convert_weights.py", own, *out)
    with pytest.raises(ValueError, match=r"holds LRFormer\+ weights.*, the model is lrformer_t$"):
        load_weights(meta("lrformer_t", 150), published)
    assert needs_extra(meta("lrformer_t", 150).state_dict()) == ""
    assert not (tmp_path / "ours.pt").exists()


def test_parity_is_unknown_without_the_extra(without_extra, shared):
    (row,) = verify_parity.check(shared / "parity" / "lrformer_t_plus.json")
    assert (row.verdict, row.note) == ("unknown", SENTENCE)


def test_published_keys_are_known_without_the_extra(shared):
    keys = [key for key, _ in read_fixture(shared / "parity" / "lrformer_t_plus.json").tensors()]
    (dialect,) = (d for d in DIALECTS[LRFormerPlus] if d.name == "LRFormer+")
    renaming = rename_keys(dialect, keys)
    assert not renaming.unknown and not renaming.dropped
    assert len(renaming.sources) == len(keys) + 9 * 2 * 2  # q, k and v where there was one
    assert set(renaming.parts.values()) == {(0, 3), (1, 3), (2, 3)}


# With it


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


# Weights


@pytest.fixture
def official(with_extra, shared) -> dict[str, Tensor]:
    """The published state dict, without values."""
    pairs = read_fixture(shared / "parity" / "lrformer_t_plus.json").tensors()
    return {
        key: torch.empty(shape, dtype=torch.float32 if shape else torch.int64, device="meta")
        for key, shape in pairs
    }


def packed(model: nn.Module, keys: list[str]) -> dict[str, Tensor]:
    """The tensors of `model` under published keys, as far as it has them."""
    own, renaming, state = model.state_dict(), rename_for(model, keys), {}
    for target, source in renaming.sources.items():
        state.setdefault(source, []).append(own[target])
    return {key: torch.cat(v) if len(v) > 1 else v[0].clone() for key, v in state.items()}


def test_published_keys_fill_every_tensor(official, save):
    model, other = (small(seed=seed, **LAYERS) for seed in (0, 1))
    state = packed(model, list(official))
    assert state.keys() == official.keys()
    attention = "decode_head.transformer_decoder.layers.3.self_attn.attn"
    assert state[f"{attention}.in_proj_weight"].shape == (96, 32)
    ours = model.head.transformer_module.decoder.layers[3].self_attn
    rows = state[f"{attention}.in_proj_weight"].chunk(3)
    for part, linear in zip(rows, (ours.q_proj, ours.k_proj, ours.v_proj), strict=True):
        assert torch.equal(part, linear.weight)
    report = load_weights(other, save(state))
    assert report == (
        "639 tensors loaded, none dropped, none missing; its keys have LRFormer+ names"
    )
    for (name, mine), theirs in zip(
        model.state_dict().items(), other.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, theirs), name
    with torch.no_grad():
        assert torch.equal(model(image()), other(image()))


def test_what_does_not_fit_is_named(official):
    model = small(**LAYERS)
    state = packed(model, list(official))
    key = "decode_head.transformer_decoder.layers.8.self_attn.attn.in_proj_bias"
    refused(model, {k: v for k, v in state.items() if k != key}, r"lacks .*self_attn\.q_proj\.bias")
    refused(model, state | {key: torch.ones(95)}, re.escape(f"{key} is 95"))
    refused(model, state | {key: torch.ones(93)}, re.escape(f"{key} is 93"))
    refused(model, state | {"decode_head.queries.weight": torch.ones(3)}, "does not know")


def refused(model: SegModel, state: dict[str, Tensor], sentence: str) -> None:
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=sentence):
        convert_state_dict(model, state)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_the_class_for_no_object_is_not_counted(official):
    assert class_count("lrformer_t_plus", official, {}) == 150
    with pytest.raises(ValueError, match="has 150 classes, lrformer_t_plus here has 19"):
        convert_state_dict(meta(classes=19), meta().state_dict())
    with pytest.raises(ValueError, match="has 150 classes, lrformer_t_plus here has 19"):
        convert_state_dict(meta(classes=19), official)


def test_published_networks_are_recognised(official):
    assert recognise(official) == "lrformer_t_plus"
    assert recognise(meta("lrformer_s", 19).state_dict()) == "lrformer_s"
    with pytest.raises(ValueError, match="holds lrformer_t_plus, the model is pidnet_s"):
        convert_state_dict(meta("pidnet_s"), official)


def test_own_checkpoint_round_trip(with_extra, save):
    model, other = small(), small(seed=1)
    path = save({"model": model.state_dict(), "architecture": "lrformer_t_plus"})
    report = load_weights(other, path)
    assert report.startswith(
        f"{len(model.state_dict())} tensors loaded, none dropped, none missing"
    )
    with torch.no_grad():
        assert torch.equal(model(image()), other(image()))


def test_backbone_weights_start_it(with_extra, save):
    torch.manual_seed(0)
    options = {key: NARROW[key] for key in ("embed_dims", "expansions")}
    backbone = build_backbone("lrformer_t", **options)
    model = build_model("lrformer_t_plus", 7, **NARROW)
    report = load_weights(model, save(backbone.state_dict()))
    assert "left fresh (not in backbone files)" in report
    assert torch.equal(model.backbone.embeds[0].conv4.weight, backbone.embeds[0].conv4.weight)


@pytest.mark.medium
def test_predictions_are_the_published_ones(with_extra, shared):
    rows = verify_parity.check(shared / "parity" / "lrformer_t_plus.json")
    cases, roles = ("eval_256x256", "eval_125x189"), ("query_class", "query_mask", "main")
    assert [(r.case, r.output) for r in rows] == [(c, role) for c in cases for role in roles]
    assert {(row.verdict, row.keys) for row in rows} == {("ok", "639/639")}
