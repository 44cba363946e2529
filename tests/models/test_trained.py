"""Networks from their files alone."""

import pytest
import torch

from datasets import EvalTransform
from models import build_model
from models.weights import load_trained
from models.weights.rtlinearformer import EARLIER
from utils.checkpoint import save_checkpoint

OPTIONS = {"base_channels": 4, "context_channels": 6, "head_channels": 8}
FACTS = {
    "architecture": "pidnet_s",
    "options": OPTIONS,
    "dataset": "fruit",
    "class_names": ["apple", "pear", "plum"],
    "palette": [[255, 0, 0], [0, 255, 0], [0, 0, 255]],
    "input": EvalTransform(short_side=360).facts(),
    "score": {"miou": 0.5, "epoch": 7, "list": "val.lst"},
}


@pytest.fixture
def write(tmp_path):
    model = build_model("pidnet_s", 3, **OPTIONS)

    def write_file(**changes):
        content = FACTS | changes
        content = {key: value for key, value in content.items() if value is not None}
        save_checkpoint(tmp_path / "best.pt", {**content, "model": model.state_dict()})
        return tmp_path / "best.pt"

    return write_file


def test_the_file_says_all(write):
    trained = load_trained(write())
    assert trained.model.architecture == "pidnet_s" and not trained.model.training
    assert trained.class_names == ("apple", "pear", "plum")
    assert trained.palette[2] == (0, 0, 255) and trained.dataset == "fruit"
    assert EvalTransform.from_facts(trained.input).short_side == 360
    assert trained.score == FACTS["score"] and "none missing" in trained.report


def test_a_file_of_before_is_fed_as_it_was_then(write):
    trained = load_trained(write(input=None, score=None))
    assert EvalTransform.from_facts(trained.input).facts() == EvalTransform().facts()
    assert trained.score == {}


def test_arguments_stand_in_for_what_a_file_does_not_say(tmp_path):
    path = tmp_path / "bare.pt"
    torch.save(build_model("pidnet_s", 3, **OPTIONS).state_dict(), path)
    named = {"class_names": FACTS["class_names"], "palette": FACTS["palette"]}
    assert load_trained(path, "pidnet_s", **named, **OPTIONS).class_names[0] == "apple"
    with pytest.raises(ValueError, match="does not say of which network"):
        load_trained(path, **named)
    with pytest.raises(ValueError, match="does not say what its classes are"):
        load_trained(path, "pidnet_s", **OPTIONS)
    two = {"class_names": ["a", "b"], "palette": [(0, 0, 0), (1, 1, 1)]}
    with pytest.raises(ValueError, match="has 3 classes, not the 2 that are named"):
        load_trained(path, "pidnet_s", **two, **OPTIONS)


def test_the_earlier_shape_of_rtlinearformer_is_recognised(tmp_path):
    path, small = tmp_path / "bare.pt", {"base_channels": 8, "attention_channels": 16}
    named = {"class_names": FACTS["class_names"], "palette": FACTS["palette"]}
    model = build_model("rtlinearformer_slim", 3, **EARLIER, **small)
    torch.save(model.state_dict(), path)
    trained = load_trained(path, "rtlinearformer_slim", **named, **small)
    assert trained.model.options == EARLIER | small and "none missing" in trained.report
    model = build_model("rtlinearformer_slim", 3, **small)
    torch.save(model.state_dict(), path)
    assert load_trained(path, "rtlinearformer_slim", **named, **small).model.options == small


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"class_names": ["apple"]}, "class names"),
        ({"class_names": [1, 2, 3]}, "class names"),
        ({"palette": [[0, 0, 0]]}, "palette"),
        ({"palette": [[0, 0, 300]] * 3}, "palette"),
        ({"palette": ["red", "green", "blue"]}, "palette"),
        ({"palette": None}, "palette"),
        ({"architecture": "pidnet_xs"}, "unknown architecture"),
    ],
    ids=str,
)
def test_a_file_that_says_nonsense_is_refused(write, changes, words):
    with pytest.raises(ValueError, match=words):
        load_trained(write(**changes))


@pytest.mark.parametrize(
    "asked",
    [
        {"architecture": "ddrnet_23_slim"},
        {"class_names": ["apple", "pear"], "palette": [(0, 0, 0)] * 2},
        {"class_names": ["pear", "apple", "plum"], "palette": [(0, 0, 0)] * 3},
    ],
    ids=str,
)
def test_a_file_of_something_else_is_refused(write, asked):
    with pytest.raises(ValueError, match=r"best\.pt (holds pidnet_s|was trained on other classes)"):
        load_trained(write(), **asked)


@pytest.mark.parametrize(
    "facts",
    [
        {"mean": [0, 0]},
        {"mean": "grey"},
        {"std": [0.2, 0.0, 0.2]},
        {"std": [0.2, float("nan"), 0.2]},
        {"short_side": -1},
        {"short_side": 1e9},
        {"short_side": 10**9},
        {"size_divisor": 0},
        {"crop": 3},
    ],
    ids=str,
)
def test_an_input_that_cannot_be_is_refused(facts):
    with pytest.raises(ValueError, match="accepted"):
        EvalTransform.from_facts(facts, "best.pt")
