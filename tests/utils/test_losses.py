"""Dice, Lovasz-softmax and label smoothing: against plain loops, and where losses break."""

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from utils.criterion import CrossEntropy, OhemCrossEntropy, SegCriterion
from utils.losses import dice_loss, lovasz_loss

IGNORE = 255


class Outputs(NamedTuple):
    logits: Tensor
    aux: tuple[Tensor, ...] = ()
    boundary: Tensor | None = None


def batch(classes=5, seed=0, absent=(), ignored=0.2):
    """Logits and labels of noise; no label of the classes `absent`."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, (2, 7, 9))
    for index in absent:
        label[label == index] = (index + 1) % classes
    label[rng.random(label.shape) < ignored] = IGNORE
    logits = rng.normal(0, 2, (2, classes, 7, 9))
    return torch.tensor(logits, dtype=torch.float32), torch.tensor(label).to(torch.uint8)


def valid_pixels(logits, label):
    """(probabilities per class, true class) of every pixel that counts, as Python numbers."""
    found = []
    for image, classes in zip(logits.double().tolist(), label.tolist(), strict=True):
        for y, row in enumerate(classes):
            for x, true in enumerate(row):
                if true != IGNORE:
                    powers = [math.exp(plane[y][x]) for plane in image]
                    found.append(([p / sum(powers) for p in powers], true))
    return found


def plain_dice(logits, label):
    pixels, losses = valid_pixels(logits, label), []
    for c in {true for _, true in pixels}:
        common = sum(p[c] for p, true in pixels if true == c)
        total = sum(p[c] for p, _ in pixels) + sum(true == c for _, true in pixels)
        losses.append(1 - 2 * common / total)
    return sum(losses) / len(losses)


def plain_lovasz(logits, label):
    """By its definition: the Jaccard loss of growing sets of the worst pixels."""
    pixels, losses = valid_pixels(logits, label), []
    for c in {true for _, true in pixels}:
        errors = [(1 - p[c] if true == c else p[c], true == c) for p, true in pixels]
        errors.sort(reverse=True)
        truth, before, loss = sum(hit for _, hit in errors), 0.0, 0.0
        for count in range(1, len(errors) + 1):
            wrong = errors[:count]
            missed = sum(hit for _, hit in wrong)
            jaccard = 1 - (truth - missed) / (truth + count - missed)
            loss += errors[count - 1][0] * (jaccard - before)
            before = jaccard
        losses.append(loss)
    return sum(losses) / len(losses)


LOSSES = {dice_loss: plain_dice, lovasz_loss: plain_lovasz}
each_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)


@each_loss
@pytest.mark.parametrize("absent", [(), (0,), (1, 3)])
@pytest.mark.parametrize("ignored", [0.0, 0.3])
def test_region_losses_are_what_plain_loops_give(loss, absent, ignored):
    for seed in range(3):
        logits, label = batch(seed=seed, absent=absent, ignored=ignored)
        value = loss(logits, label)
        assert value.dtype == torch.float32 and value.shape == ()
        assert value.item() == pytest.approx(LOSSES[loss](logits, label), rel=1e-5)


@each_loss
def test_a_gradient_is_that_of_finite_differences(loss):
    logits, label = batch(classes=3)
    logits = logits.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(logits, label), logits)
    plain, step = LOSSES[loss], 1e-5
    for place in ((0, 0, 1, 1), (1, 2, 3, 4), (0, 1, 6, 8)):
        moved = [logits.detach().double().clone() for _ in range(2)]
        moved[0][place] += step
        moved[1][place] -= step
        slope = (plain(moved[0], label) - plain(moved[1], label)) / (2 * step)
        assert gradient[place].item() == pytest.approx(slope, rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("share", [0.5, 0.01])
def test_the_lovasz_gradient_of_many_pixels_is_that_of_float64(share):
    """By its definition, differences of the Jaccard loss, which only float64 has digits for."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 2, 300, 400, generator=generator).requires_grad_()
    label = (torch.rand(4, 300, 400, generator=generator) < share).to(torch.uint8)
    label[torch.rand(label.shape, generator=generator) < 0.1] = IGNORE
    (gradient,) = torch.autograd.grad(lovasz_loss(logits, label), logits)

    wide = logits.detach().double().requires_grad_()
    losses, counted = [], label != IGNORE
    for c in range(2):
        true = (label == c)[counted]
        seen, fine = (torch.softmax(x, 1)[:, c][counted] for x in (logits.detach(), wide))
        order = torch.where(true, 1 - seen, seen).argsort(descending=True, stable=True)
        hit = true[order].double()
        jaccard = 1 - (hit.sum() - hit.cumsum(0)) / (hit.sum() + (1 - hit).cumsum(0))
        steps = torch.diff(jaccard, prepend=jaccard.new_zeros(1))
        losses.append((torch.where(true, 1 - fine, fine)[order] * steps).sum())
    (expected,) = torch.autograd.grad(sum(losses) / 2, wide)
    assert (gradient - expected).norm() < 1e-5 * expected.norm()
    assert ((gradient - expected).abs() <= 1e-4 * expected.abs() + 1e-14).all()


