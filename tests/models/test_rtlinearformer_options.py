"""Options of RTLinearFormer, and checkpoints of the shape that it had earlier."""

import re

import pytest
import torch
import torch.nn.functional as F
from test_rtlinearformer import narrow, randomise

from models import build_model, fuse
from models.weights import load_weights, read_checkpoint
from models.weights.rtlinearformer import EARLIER, complete_options


@pytest.mark.parametrize(
    "options",
    [
        {"feed_forward": "conv", "expansion": 0.5},
        {"feed_forward": "inverted", "expansion": (1.0, 3.0)},
        {"fusion": "cat"},
        {"residual_relu": False, "context_norm": "front"},
        EARLIER,
        {"scales": (), "focus_power": 2},
        {"scales": (3, 5)},
        {"scales": (7,), "attention_channels": 32, "attention_head_dim": 32},
        {"kv_pool_size": 4, "cross_head_dim": 32},
        {"low_to_high": (False, True), "high_to_low": (False, False), "drop_path": 0.0},
        {"low_to_high": (True, False), "high_to_low": (True, True), "context_channels": 64},
        {"detail_channels": 16, "dropout": 0.1},
    ],
)
def test_options_build_and_change_the_network(options):
    model = build_model("rtlinearformer_slim", 4, **options)
    out = model.forward_train(torch.randn(2, 3, 64, 96))
    assert out.aux[0].shape == (2, 4, 8, 12)
    assert out.logits.shape == (2, 4, 64 // model.output_stride, 96 // model.output_stride)
    assert model.output_stride == (4 if "detail_channels" in options else 8)
    out.logits.sum().backward()
    default = build_model("rtlinearformer_slim", 4)
    sizes = [sum(p.numel() for p in m.parameters()) for m in (model, default)]
    assert sizes[0] != sizes[1] or "kv_pool_size" in options


def test_logits_at_a_quarter_hold_both_grids():
    """Formula of the head with detail: the fused network, and the wide and the fine features."""
    model = randomise(narrow(detail_channels=8)).double()
    x = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    seen = {}
    model.stage1.register_forward_hook(lambda _, __, out: seen.update(fine=out.clone()))
    model.head[0].register_forward_hook(lambda _, __, out: seen.update(coarse=out.clone()))
    with torch.no_grad():
        logits = model(x)
        torch.testing.assert_close(fuse(model)(x), logits)
        coarse = model.detail.coarse(seen["coarse"].relu())
        coarse = F.interpolate(coarse, scale_factor=2, mode="bilinear")
        joined = (coarse + model.detail.fine(seen["fine"].relu())).relu()
        torch.testing.assert_close(model.head[2](model.detail.mix(joined).relu()), logits)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"feed_forward": "mlp"}, 'feed_forward is \'mlp\'; it must be "inverted" or "conv"'),
        ({"feed_forward": ("conv",)}, "feed_forward is ('conv',); one value or two"),
        ({"expansion": (1.0, 2.0, 3.0)}, "expansion is (1.0, 2.0, 3.0); one value or two"),
        ({"fusion": "mul"}, 'fusion is \'mul\'; it must be "add" or "cat"'),
        ({"context_norm": ""}, 'context_norm is \'\'; it must be "behind" or "front"'),
        ({"attention_channels": 40}, "40 attention channels do not divide into heads of 16"),
        ({"detail_channels": -1}, "detail_channels is -1; accepted: 0 or more"),
        ({"cross_head_dim": 48}, "64 attention channels do not divide into heads of 48"),
    ],
)
def test_wrong_options_are_named(options, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        build_model("rtlinearformer_slim", 4, **options)


def test_the_published_name_is_an_alias():
    assert build_model("rtlinearformer", 2).architecture == "rtlinearformer_base"


@pytest.fixture(params=[{}, {"expansion": 1.5}], ids=["defaults", "an option"])
def earlier(request, tmp_path):
    """A checkpoint of the earlier shape, which names only what differed from its defaults."""
    model = narrow(**EARLIER | request.param)
    options = {k: v for k, v in model.options.items() if k not in EARLIER} | request.param
    content = {"architecture": model.architecture, "options": options}
    torch.save(content | {"model": model.state_dict()}, tmp_path / "best.pt")
    torch.save(model.state_dict(), tmp_path / "bare.pt")
    return model, tmp_path


def test_a_checkpoint_of_the_earlier_shape_says_what_it_is(earlier):
    model, folder = earlier
    found = read_checkpoint(folder / "best.pt")
    assert found.facts["options"] == model.options
    other = build_model(found.facts["architecture"], 5, **found.facts["options"])
    assert "none missing" in load_weights(other, found)
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(other.eval()(x), model.eval()(x))


@pytest.mark.parametrize("name", ["best.pt", "bare.pt"])
def test_weights_of_the_earlier_shape_name_the_options_to_set(earlier, name):
    _, folder = earlier
    with pytest.raises(ValueError, match="earlier shape") as caught:
        load_weights(narrow(), folder / name)
    assert all(f"{key} {value!r}" in str(caught.value) for key, value in EARLIER.items())
    assert f"{folder / name}" in str(caught.value) and "\n" not in str(caught.value)


def test_options_of_todays_checkpoints_stay_as_they_are():
    for options in ({}, EARLIER, {"fusion": "cat"}):
        assert complete_options(options, narrow(**options).state_dict()) == options
