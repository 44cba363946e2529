"""Weights enter completely or not at all, and a refusal says what is wrong."""

import re

import pytest
import torch
from checkpoint_files import DIALECTS, STEM_BIASES, equal, foreign, golden_keys, refuse, small

from models import build_model, fuse, list_models
from models.weights import class_count, convert_state_dict, load_weights, rename_for
from models.weights.rules import Dialect, Rule, one_line, rename_keys, strip_wrappers


def test_conversion_in_memory_leaves_the_model_alone():
    model, state, _ = foreign("mmseg_pidnet_s")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    tensors, report = convert_state_dict(model, state)
    assert tensors.keys() == before.keys()
    assert report == (
        f"{len(state)} tensors loaded, none dropped, none missing, 2 constant (mmsegmentation's "
        "stem has no biases); its keys have mmsegmentation PIDNet names"
    )
    assert not any(tensors[key].any() for key in STEM_BIASES)
    filled = [key for key in before if not torch.equal(before[key], tensors[key])]
    assert sorted(filled) == sorted(STEM_BIASES)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod.", ""])
def test_wrappers_of_this_project_come_off(wrapper, save):
    model, other = small(), small(seed=1)
    path = save({"model": {wrapper + key: value for key, value in model.state_dict().items()}})
    load_weights(other, path)
    assert equal(model, other)
    assert strip_wrappers(["module.a", "b"]) == strip_wrappers([]) == ""


def test_reset_keeps_present_values(save):
    path, fresh = save(small(classes=19).state_dict()), small(classes=5, seed=1)
    expected = fresh.head.classify.weight.clone()
    report = load_weights(fresh, path, reset=("head", "aux_head"))
    assert report.startswith(
        "453 tensors loaded, 26 dropped (reset), none missing, 26 left fresh (reset)"
    )
    assert torch.equal(fresh.head.classify.weight, expected)
    trained = small(classes=19).boundary_head.classify.weight
    assert torch.equal(fresh.boundary_head.classify.weight, trained)


@pytest.mark.medium
@pytest.mark.parametrize(
    ("golden", "heads"),
    {
        "pidnet_s": ("seghead_p", "seghead_d"),
        "ddrnet_23": ("seghead_extra",),
        "rdrnet_s": ("decode_head.aux",),
        "gcnet_s": ("decode_head.aux",),
        "bisenetv1_r18": ("auxiliary_head",),
        "bisenetv2": ("auxiliary_head",),
        "rtformer_slim": ("seghead_extra",),
    }.items(),
)
def test_training_heads_may_be_absent_for_inference_as_a_whole(golden, heads, save):
    model, state, other = foreign(golden)
    kept = {key: value for key, value in state.items() if not key.startswith(heads)}
    gone = tuple(f"{head}." for head in model.training_only)
    assert len(kept) < len(state)
    refuse(other, save(kept), "lacks .* would these start afresh")
    before = {key: value.clone() for key, value in other.state_dict().items()}
    report = load_weights(other, save(kept), inference=True)
    assert (
        f"{len(kept)} tensors loaded, none dropped, none missing" in report
        and "left fresh (reset)" in report
    )
    trained = model.state_dict()
    for key, value in other.state_dict().items():
        if not key.endswith(("num_batches_tracked", *STEM_BIASES)):
            assert torch.equal(value, (before if key.startswith(gone) else trained)[key])
    # a head of which a part is there is damaged, not absent
    part = {key: state[key] for key in state if key.startswith(heads)}
    refuse(other, save(kept | dict(list(part.items())[:1])), "lacks", inference=True)
    # and what inference uses may not be absent
    main = next(target for target in model.state_dict() if target.startswith("head."))
    missing = rename_for(model, kept).sources[main]
    less = {key: value for key, value in kept.items() if key != missing}
    refuse(other, save(less), f"lacks {main}", inference=True)