@each_loss
def test_what_is_ignored_has_no_part(loss):
    logits, label = batch()
    changed = torch.where((label == IGNORE)[:, None], 50 * torch.randn_like(logits), logits)
    changed.requires_grad_()
    value = loss(changed, label)
    assert value.item() == pytest.approx(loss(logits, label).item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(value, changed)
    assert not gradient[(label == IGNORE)[:, None].expand_as(gradient)].any()


@each_loss
def test_a_perfect_map_loses_nothing_and_a_wrong_one_all(loss):
    _, label = batch(ignored=0.0)
    right = 100 * F.one_hot(label.long(), 5).permute(0, 3, 1, 2).float()
    assert loss(right, label).item() == pytest.approx(0, abs=1e-6)
    assert loss(right.roll(1, 1), label).item() == pytest.approx(1, abs=1e-6)


@each_loss
@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_all_ignored_or_extreme_batches_have_finite_gradients(loss, scale, dtype):
    logits, label = batch()
    for labels in (label, torch.full_like(label, IGNORE), torch.zeros_like(label)):
        leaf = (scale * logits).to(dtype).requires_grad_()
        value = loss(leaf, labels)
        value.backward()
        assert value.isfinite() and leaf.grad.isfinite().all() and leaf.grad.dtype == dtype
        if (labels == IGNORE).all():
            assert value == 0 and not leaf.grad.any()


@each_loss
def test_nothing_is_read_back(loss):
    """On the meta device there is nothing to read: a value needed on the way raises."""
    logits, label = (t.to("meta") for t in batch())
    logits.requires_grad_()
    loss(logits, label).backward()
    assert logits.grad.shape == logits.shape


@pytest.mark.parametrize("weights", [None, [1.0, 0.5, 2.0, 3.0, 0.1]])
def test_label_smoothing_spreads_the_target(weights):
    logits, label = batch()
    total = count = 0.0
    for p, true in valid_pixels(logits, label):
        weight = 1.0 if weights is None else weights[true]
        target = [0.1 / 5 + 0.9 * (c == true) for c in range(5)]
        total -= weight * sum(t * math.log(q) for t, q in zip(target, p, strict=True))
        count += weight
    loss = CrossEntropy(weights, smoothing=0.1)
    assert loss(logits, label).item() == pytest.approx(total / count, rel=1e-5)
    if weights is None:
        torch_says = F.cross_entropy(logits, label.long(), ignore_index=IGNORE, label_smoothing=0.1)
        assert loss(logits, label).item() == pytest.approx(torch_says.item(), rel=1e-5)


def test_smoothing_does_not_change_which_pixels_are_hard():
    logits, label = batch()
    label = label.long()
    plain, smooth = (OhemCrossEntropy(0.5, 1, smoothing=s) for s in (0.0, 0.3))
    valid = label != IGNORE
    kept = plain._kept(torch.exp(-plain.pixels(logits, label).plain), valid)
    spread = F.cross_entropy(
        logits, label, ignore_index=IGNORE, label_smoothing=0.3, reduction="none"
    )
    assert 0 < kept.sum() < valid.sum()
    assert smooth(logits, label).item() == pytest.approx(spread[kept].mean().item(), rel=1e-5)


def test_a_criterion_of_all_terms_sums_its_parts():
    logits, label = batch()
    more = {"dice_weight": 0.5, "lovasz_weight": 0.25, "label_smoothing": 0.1}
    criterion = SegCriterion("ce", aux_weights=(0.4,), **more)
    leaf = logits.bfloat16().requires_grad_()
    loss, parts = criterion(Outputs(leaf, (leaf,)), label)
    loss.backward()
    assert list(parts) == ["main", "dice", "lovasz", "aux"] and leaf.grad.isfinite().all()
    seen = leaf.detach().float()
    assert parts["dice"].item() == pytest.approx(0.5 * dice_loss(seen, label).item())
    assert parts["lovasz"].item() == pytest.approx(0.25 * lovasz_loss(seen, label).item())
    assert parts["aux"].item() == pytest.approx(0.4 * parts["main"].item())
    assert loss.item() == pytest.approx(sum(parts.values()).item(), rel=1e-6)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"dice_weight": -1.0}, r"Dice -1\.0"),
        ({"lovasz_weight": -0.5}, r"Lovasz -0\.5"),
        ({"label_smoothing": 1.0}, r"label smoothing is 1\.0"),
    ],
)
def test_impossible_weights_are_refused(more, words):
    with pytest.raises(ValueError, match=words):
        SegCriterion("ce", **more)
