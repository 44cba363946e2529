"""Learning rates of the published recipes and of others, and what each parameter group gets."""

import math

import pytest
import torch
from torch import nn

from utils.optim import build_optimizer, learning_rate, set_learning_rate

RTFORMER = {
    "base_lr": 4e-4,
    "end_lr": 1e-6,
    "power": 1.0,
    "warmup": 1500 / 120000,
    "warmup_lr": 1e-6,
}


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 1e-6),
        (750, 2.005e-4),
        (1499, 3.99734e-4),
        (1500, 4e-4),
        (60000, 2.0303e-4),
        (119999, 1.0034e-6),
    ],
)
def test_rtformer_schedule_on_cityscapes(step, expected):
    assert learning_rate(step / 120000, **RTFORMER) == pytest.approx(expected, rel=1e-4)


def test_pidnet_schedule_is_poly_from_the_first_step():
    rates = [learning_rate(s / 1000, base_lr=0.01, power=0.9) for s in (0, 500, 999, 1000)]
    assert rates == pytest.approx([0.01, 0.01 * 0.5**0.9, 0.01 * 0.001**0.9, 0.0])


def test_the_cosine_is_half_a_wave_between_warm_up_and_end():
    settings = {
        "base_lr": 0.02,
        "end_lr": 0.01,
        "kind": "cosine",
        "warmup": 0.2,
        "warmup_lr": 0.004,
    }
    shares = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
    rates = [learning_rate(share, **settings) for share in shares]
    falling = [0.01 + 0.005 * (1 + math.cos(math.pi * q / 4)) for q in range(5)]
    assert rates == pytest.approx([0.004, 0.012, *falling])
    with pytest.raises(ValueError, match="'step' is unknown; accepted: poly, cosine"):
        learning_rate(0.5, base_lr=1.0, kind="step")


@pytest.mark.parametrize("kind", ["poly", "cosine"])
def test_no_share_leaves_the_bounds(kind):
    for warmup in (0.0, 0.3, 1.0, 4.0):
        for share in (0.0, 0.3, 0.999, 1.0, 1.5):
            rate = learning_rate(share, base_lr=0.1, end_lr=0.01, kind=kind, warmup=warmup)
            assert 0 <= rate <= 0.1


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.head = nn.Conv2d(4, 2, 1)


def test_groups_scale_rate_and_exempt_norms():
    model = Net()
    optimizer = build_optimizer(
        model,
        "adamw",
        lr=0.1,
        weight_decay=0.5,
        decay_norms=False,
        lr_multipliers={"head": 10.0},
    )
    set_learning_rate(optimizer, 0.01)
    seen = {
        id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]
    }
    assert len(seen) == len(list(model.parameters()))
    assert seen[id(model.body[0].weight)] == (0.01, 0.5)
    assert seen[id(model.body[0].bias)] == seen[id(model.body[1].weight)] == (0.01, 0.0)
    assert seen[id(model.head.weight)] == pytest.approx((0.1, 0.5))
    assert seen[id(model.head.bias)] == pytest.approx((0.1, 0.0))


def test_what_is_named_never_decays():
    model = Net()
    names = ("body.0", "head.weight", "hea", "bod")
    optimizer = build_optimizer(model, "sgd", lr=0.1, weight_decay=0.5, no_decay=names)
    decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    spared = [name for name, p in model.named_parameters() if not decays[id(p)]]
    assert spared == ["body.0.weight", "body.0.bias", "head.weight"]
    assert set(decays.values()) == {0.0, 0.5}


def test_sgd_decays_everything_by_default_and_unknown_names_are_refused():
    optimizer = build_optimizer(Net(), "sgd", lr=0.1, weight_decay=0.5, momentum=0.8)
    assert isinstance(optimizer, torch.optim.SGD)
    assert [(g["weight_decay"], g["momentum"]) for g in optimizer.param_groups] == [(0.5, 0.8)]
    with pytest.raises(ValueError, match=r"'lion'.*sgd, adamw"):
        build_optimizer(Net(), "lion", lr=0.1, weight_decay=0.0)