def test_class_counts_are_named(save):
    path = save({"model": small(classes=19).state_dict(), "architecture": "pidnet_s"})
    sentence = r"has 19 classes, pidnet_s here has 3.*MODEL.RESET \"\('head', 'aux_head'\)\""
    refuse(small(), path, sentence)
    refuse(small(), path, sentence, reset=("head",))
    model, *_ = foreign("rtformer_slim")
    refuse(small("rtformer_slim", 7), save(model.state_dict()), "has 3 classes, rtformer_slim .* 7")


@pytest.mark.parametrize("name", list_models())
def test_class_counts_of_every_architecture_are_told(name):
    with torch.device("meta"):
        model, other = build_model(name, 7), build_model(name, 5)
    assert class_count(name, other.state_dict(), {}) == 5
    with pytest.raises(ValueError, match=rf"has 5 classes, {name} here has 7.*\('head'"):
        convert_state_dict(model, other.state_dict())


@pytest.mark.medium
def test_other_architectures_are_recognised(save):
    published = build_model("pidnet_s", 19).state_dict()
    for target in ("pidnet_m", "rtformer_slim"):
        model = build_model(target, 19)
        refuse(model, save(published), f"holds pidnet_s, the model is {target}$")
    refuse(small(), save(fuse(small()).state_dict()), "holds fused PIDNet weights")
    refuse(small(), save(small("rtformer_slim").state_dict()), "holds RTFormer weights of other s")
    stated = {"model": small().state_dict(), "architecture": "pidnet_l"}
    refuse(small(), save(stated), "holds pidnet_l, the model is pidnet_s$")


@pytest.mark.medium
@pytest.mark.parametrize("golden", [g for g in DIALECTS if DIALECTS[g][0] != "pidnet_s"])
def test_published_files_of_another_family_say_which(golden, save):
    """In the official names and in other sizes than any registered network has."""
    name, *_, dialect, _ = DIALECTS[golden]
    family = type(small(name)).__name__
    target = small("bisenetv2" if family == "PIDNet" else "pidnet_s")
    _, state, _ = foreign(golden)
    refuse(target, save(state), rf"holds {family} weights of other sizes \({dialect} names\)")


@pytest.mark.parametrize(
    "name", ["ddrnet_39", "lrformer_t", "rdrnet_s", "gcnet_s", "bisenetv1_r18"]
)
def test_published_files_of_full_size_say_which(name, save):
    """With the number of classes of another data set."""
    with torch.device("meta"):
        model = build_model(name, 7)
    keys = golden_keys(name)
    own, sources = model.state_dict(), rename_for(model, keys).sources
    state = {
        key: torch.zeros((), dtype=own[target].dtype).expand(own[target].shape)
        for target, key in sources.items()
    }
    with pytest.raises(ValueError, match=f"state dict holds {name}, the model is pidnet_s$"):
        convert_state_dict(small(), state)


@pytest.mark.medium
def test_every_key_is_accounted_for(save):
    _, state, _ = foreign("pidnet_s")
    for key in ("conv1.0.bias", "spp.scale_process.2.weight", "seghead_d.bn1.num_batches_tracked"):
        rest = {k: v for k, v in state.items() if k != key}
        target = rename_for(small(), [key]).sources
        refuse(small(), save(rest), f"lacks {next(iter(target))} of pidnet_s")
    refuse(
        small(), save({**state, "layer9.weight": torch.ones(1)}), "has layer9.weight, which pidne"
    )
    wrong = {**state, "conv1.0.weight": torch.ones(4, 3, 5, 5)}
    refuse(small(), save(wrong), "conv1.0.weight is 4x3x5x5, stem.conv1.conv.weight needs 4x3x3x3")
    wrong = {**state, "conv1.0.weight": torch.ones(4, 3, 3, 3, dtype=torch.int64)}
    refuse(small(), save(wrong), "conv1.0.weight is 4x3x3x3 of integers")
    without = {k: v for k, v in state.items() if not k.startswith(("seghead_p", "seghead_d"))}
    refuse(
        small(), save(without), r"lacks aux_head.* and 23 more .*\('aux_head', 'boundary_head'\)"
    )
    load_weights(small(), save(without), reset=("aux_head", "boundary_head"))
    refuse(
        small(), save({"foo": torch.ones(1)}), "none of the tensors of pidnet_s .first of 1: foo"
    )


