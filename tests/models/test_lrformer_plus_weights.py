"""LRFormer+: published weights and its own."""

import copy
import re

import pytest
import torch
import verify_parity
from query_networks import LAYERS, NARROW, image, meta, small
from torch import Tensor, nn

from models import SegModel, build_backbone, build_model
from models.weights import class_count, convert_state_dict, load_weights, recognise, rename_for
from utils.parity import read_fixture


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
