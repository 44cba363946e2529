"""RTLinearFormer from RTFormer's weights: what both have comes, and nothing without being asked."""

import re

import pytest
import torch
from checkpoint_files import DIALECTS, equal, fill, golden_keys, named, refuse, small

from models import build_model
from models.weights import load_weights

WIDTHS = {"base_channels": 8, "context_channels": 6, "head_channels": 8}
COMMON = ("stem", "stage1", "stage2", "stage3", "detail3", "aux_head")
OTHERS = ("low_to_high3", "block4", "block5", "context", "head")


def linear(classes=3, **options):
    options = {"attention_channels": 16} | WIDTHS | options
    return fill(build_model("rtlinearformer_slim", classes, **options), seed=9)


@pytest.fixture
def theirs():
    return small("rtformer_slim", **WIDTHS)


def ours_or_paddle(model, kind):
    if kind == "ours":
        return {"model": model.state_dict(), "architecture": "rtformer_slim"}
    return named(model, golden_keys("rtformer_slim"))


@pytest.mark.parametrize("kind", ["ours", "Paddle"])
@pytest.mark.parametrize("front", [False, True])
def test_what_both_have_comes_and_computes_the_same(theirs, save, kind, front):
    model = linear(context_norm="front") if front else linear()
    came = (*COMMON[:5], "context", "aux_head") if front else COMMON
    reset = tuple(part for part in OTHERS if part not in came)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    report = load_weights(model, save(ours_or_paddle(theirs, kind)), reset)
    names = "this project's" if kind == "ours" else DIALECTS["rtformer_slim"][2]
    words = f"partial start from RTFormer weights ({names} names): {', '.join(came)} came, "
    assert report.startswith(f"{words}{', '.join(reset)} did not; "), report
    for key, value in model.state_dict().items():
        part, counter = key.partition(".")[0], key.endswith("num_batches_tracked")
        folded = re.fullmatch(r"stem\.conv\d\.norm\.running_mean", key)
        if part in reset:
            assert torch.equal(value, before[key]), key
        elif not folded and not (counter and kind == "Paddle"):
            assert torch.equal(value, theirs.state_dict()[key]), key
    x = torch.rand(2, 3, 32, 32)
    one, two = (network.stem.eval()(x) for network in (model, theirs))
    torch.testing.assert_close(one, two)


def test_imagenet_files_bring_no_heads(theirs, save):
    state = named(theirs, golden_keys("rtformer_slim"))
    state = {k: v for k, v in state.items() if not re.match(r"(spp|seghead|seghead_extra)\.", k)}
    state["fc.weight"], state["fc.bias"] = torch.ones(5, 8), torch.ones(5)
    model = linear()
    refuse(model, save(state), r"they fill stem, stage1, stage2, stage3, detail3\. To start")
    report = load_weights(model, save(state), (*OTHERS, "aux_head"))
    assert "detail3 came, low_to_high3" in report and "2 ImageNet classifier" in report


def test_it_is_never_silent(theirs, save):
    path = save(ours_or_paddle(theirs, "Paddle"))
    words = r"they fill stem, .*, aux_head\. To start from these, .* set MODEL\.RESET \"\('low_to_h"
    refuse(linear(), path, words)
    refuse(linear(), path, re.escape(f'MODEL.RESET "{OTHERS!r}"'))
    refuse(linear(), path, re.escape("MODEL.RESET \"('head', 'low_to_high3',"), reset=("head",))
    refuse(linear(5), path, r"stage3, detail3\. To start .*'aux_head'\)\"$")  # other classes
    refuse(linear(base_channels=16), path, r"of other widths than rtlinearformer_slim: no part")
    refuse(linear(), path, "holds rtformer_slim|RTFormer", reset=OTHERS, inference=True)


def test_parts_that_fit_can_be_reset_too(theirs, save):
    model = linear()
    before = {key: value.clone() for key, value in model.aux_head.state_dict().items()}
    report = load_weights(model, save(ours_or_paddle(theirs, "ours")), (*OTHERS, "aux_head"))
    assert "detail3 came" in report and "aux_head did not" in report
    assert all(torch.equal(before[k], v) for k, v in model.aux_head.state_dict().items())


def test_weights_of_its_own_are_not_taken_for_rtformers(save):
    one, two = linear(), fill(linear(), seed=4)
    assert "partial" not in load_weights(two, save(one.state_dict()))
    assert equal(one, two)
