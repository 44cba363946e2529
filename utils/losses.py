"""Losses beside cross entropy: of a boundary map, and of regions (soft Dice, Lovasz-softmax).

The two of regions see the batch as one picture, average over the classes that stand in its labels,
and are 0 with zero gradients where no pixel counts. Shapes depend on no value and the host reads
nothing back, so that a step can be recorded. Logits are N, C, H, W of any floating type, labels
N, H, W.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import InputError


def boundary_loss(logits: Tensor, boundary: Tensor, coefficient: float = 20.0) -> Tensor:
    """Balanced binary cross entropy of a boundary map, times `coefficient` (PIDNet, l1).

    Each boundary pixel weighs the share of non-boundary pixels in the batch and the other way
    round. Values other than 0 and 1 weigh nothing but count in the mean over all pixels. Without
    a boundary pixel the loss is 0.

    Args:
        logits: N, 1, H, W.
        boundary: N, H, W with 1 on boundaries and 0 elsewhere.
    """
    if boundary.ndim != 3 or logits.shape != (len(boundary), 1, *boundary.shape[1:]):
        raise InputError(
            f"boundary logits {tuple(logits.shape)} do not fit the boundary map "
            f"{tuple(boundary.shape)}; N, 1, H, W and N, H, W are needed"
        )
    positive, negative = boundary == 1, boundary == 0
    num_positive, num_negative = positive.sum(), negative.sum()
    weights = (positive * num_negative + negative * num_positive).float()
    weights = weights / (num_positive + num_negative).clamp_min(1)
    loss = F.binary_cross_entropy_with_logits(logits[:, 0].float(), positive.float(), weights)
    return coefficient * loss


def dice_loss(logits: Tensor, label: Tensor, ignore_label: int = 255) -> Tensor:
    """1 - 2 |P and G| / (|P| + |G|) per class, P being softmax probabilities and G the label.

    Averaged over the classes present, scalar float32 in 0..1. Ignored pixels are in neither set.
    """
    inside = _regions(label, logits.shape[1], ignore_label)
    probability = torch.softmax(logits.float(), 1)
    counted = (label != ignore_label)[:, None]
    common = torch.where(inside, probability, 0.0).sum((0, 2, 3))
    size = torch.where(counted, probability, 0.0).sum((0, 2, 3))
    truth = inside.sum((0, 2, 3)).float()
    return _mean_of_present(1 - 2 * common / (size + truth).clamp_min(1e-6), truth)


def lovasz_loss(logits: Tensor, label: Tensor, ignore_label: int = 255) -> Tensor:
    """Lovasz-softmax (Berman et al., CVPR 2018), averaged over the classes present; scalar float32.

    The convex extension of 1 - IoU: errors |G - P| of every class in falling order, each times what
    it takes from the class's IoU. Those factors are no function of the logits, so only they are
    kept for the backward pass, not the order.
    """
    inside = _regions(label, logits.shape[1], ignore_label).transpose(0, 1).flatten(1)
    probability = torch.softmax(logits.float(), 1).transpose(0, 1).flatten(1)
    counted = (label != ignore_label).flatten()
    errors = torch.where(inside, 1 - probability, probability)
    with torch.no_grad():
        # One class at a time: a sort takes many times the memory of what it sorts.
        factors = [_factors(*pair, counted) for pair in zip(errors, inside, strict=True)]
    losses = torch.stack([(e * f).sum() for e, f in zip(errors, factors, strict=True)])
    return _mean_of_present(losses, inside.sum(1).float())


def _factors(errors: Tensor, inside: Tensor, counted: Tensor) -> Tensor:
    """How much IoU each pixel's error takes, for one class: (pixels,), 0 where ignored.

    With T pixels of the class, of which h are among the pixels so far, and m others so far, the IoU
    of a prediction that is wrong in all of them is (T - h) / (T + m). A pixel of the class takes
    1 / (T + m) from it, another (T - h) / ((T + m) (T + m - 1)). In float32 differences of the IoU
    itself, which is near 1 or 0, would be mostly rounding where pixels are many.
    """
    order = torch.where(counted, errors, -1.0).argsort(descending=True, stable=True)
    hit = inside[order].long()  # whole numbers: float32 cannot count more than 2^24 pixels
    total = hit.sum()
    found = (total - hit.cumsum(0)).float()
    union = total + (1 - hit).cumsum(0)
    per_pixel = 1 / union.clamp_min(1).float()
    steps = torch.where(hit > 0, per_pixel, found * per_pixel / (union - 1).clamp_min(1).float())
    return torch.zeros_like(errors).scatter_(0, order, steps) * counted


def _regions(label: Tensor, num_classes: int, ignore_label: int) -> Tensor:
    """N, C, H, W: whether a pixel is of that class; nowhere where it is ignored."""
    classes = torch.arange(num_classes, device=label.device)[:, None, None]
    return (label.long()[:, None] == classes) & (label != ignore_label)[:, None]


def _mean_of_present(losses: Tensor, pixels: Tensor) -> Tensor:
    """Mean of per-class losses over the classes with pixels."""
    present = pixels > 0
    return torch.where(present, losses, 0.0).sum() / present.sum().clamp_min(1)
