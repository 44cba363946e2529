"""What the gate lets through, and what it does not."""

import copy

import numpy as np
import prediction
import pytest
import torch
from torch import nn

from datasets import Normalize
from datasets.synthetic import draw_scene
from models import fuse
from utils.export import Description, FrameNetwork, LogitsNetwork
from utils.gate import (
    FAILED,
    MALFORMED,
    PASSED,
    UNVERIFIED,
    Comparison,
    Scene,
    at_size,
    compare,
    judge,
)

NAMES = tuple("abcdefghijk")
SIZE = (96, 130)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALL = {"base_channels": 8, "context_channels": 8, "head_channels": 8}


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return prediction.network(len(NAMES))


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """Two drawn streets with their labels, at another size than the frames."""
    found = []
    for index in range(2):
        frame, _ = draw_scene(index, height=SIZE[0], width=SIZE[1])
        _, label = draw_scene(index, height=200, width=240)
        found.append(Scene(frame, Normalize(MEAN, STD)(frame), label))
    return found


def description(**changes) -> Description:
    facts = {
        "architecture": "pidnet_s", "dataset": "", "class_names": NAMES,
        "palette": ((0, 0, 0),) * len(NAMES), "mean": MEAN, "std": STD, "size": SIZE,
        "precision": "fp32", "output": "classes", "stride": 8, "dynamic": {}, "weights": {},
    }  # fmt: skip
    return Description(**facts | changes)


def runner(module: nn.Module):
    """A module as a file would run."""
    with torch.no_grad():
        return lambda array: module(torch.from_numpy(array)).detach().numpy()


def seen_of(network, module, scenes, output="classes") -> Comparison:
    with torch.inference_mode():
        return compare(network, {"file": runner(module)}, output, scenes, NAMES)["file"]


def test_what_computes_the_same_passes(network, scenes):
    module = FrameNetwork(fuse(network), description()).eval()
    seen = seen_of(network, module, scenes)
    assert len({int(c) for s in scenes for c in np.unique(runner(module)(s.frame[None]))}) > 3
    assert judge(seen, "fp32", trained=True).status == PASSED
    report = seen.to_dict()
    assert report["scenes"] == 2 and report["pixels"] == 2 * SIZE[0] * SIZE[1]
    assert abs(report["miou_lost"]) < 0.01 and report["equal_percent"] > 99.99
    module = LogitsNetwork(fuse(network), description(output="logits")).eval()
    seen = seen_of(network, module, scenes, "logits")
    assert judge(seen, "fp32", trained=True).status == PASSED
    assert 0 < seen.logits_difference < 1e-4 * seen.logits_largest


def one_weight(network, settings):
    fused = fuse(network)
    with torch.no_grad():
        fused.head.classify.weight[3, 0] += 0.5
    return fused, settings


def other_corners(network, settings):
    fused = fuse(network)
    fused.align_corners = not fused.align_corners
    return fused, settings


def without_norms(network, settings):
    """Convolutions alone, where they should have been folded with their norms."""
    broken = copy.deepcopy(network)
    for module in broken.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
    return broken, settings


def without_one_norm(network, settings):
    broken = copy.deepcopy(network)
    broken.stem.conv2.norm = nn.Identity()
    return broken, settings


def swapped(network, settings):
    return fuse(network), settings | {"mean": STD, "std": MEAN}


def reversed_channels(network, settings):
    return fuse(network), settings | {"mean": MEAN[::-1], "std": STD[::-1]}


DAMAGE = (one_weight, other_corners, without_norms, without_one_norm, swapped, reversed_channels)


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda f: f.__name__)
def test_what_is_damaged_does_not(network, scenes, damage):
    broken, settings = damage(network, {})
    seen = seen_of(network, FrameNetwork(broken, description(**settings)).eval(), scenes)
    verdict = judge(seen, "fp32", trained=False)
    assert verdict.status == FAILED and seen.overturned > 0
    assert any("99.99 % are needed" in reason for reason in verdict.reasons)


@pytest.mark.parametrize("shape", [(1, *SIZE[::-1]), (1, 12, 17), SIZE])
def test_another_shape_is_equal_nowhere(network, scenes, shape):
    run = {"file": lambda frame: np.zeros(shape, np.uint8)}
    seen = compare(network, run, "classes", scenes, NAMES)["file"]
    assert seen.equal == 0 and judge(seen, "int8", trained=False).status == FAILED


