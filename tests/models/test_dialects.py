"""Every dialect of every family, by the keys of the published files."""

import json
import re

import numpy as np
import pytest
import torch
from checkpoint_files import (
    DIALECTS,
    STEM_BIASES,
    equal,
    fill,
    foreign,
    golden_keys,
    named,
    refuse,
    small,
)
from torch import nn

from models import build_backbone, fuse, list_models
from models.rdrnet import RepBlock, RepProcess
from models.weights import load_weights, rename_for


@pytest.mark.parametrize("golden", DIALECTS)
def test_published_keys_fill_every_tensor(golden, save):
    model, state, other = foreign(golden)
    *_, dialect, constant = DIALECTS[golden]
    report = load_weights(other, save(state))
    assert report.startswith(f"{len(state)} tensors loaded, none dropped, none missing"), report
    assert report.endswith(f"its keys have {dialect} names") and "fresh" not in report
    assert constant in report and ("constant" in report) == bool(constant)
    filled = rename_for(other, state).sources.keys() ^ other.state_dict().keys()
    assert all(not other.state_dict()[key].any() for key in filled)
    assert equal(model, other, tuple(filled) or ("no such name",))


def test_every_family_has_a_dialect_here():
    seen = {name.partition("_")[0] for name, *_ in DIALECTS.values()}
    ours = {"rtlinearformer"}  # published nowhere else
    assert {name.partition("_")[0] for name in list_models()} == seen | ours


@pytest.mark.parametrize("golden", ["pidnet_s", "ddrnet_23_slim", "ddrnet_39"])
def test_training_wrapper_and_its_loss_buffers(golden, save):
    model, state, other = foreign(golden)
    wrapped = {f"module.model.{key}": value for key, value in state.items()}
    losses = ("sem_loss", "bd_loss") if golden == "pidnet_s" else ("loss",)
    wrapped |= {f"module.{name}.criterion.weight": torch.ones(3) for name in losses}
    content = {"epoch": 5, "best_mIoU": np.float64(0.8), "state_dict": wrapped, "optimizer": {}}
    report = load_weights(other, save(content))
    dropped = f"{len(losses)} dropped (loss buffers of the training wrapper), none missing"
    assert f"{len(state)} tensors loaded, {dropped}; its keys have official" in report
    assert equal(model, other)


def classifier(*names: str) -> dict[str, torch.Tensor]:
    return {f"{name}.{leaf}": torch.ones(5) for name in names for leaf in ("weight", "bias")}


# golden file, keys that a classification network does not have, prefix to take off, classifier,
# our modules that stay as they are
IMAGENET = {
    "PIDNet ImageNet": (
        "pidnet_s", r"(spp|pag\d|diff\d|dfm|layer\d_d|final_layer|seghead_[pd])\..*", "",
        ("last_layer.0", "linear"),
        r"(context|guide\d|difference\d|merge|boundary\d|head|aux_head|boundary_head)\.",
    ),
    "mmsegmentation PIDNet ImageNet": (
        "mmseg_pidnet_s",
        r"(decode_head|backbone\.(spp|pag_\d|diff_\d|dfm|d_branch_layers))\..*", "backbone.", (),
        r"(context|guide\d|difference\d|merge|boundary\d|head|aux_head|boundary_head)\.",
    ),
    "DDRNet ImageNet": (
        "ddrnet_23_slim", r"(spp|final_layer|seghead_extra)\..*", "", ("last_layer", "linear"),
        r"(context|head|aux_head)\.",
    ),
    "mmsegmentation DDRNet ImageNet": (
        "mmseg_ddrnet_23_slim", r"(decode_head|backbone\.spp)\..*", "backbone.", (),
        r"(context|head|aux_head)\.",
    ),
    "LRFormer ImageNet": ("lrformer_t", r"decode_head\..*", "backbone.", ("head",), r"head\."),
    "RTFormer ImageNet": (
        "rtformer_slim", r"(spp|seghead|seghead_extra)\..*", "", ("fc",),
        r"(context|head|aux_head)\.",
    ),
}  # fmt: skip