@pytest.mark.medium
@pytest.mark.parametrize(
    "golden", ["ddrnet_39", "rdrnet_s", "gcnet_s", "bisenetv1_r18", "bisenetv2"]
)
def test_every_key_of_other_families_is_needed(golden, save):
    _, state, other = foreign(golden)
    before = {key: value.clone() for key, value in other.state_dict().items()}
    for key in (next(iter(state)), list(state)[len(state) // 2]):
        with pytest.raises(ValueError, match="lacks"):
            convert_state_dict(other, {k: v for k, v in state.items() if k != key})
    with pytest.raises(ValueError, match=r"which .* does not know"):
        convert_state_dict(other, {**state, f"{key}.more": torch.ones(1)})
    assert all(torch.equal(before[key], value) for key, value in other.state_dict().items())


def test_reset_must_name_a_submodule(save):
    with pytest.raises(ValueError, match=r"reset names 'haed'.* it has stem, .*, head, aux_head"):
        load_weights(small(), save(small().state_dict()), reset=("haed",))


def test_text_from_a_file_stays_on_one_line(save):
    evil = "a\nerror: all is well\r\x1b[31m\u202e\ud800" + "b" * 300
    for content in (
        {evil: torch.ones(1)},
        small().state_dict() | {evil: torch.ones(1)},
        {"model": {"a": torch.ones(1)}, "architecture": evil},
        {"model": {"a": torch.ones(1)}, evil: 1},
        {evil: 1},
    ):
        path = save(content)
        with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
            load_weights(small(), path)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 700
    assert one_line("word " * 10**6) == f"{'word ' * 16}"[:77] + "..."


def test_rules():
    rule = Rule(r"layer(\d)\.(\d+)", r"stage\1.\2", {"conv1": "conv1.conv", "k": "keys.weight"})
    dialect = Dialect("toy", (rule,), prefix="net.", drops={r"loss\..*": "a buffer"})
    assert dialect.rename("net.layer2.0.conv1.weight") == "stage2.0.conv1.conv.weight"
    assert dialect.rename("net.layer2.0.k") == dialect.rename("layer2.0.k")
    assert dialect.rename("layer2.0.k") == "stage2.0.keys.weight"
    for key in ("a.layer2.0.k", "net.layer2.0.conv3.weight", "net.layer2.conv1.weight"):
        assert dialect.rename(key) is None
    result = rename_keys(dialect, ["net.layer1.0.k", "loss.weight", "net.other"])
    assert result.sources == {"stage1.0.keys.weight": "net.layer1.0.k"}
    assert result.dropped == {"loss.weight": "a buffer"} and result.unknown == ["net.other"]
    parted = Dialect("toy", (rule,), splits={r"(.+)\.keys\.weight": (r"\1.a", r"\1.b")})
    result = rename_keys(parted, ["layer1.0.k", "layer1.0.conv1.weight"])
    assert result.sources == {
        "stage1.0.a": "layer1.0.k",
        "stage1.0.b": "layer1.0.k",
        "stage1.0.conv1.conv.weight": "layer1.0.conv1.weight",
    }
    state = {key: torch.arange(4.0) for key in ("layer1.0.k", "layer1.0.conv1.weight")}
    parts = [result.tensor(target, state).tolist() for target in result.sources]
    assert parts == [[0, 1], [2, 3], [0, 1, 2, 3]]
    state["layer1.0.k"] = torch.ones(5)  # as it is: it will not fit
    assert result.tensor("stage1.0.b", state).shape == (5,)
    twice = Dialect("toy", (Rule("a|b", "x", {"c": "c"}),))
    assert rename_keys(twice, ["a.c.weight", "b.c.weight"]).unknown == ["b.c.weight"]