@pytest.mark.parametrize(
    "shape", [(1, 6, 6), (1, 7, 12, 16), (1, 6, 3, 3), (2, 6, 12, 16)], ids=str
)
def test_logits_of_another_shape(network, scenes, shape):
    run = {"file": lambda image: np.zeros(shape, np.float32)}
    seen = compare(network, run, "logits", scenes, NAMES)["file"]
    assert seen.equal == 0 and seen.logits_difference is None
    assert judge(seen, "fp32", trained=True) == (FAILED, (MALFORMED,))


def test_a_file_that_cannot_run_spoils_no_other(network, scenes):
    module = FrameNetwork(fuse(network), description()).eval()

    def broken(frame):
        raise RuntimeError("shapes do not match")

    seen = compare(network, {"a": broken, "b": runner(module)}, "classes", scenes, NAMES)
    verdict = judge(seen["a"], "int8", trained=False)
    assert verdict == (FAILED, ("it cannot run on every picture: shapes do not match",))
    assert judge(seen["b"], "fp32", trained=True).status == PASSED


def test_numbers_that_are_none_and_classes_beyond_the_last(network, scenes):
    shape = (1, len(NAMES), SIZE[0] // 8, -(-SIZE[1] // 8))
    run = {"file": lambda image: np.full(shape, np.nan, np.float32)}
    seen = compare(network, run, "logits", scenes, NAMES)["file"]
    verdict = judge(seen, "fp16", trained=True)
    assert verdict == (FAILED, ("some logits are not finite numbers",))
    assert seen.to_dict()["largest_logit_difference"] == "not finite"
    run = {"file": lambda frame: np.full((1, *SIZE), 200, np.uint8)}
    seen = compare(network, run, "classes", scenes, NAMES)["file"]
    assert seen.equal == 0 and judge(seen, "fp32", trained=True) == (FAILED, (MALFORMED,))


def counted(share, network=None, file=None) -> Comparison:
    """A comparison of these numbers: equal pixels (0..1), mIoU of both."""
    seen = Comparison(NAMES, scenes=1, pixels=10**6, equal=round(share * 10**6))
    if network is not None:
        seen.scores = tuple(Score(value) for value in (network, file))
    return seen


class Score:
    """As much of a confusion matrix as is read."""

    def __init__(self, miou):
        self.miou, self.matrix = miou, torch.ones(1)

    def overall(self):
        return {"mIoU": self.miou / 100}


@pytest.mark.parametrize(
    ("seen", "precision", "trained", "status"),
    [
        (counted(0.9999), "fp32", True, PASSED),
        (counted(0.99989), "fp32", True, FAILED),
        (counted(0.99989), "fp32", False, FAILED),  # rounding is no excuse
        (counted(0.995), "fp16", True, PASSED),
        (counted(0.994), "fp16", True, FAILED),
        (counted(0.994), "bf16", False, UNVERIFIED),
        (counted(0.89), "bf16", False, FAILED),
        (counted(0.996, 60, 59.81), "bf16", True, PASSED),
        (counted(0.996, 60, 59.79), "bf16", True, FAILED),
        (counted(0.996, 60, 60.21), "bf16", True, FAILED),  # gained is not the same either
        (counted(0.97, 60, 59.1), "int8", True, PASSED),
        (counted(0.97, 60, 58.9), "int8", True, FAILED),
        (counted(0.97, 60, float("nan")), "int8", True, FAILED),
        (counted(0.97), "int8", True, UNVERIFIED),
        (counted(0.89, 60, 60), "int8", True, FAILED),
        (counted(0.97, 3, 1.5), "int8", False, UNVERIFIED),
        (counted(0.3), "int8", False, UNVERIFIED),
        (counted(0.3), "fp16", False, FAILED),
        (Comparison(NAMES), "fp32", True, FAILED),
    ],
)
def test_limits(seen, precision, trained, status):
    verdict = judge(seen, precision, trained=trained)
    assert verdict.status == status and all(verdict.reasons)
    if precision == "int8" and seen.scores is None:
        assert any("could not be judged" in reason for reason in verdict.reasons)


def test_labels_of_nothing_give_no_score(network, scenes):
    blank = [s._replace(label=np.full((50, 60), 255, np.uint8)) for s in scenes]
    seen = seen_of(network, FrameNetwork(fuse(network), description()).eval(), blank)
    assert seen.miou is None and "miou_lost" not in seen.to_dict()


def test_class_maps_take_the_nearest_pixel():
    classes = torch.tensor([[[1, 2], [3, 4]]])
    doubled = classes.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(at_size(classes, (4, 4)).long(), doubled)
    assert torch.equal(at_size(doubled, (2, 2)).long(), classes)
