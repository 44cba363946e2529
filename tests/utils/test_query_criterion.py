"""The loss of queries: what it asks of them, and on which numbers it stands."""

import importlib
import sys
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from utils.query_criterion import WEIGHTS, QueryCriterion

CLASSES, QUERIES, SIDE = 4, 6, 64
NOTHING = CLASSES  # the last row of the class logits
SURE = 20.0  # a logit
# Points are drawn where a mask is unsure. If it is right everywhere, that is between two pixels of
# different classes and at the border of the image: there the label lies between 0 and 1 as well,
# and no answer is without a cost.
LEAST = 2.0


class Outputs(NamedTuple):
    classes: list[Tensor]
    masks: list[Tensor]


@pytest.fixture(scope="module", autouse=True)
def _library():
    pytest.importorskip("transformers", reason="needs pip install -e .[query]")
    pytest.importorskip("scipy", reason="needs pip install -e .[query]")


@pytest.fixture
def criterion():
    torch.manual_seed(0)
    return QueryCriterion(CLASSES, num_points=2000)


def stripes(*rows: int) -> Tensor:
    """A label of one image in equal horizontal stripes."""
    label = torch.tensor(rows, dtype=torch.uint8).repeat_interleave(SIDE // len(rows))
    return label[None, :, None].expand(1, SIDE, SIDE).contiguous()


def perfect(label: Tensor, queries: list[int], rounds: int = 1) -> Outputs:
    """Outputs whose query `queries[k]` predicts the k-th class of the label, the rest nothing."""
    present = [int(value) for value in label.unique() if value != 255]
    classes = torch.zeros(len(label), QUERIES, CLASSES + 1)
    masks = torch.full((len(label), QUERIES, SIDE, SIDE), -SURE)
    chosen = dict(zip(queries, present, strict=False))
    for query in range(QUERIES):
        classes[:, query, chosen.get(query, NOTHING)] = SURE
        if query in chosen:
            masks[:, query][label == chosen[query]] = SURE
    outputs = [classes] * rounds, [masks] * rounds
    return Outputs(*([t.clone().requires_grad_() for t in each] for each in outputs))


def noise(label: Tensor, rounds: int = 3) -> Outputs:
    torch.manual_seed(1)
    shapes = (len(label), QUERIES, CLASSES + 1), (len(label), QUERIES, SIDE // 4, SIDE // 4)
    return Outputs(*([torch.randn(s).requires_grad_() for _ in range(rounds)] for s in shapes))


@pytest.mark.parametrize("queries", [[0, 1, 2], [4, 0, 5], [2, 1, 0]])
def test_right_answers_cost_nothing_whichever_query_gives_them(criterion, queries):
    label = stripes(0, 1, 3, 3)
    loss, parts = criterion(perfect(label, queries), label)
    assert parts["class"] < 1e-6
    assert loss < LEAST < criterion(noise(label, rounds=1), label)[0] / 4


def test_every_wrong_answer_costs(criterion):
    label = stripes(0, 1, 3, 3)
    right, _ = criterion(perfect(label, [0, 1, 2]), label)
    for part, query, change in (
        ("class", 0, lambda c, m: c.copy_(c.roll(1))),  # another class
        ("class", 5, lambda c, m: c.copy_(c.roll(1))),  # a class where there is nothing
        ("mask", 1, lambda c, m: m.neg_()),  # everything but the class
        ("dice", 1, lambda c, m: m.neg_()),
    ):
        outputs = perfect(label, [0, 1, 2])
        with torch.no_grad():
            change(outputs.classes[0][0, query], outputs.masks[0][0, query])
        loss, parts = criterion(outputs, label)
        assert parts[part] > 1 and loss > right + 1


def test_class_loss_against_its_formula():
    label = stripes(0, 1, 3, 3)
    outputs = perfect(label, [0, 1, 2])
    with torch.no_grad():
        outputs.classes[0].copy_(torch.randn(1, QUERIES, CLASSES + 1))
        outputs.classes[0][:, :3] += 3 * F.one_hot(torch.tensor([0, 1, 3]), CLASSES + 1)
    wanted = torch.tensor([0, 1, 3, NOTHING, NOTHING, NOTHING])
    each = F.cross_entropy(outputs.classes[0][0], wanted, reduction="none")
    for given in (None, (0.5, 2.0, 7.0, 1.5)):
        weight = torch.tensor([*(given or (1.0,) * CLASSES), 0.1])[wanted]
        criterion = QueryCriterion(CLASSES, num_points=2000, class_weights=given)
        _, parts = criterion(outputs, label)
        expected = WEIGHTS["class"] * (weight * each).sum() / weight.sum()
        torch.testing.assert_close(parts["class"], expected.detach())


def test_ignored_pixels_make_no_mask_and_belong_to_none(criterion):
    label = stripes(0, 255, 3, 255)[0]
    present, masks = criterion.masks_of(label)
    assert present.tolist() == [0, 3] and masks.dtype == torch.float32
    assert torch.equal(masks.bool(), torch.stack([label == 0, label == 3]))


def test_all_rounds_count_and_parts_sum_to_the_loss(criterion):
    label = torch.cat([stripes(0, 1, 3, 3), stripes(2, 2, 255, 1)])
    outputs = noise(label)
    loss, parts = criterion(outputs, label)
    assert list(parts) == ["class", "mask", "dice"]
    assert not any(part.requires_grad for part in parts.values())
    torch.testing.assert_close(loss, torch.stack(list(parts.values())).sum())
    single = [criterion(Outputs([c], [m]), label)[0] for c, m in zip(*outputs, strict=True)]
    # Points are drawn anew, 2000 for each of five masks: a few parts in a thousand.
    torch.testing.assert_close(loss, torch.stack(single).sum(), rtol=0.03, atol=0)
    loss.backward()
    for tensor in (*outputs.classes, *outputs.masks):
        assert tensor.grad.isfinite().all() and tensor.grad.any()


@pytest.mark.parametrize("empty", ["all", "one"])
def test_images_without_a_label_teach_that_there_is_nothing(criterion, empty):
    label = torch.full((2, SIDE, SIDE), 255, dtype=torch.uint8)
    if empty == "one":
        label[0] = stripes(0, 1, 3, 3)
    outputs = noise(label)
    loss, parts = criterion(outputs, label)
    loss.backward()
    assert loss.isfinite() and parts["class"] > 0
    if empty == "all":
        assert parts["mask"] == parts["dice"] == 0
    # Connected all the same, as several processes need.
    assert all(t.grad.isfinite().all() for t in (*outputs.classes, *outputs.masks))
    assert all((t.grad[1, :, NOTHING] < 0).all() for t in outputs.classes)


def test_more_classes_than_queries(criterion):
    label = stripes(0, 1, 2, 3)
    outputs = Outputs(*([t[:, :2] for t in each] for each in noise(label)))
    assert criterion(outputs, label)[0].isfinite()


def test_narrow_outputs_are_compared_in_float32(criterion):
    label = stripes(0, 1, 3, 3)
    narrow = Outputs(*([t.detach().bfloat16() for t in each] for each in noise(label)))
    wide = Outputs(*([t.float() for t in each] for each in narrow))
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = criterion(narrow, label)
    torch.manual_seed(0)
    assert loss.dtype == torch.float32 and loss == criterion(wide, label)[0]


def test_one_sentence_for_what_cannot_be(criterion):
    label = stripes(0, 1, 7, 3)
    with pytest.raises(ValueError, match=r"label value 7 is neither a class \(0\.\.3\)"):
        criterion(noise(label), label)
    with pytest.raises(ValueError, match="3 class weights for 4 classes"):
        QueryCriterion(CLASSES, class_weights=(1.0, 1.0, 1.0))


def test_the_missing_package_is_named(monkeypatch):
    library = importlib.import_module("transformers.models.mask2former.modeling_mask2former")

    def lacks(*_):
        raise ImportError("\nMask2FormerLoss requires the scipy library.\nMore words.")

    sentences = []
    with monkeypatch.context() as patch:
        patch.setattr(library, "requires_backends", lacks)
        with pytest.raises(ValueError) as caught:
            QueryCriterion(CLASSES)
        sentences.append(str(caught.value))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError) as caught:
        QueryCriterion(CLASSES)
    sentences.append(str(caught.value))
    assert "requires the scipy library" in sentences[0]
    for sentence in sentences:
        assert sentence.endswith("pip install -e .[query]") and "\n" not in sentence