@pytest.mark.medium
@pytest.mark.parametrize("dialect", IMAGENET)
def test_imagenet_files_fill_all_but_the_added_parts(dialect, save):
    golden, added, prefix, lost, fresh = IMAGENET[dialect]
    model, state, other = foreign(golden)
    kept = {k.removeprefix(prefix): v for k, v in state.items() if not re.fullmatch(added, k)}
    before = {key: value.clone() for key, value in other.state_dict().items()}
    report = load_weights(other, save({"state_dict": kept | classifier(*lost)}))
    assert f"{len(kept)} tensors loaded, {2 * len(lost) or 'none'} dropped" in report, report
    assert "left fresh" in report and report.endswith(f"its keys have {dialect} names")
    trained, absent = model.state_dict(), rename_for(other, kept | classifier(*lost))
    for key, value in other.state_dict().items():
        if key in absent.sources:
            assert torch.equal(value, trained[key]) and not re.match(fresh, key)
        elif absent.dialect.filled(key).value is None:
            assert torch.equal(value, before[key]) and re.match(fresh, key)
        else:  # what the other side never stores, such as biases before a norm
            assert not value.any()
    # of the features nothing may be absent
    for key in (next(iter(kept)), list(kept)[len(kept) // 2]):
        rest = {k: v for k, v in kept.items() if k != key} | classifier(*lost)
        if not key.endswith("num_batches_tracked"):
            refuse(other, save(rest), "lacks|holds")


@pytest.mark.medium
@pytest.mark.parametrize("dialect", [d for d in IMAGENET if IMAGENET[d][2]])
def test_bare_backbones_need_no_classifier(dialect, save):
    golden, added, prefix, *_ = IMAGENET[dialect]
    _, state, other = foreign(golden)
    kept = {k.removeprefix(prefix): v for k, v in state.items() if not re.fullmatch(added, k)}
    report = load_weights(other, save(kept))
    assert report.startswith(f"{len(kept)} tensors loaded, none dropped")
    assert report.endswith(f"its keys have {dialect} names")
    # the same with its prefix is a network whose heads are lacking
    refuse(other, save({prefix + k: v for k, v in kept.items()}), "lacks .*head")


@pytest.mark.medium
@pytest.mark.parametrize(
    "golden", ["pidnet_s", "mmseg_pidnet_s", "ddrnet_39", "rdrnet_s", "gcnet_s"]
)
def test_a_key_with_and_without_its_prefix_is_refused(golden, save):
    _, state, other = foreign(golden)
    for prefix in ("model.", "backbone."):
        key = next((k for k in state if k.startswith(prefix)), None)
        twin = key.removeprefix(prefix) if key else f"{prefix}{next(iter(state))}"
        refuse(other, save({**state, twin: state[key or next(iter(state))]}), f"has {twin}, which")


def resnet18_keys() -> list[str]:
    """The keys of torchvision's ResNet-18, from its structure."""
    norm = [f"{{}}.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var")]
    keys = ["conv1.weight", *(leaf.format("bn1") for leaf in norm)]
    for stage in range(1, 5):
        for block in range(2):
            at = f"layer{stage}.{block}"
            for i in (1, 2):
                keys += [f"{at}.conv{i}.weight", *(leaf.format(f"{at}.bn{i}") for leaf in norm)]
            if stage > 1 and block == 0:
                down = f"{at}.downsample"
                keys += [f"{down}.0.weight", *(leaf.format(f"{down}.1") for leaf in norm)]
    return keys


@pytest.mark.parametrize("counted", [True, False])
def test_torchvision_resnet18_is_the_context_path(counted, save):
    keys = resnet18_keys()
    assert len(keys) == 100
    if counted:  # older files do not count batches
        keys += [
            k.replace("running_var", "num_batches_tracked") for k in keys if "running_var" in k
        ]
        assert len(keys) == 120
    model, other = small("bisenetv1_r18"), small("bisenetv1_r18", seed=1)
    own, added = model.state_dict(), classifier("fc")
    sources = rename_for(model, [*keys, *added]).sources
    state = {source: own[target] for target, source in sources.items()}
    assert state.keys() == set(keys)
    report = load_weights(other, save(state | added))
    assert report.startswith(
        f"{len(keys)} tensors loaded, 2 dropped (ImageNet classifier), none missing"
    )
    assert ("20 constant (not counted by old files)" in report) != counted
    assert equal(model.context.backbone, other.context.backbone, ("_tracked", "x")[counted:])
    assert not torch.equal(model.context.refine16.conv.conv.weight, own_weight(other))


def own_weight(model) -> torch.Tensor:
    return model.context.refine16.conv.conv.weight


def deployed(model: nn.Module, keys: list[str]) -> dict[str, torch.Tensor]:
    """The official deployed form: re-parameterised blocks folded, everything else as it is."""
    state, folded = named(model, keys), {}
    sources = rename_for(model, keys).sources
    for name, module in model.named_modules():
        if isinstance(module, RepBlock):
            anchor, conv = sources[f"{name}.conv3x3.conv.weight"], module.fuse()
            conv = conv[0] if isinstance(conv, nn.Sequential) else conv
            path, new = anchor.removesuffix(".path_3x3.conv.weight"), "reparam_3x3"
        elif isinstance(module, RepProcess):
            anchor, conv = sources[f"{name}.convs.0.conv.weight"], module.fuse()[-1]
            path, new = anchor.removesuffix(".parallel1.conv.weight"), "reparam_parallel"
        else:
            continue
        assert path != anchor
        folded |= {f"{path}.{new}.weight": conv.weight, f"{path}.{new}.bias": conv.bias}
    parts = (".path_3x3.", ".path_1x1.", ".path_residual.", ".parallel1.", ".parallel2.")
    rest = {k: v for k, v in state.items() if not any(part in k for part in parts)}
    return {k: v.detach() for k, v in (rest | folded).items()}


@pytest.mark.parametrize("variant", ["rdrnet_s_simple", "rdrnet_l"])
def test_deployed_rdrnet_is_the_same_network(variant, save):
    model, other = small(variant), small(variant, seed=1)
    for network in (model, other):
        network.eval()
    with torch.no_grad():  # keep the numbers near one
        for name, value in model.state_dict().items():
            if name.endswith(("conv.weight", "classify.weight")):
                value.div_(value[0].numel())
    state = deployed(model, golden_keys(variant))
    report = load_weights(other, save(state))
    assert report.startswith(f"{len(state)} tensors loaded, none dropped, none missing")
    assert (
        "constant (the deployed form has one path); its keys have deployed RDRNet names" in report
    )
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(x)
        assert expected.std() > 1e-3
        for network in (other, fuse(other)):
            assert (network(x) - expected).abs().max() < 1e-4 * expected.abs().max()
    first = next(key for key in state if key.endswith("reparam_3x3.bias"))
    refuse(other, save({k: v for k, v in state.items() if k != first}), "lacks .*norm.bias of rdr")


def test_deployed_rdrnet_keys_are_the_official_ones(shared):
    for name in ("rdrnet_s", "rdrnet_s_simple"):
        fixture = json.loads((shared / "parity" / f"{name}.json").read_text())
        keys = [key for key, _ in fixture["deploy"]["state_dict"]]
        own = deployed(small(name).eval(), golden_keys(name))
        without_aux = {key for key in own if "aux" not in key}
        assert set(keys) in (set(own), without_aux)


def test_lrformer_backbones(save):
    keys = golden_keys("lrformer_t_stages")
    options = {"embed_dims": (8, 8, 8, 8), "num_heads": (1, 1, 1, 1)}
    backbone = fill(build_backbone("lrformer_t", **options))
    state = named(backbone, keys)
    head = {
        f"decode_head.{name}": torch.ones(3) for name in ("conv_seg.weight", "squeeze1.bn.bias")
    }
    for content, dropped, dialect in (
        (state, "none dropped", "LRFormer"),
        (state | head, "2 dropped (not part of the backbone)", "LRFormer"),
        (
            {k.removeprefix("backbone."): v for k, v in state.items()} | classifier("head"),
            "2 dropped (ImageNet classifier)",
            "LRFormer ImageNet",
        ),
    ):
        other = fill(build_backbone("lrformer_t", **options), seed=1)
        report = load_weights(other, save(content))
        rest = f"{dropped}, none missing; its keys have {dialect} names"
        assert report == f"{len(state)} tensors loaded, {rest}"
        assert equal(backbone, other)


def test_input_normalisation_of_mmsegmentation_is_dropped(save):
    model, state, other = foreign("mmseg_ddrnet_23_slim")
    extra = {f"data_preprocessor.{name}": torch.ones(3, 1, 1) for name in ("mean", "std")}
    report = load_weights(other, save({"meta": {}, "state_dict": state | extra}))
    assert f"{len(state)} tensors loaded, 2 dropped (input normalisation)" in report
    assert equal(model, other, STEM_BIASES)
