"""Losses of the training step, in float32 whatever the precision of the network.

Labels are integer maps N, H, W with classes 0..C-1 and `ignore_label`; logits are N, C, H, W.
Every loss is finite and connected to the graph on a batch that leaves it nothing to learn from
(all pixels ignored, no boundary pixel): it is then 0 with zero gradients.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import InputError
from .losses import boundary_loss, dice_loss, lovasz_loss
from .resize import resize

LOSSES = ("ohem", "ce")


class Outputs(Protocol):
    """What a network's training pass gives: logits, auxiliary logits, boundary logit or None."""

    logits: Tensor
    aux: tuple[Tensor, ...]
    boundary: Tensor | None


class PixelLosses(NamedTuple):
    """Unweighted losses N, H, W: the one to learn from, and the one without label smoothing."""

    loss: Tensor
    plain: Tensor


class CrossEntropy(nn.Module):
    """Cross entropy, averaged in one of two ways.

    Args:
        class_weights: one factor per class, or None for 1 everywhere.
        ignore_label: label value of pixels that do not count.
        average: "valid" divides by the summed class weights of the valid pixels, which without
            weights is their number (PyTorch's mean; RTFormer). "all" divides by the number of all
            pixels, ignored ones included, and not by the weights (PIDNet's auxiliary head).
        smoothing: share in [0, 1) of the target that is spread evenly over all classes. The class
            weight stays that of the label. Differs from PyTorch, which weighs the spread part by
            each class's own weight.
    """

    def __init__(
        self,
        class_weights: Sequence[float] | None = None,
        ignore_label: int = 255,
        average: str = "valid",
        smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= smoothing < 1:
            raise InputError(f"label smoothing is {smoothing}; it must lie in [0, 1)")
        self.smoothing = smoothing
        if average not in ("valid", "all"):
            raise InputError(f"average is {average!r}; it must be 'valid' or 'all'")
        self.ignore_label = ignore_label
        self.average = average
        weights = None if class_weights is None else torch.as_tensor(class_weights).float()
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Scalar loss of logits N, C, H, W at the resolution of the label N, H, W."""
        label = label.long()
        return self.reduce(self.pixels(logits, label), label, logits.shape[1])

    def pixels(self, logits: Tensor, label: Tensor) -> PixelLosses:
        """Unweighted losses of every pixel."""
        plain = pixel_loss(logits, label, self.ignore_label)
        if not self.smoothing:
            return PixelLosses(plain, plain)
        spread = torch.logsumexp(logits.float(), 1) - logits.float().mean(1)
        return PixelLosses(plain + self.smoothing * (spread - plain), plain)

    def reduce(self, losses: PixelLosses, label: Tensor, num_classes: int) -> Tensor:
        """Average of unweighted pixel losses over the pixels that `label` counts."""
        loss, valid = losses.loss, label != self.ignore_label
        weights = self.pixel_weights(label, valid, num_classes)
        total = torch.where(valid, loss * weights, 0.0).sum()
        if self.average == "all":
            return total / label.numel()
        return total / weights.sum().clamp_min(torch.finfo(torch.float32).tiny)

    def pixel_weights(self, label: Tensor, valid: Tensor, num_classes: int) -> Tensor:
        """Class weight of every pixel, N, H, W; 0 where ignored."""
        if self.class_weights is None:
            return valid.float()
        if len(self.class_weights) != num_classes:
            raise InputError(
                f"{len(self.class_weights)} class weights for logits of {num_classes} classes"
            )
        return self.class_weights[label.where(valid, 0)] * valid


class OhemCrossEntropy(CrossEntropy):
    """Cross entropy over the hardest pixels (online hard example mining).

    Kept are the valid pixels whose probability of the true class is strictly below
    max(threshold, p[min_kept]), p being the sorted probabilities of the valid pixels and the index
    ending at the last one. With fewer valid pixels than `min_kept` therefore all but the most
    confident stay. The result is the plain mean, over the kept, of the class-weighted loss.

    The host reads nothing back. One value is selected where `threshold` keeps too few, without a
    sort of the image; whether it does is known on the device only, so there it is always selected.

    Args:
        threshold: probability in (0, 1] below which a pixel is hard.
        min_kept: pixels of the whole batch on this device to keep at least; 0 acts as 1.
    """

    def __init__(
        self,
        threshold: float = 0.9,
        min_kept: int = 131072,
        class_weights: Sequence[float] | None = None,
        ignore_label: int = 255,
        smoothing: float = 0.0,
    ) -> None:
        super().__init__(class_weights, ignore_label, smoothing=smoothing)
        if not 0 < threshold <= 1:
            raise InputError(f"OHEM threshold is {threshold}; it must lie in (0, 1]")
        if min_kept < 0:
            raise InputError(f"OHEM min_kept is {min_kept}; it must not be negative")
        self.threshold = threshold
        self.min_kept = max(1, min_kept)

    def reduce(self, losses: PixelLosses, label: Tensor, num_classes: int) -> Tensor:
        """Average of the class-weighted pixel losses over the kept pixels."""
        valid = label != self.ignore_label
        weights = self.pixel_weights(label, valid, num_classes)
        kept = self._kept(torch.exp(-losses.plain.detach()), valid)
        return torch.where(kept, losses.loss * weights, 0.0).sum() / kept.sum().clamp_min(1)

    def _kept(self, probability: Tensor, valid: Tensor) -> Tensor:
        hard = valid & (probability < self.threshold)
        if probability.device.type == "cpu" and hard.sum() > self.min_kept:
            return hard  # p[min_kept] is below the threshold
        ranked = probability.masked_fill(~valid, math.inf).flatten()
        lowest = ranked.topk(min(self.min_kept + 1, len(ranked)), largest=False).values
        last = (valid.sum() - 1).clamp(0, len(lowest) - 1)  # 0 where nothing is valid
        limit = lowest.gather(0, last.view(1)).clamp_min(self.threshold)
        return valid & (probability < limit)


def pixel_loss(logits: Tensor, label: Tensor, ignore_label: int = 255) -> Tensor:
    """Unweighted cross entropy of every pixel, float32 N, H, W; 0 where ignored.

    Raises:
        ValueError: shapes that do not fit, or (see `check_labels`) a value outside the classes.
    """
    if label.ndim != 3 or logits.shape[:1] + logits.shape[2:] != label.shape:
        raise InputError(
            f"logits {tuple(logits.shape)} do not fit the label {tuple(label.shape)}; "
            "N, C, H, W and N, H, W are needed"
        )
    if label.device.type == "cpu":
        check_labels(label, logits.shape[1], ignore_label)
    return F.cross_entropy(
        logits.float(), label.long(), ignore_index=ignore_label, reduction="none"
    )


def check_labels(label: Tensor, num_classes: int, ignore_label: int = 255) -> None:
    """Raise ValueError if a label value is neither a class nor ignore.

    The losses call this for labels on the CPU only: on an accelerator it would wait for the device
    in every step. There a wrong value ends in the device's own assertion, so labels are checked
    while they are still on the CPU.
    """
    wrong = label[((label < 0) | (label >= num_classes)) & (label != ignore_label)]
    if len(wrong):
        raise InputError(
            f"label value {int(wrong[0])} is neither a class (0..{num_classes - 1}) "
            f"nor ignore ({ignore_label}); {len(wrong)} pixels are outside"
        )


class SegCriterion(nn.Module):
    """The loss of a training step: main + auxiliary + boundary + boundary-aware terms.

    PIDNet: main "ohem", `aux_weights` (0.4,), `aux_average` "all", `boundary_weight` 20,
    `boundary_aware_weight` 1, `align_corners` True. RTFormer: main "ce", `aux_weights` (0.4,).

    Args:
        main: "ohem" or "ce", for the main term (weight 1) and the boundary-aware one.
        class_weights: for the main, auxiliary and boundary-aware terms.
        ohem_threshold, ohem_min_kept: see `OhemCrossEntropy`.
        aux_weights: one weight per auxiliary output of the network.
        aux: "ohem" or "ce", for the auxiliary terms.
        aux_average: see `CrossEntropy`; of "ce" only.
        boundary_weight: factor of `boundary_loss`.
        boundary_aware_weight: factor of the main loss over the pixels that the boundary output
            itself marks, sigmoid above `boundary_threshold` (PIDNet, l3). No gradient flows
            through that choice.
        align_corners: convention of the bilinear resize of every output to the label's size.
        label_smoothing: of the main, auxiliary and boundary-aware terms, see `CrossEntropy`.
        dice_weight, lovasz_weight: factors of `dice_loss` and `lovasz_loss` of the main output.

    `needs_host` tells whether a loss reads numbers back on its way, as one that matches queries to
    objects must; a step with such a loss is not recorded.

    A weight of 0 leaves its term out; the head then learns nothing but stays in the graph, as
    DistributedDataParallel needs.
    """

    needs_host = False

    def __init__(
        self,
        main: str = "ohem",
        *,
        class_weights: Sequence[float] | None = None,
        ignore_label: int = 255,
        ohem_threshold: float = 0.9,
        ohem_min_kept: int = 131072,
        aux_weights: Sequence[float] = (),
        aux: str = "ce",
        aux_average: str = "valid",
        boundary_weight: float = 0.0,
        boundary_aware_weight: float = 0.0,
        boundary_threshold: float = 0.8,
        align_corners: bool = False,
        label_smoothing: float = 0.0,
        dice_weight: float = 0.0,
        lovasz_weight: float = 0.0,
    ) -> None:
        super().__init__()
        for role, name in (("main", main), ("auxiliary", aux)):
            if name not in LOSSES:
                raise InputError(f"{role} loss is {name!r}; it must be one of {', '.join(LOSSES)}")
        self.region_losses = {
            "dice": (dice_weight, dice_loss),
            "lovasz": (lovasz_weight, lovasz_loss),
        }
        further = (boundary_weight, boundary_aware_weight, dice_weight, lovasz_weight)
        if min(0.0, *further, *aux_weights) < 0:
            raise InputError(
                f"loss weights must not be negative: auxiliary {tuple(aux_weights)}, "
                f"boundary {boundary_weight}, boundary-aware {boundary_aware_weight}, "
                f"Dice {dice_weight}, Lovasz {lovasz_weight}"
            )
        shared = (class_weights, ignore_label)
        ohem = OhemCrossEntropy(ohem_threshold, ohem_min_kept, *shared, label_smoothing)
        even = CrossEntropy(*shared, smoothing=label_smoothing)
        self.main = ohem if main == "ohem" else even
        self.aux = ohem if aux == "ohem" else CrossEntropy(*shared, aux_average, label_smoothing)
        self.ignore_label = ignore_label
        self.aux_weights = tuple(aux_weights)
        self.boundary_weight = boundary_weight
        self.boundary_aware_weight = boundary_aware_weight
        self.boundary_threshold = boundary_threshold
        self.align_corners = align_corners

    def weigh_classes(self, class_weights: Sequence[float]) -> None:
        """Replace the class weights, with which this must have been built."""
        for loss in (self.main, self.aux):
            loss.class_weights.copy_(torch.as_tensor(class_weights))

    def forward(
        self, outputs: Outputs, label: Tensor, boundary: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The total loss and its detached parts, weighted, so that they sum to it.

        Args:
            outputs: of the network's training pass, any resolution and precision.
            label: N, H, W, uint8 or int64.
            boundary: N, H, W, 1 on boundaries; needed if `boundary_weight` is not 0.

        Returns:
            loss: scalar, float32.
            parts: "main", and as configured "dice", "lovasz", "aux", "boundary", "boundary_aware".

        Raises:
            ValueError: the network's outputs are not the ones that the weights ask for.
        """
        self.check(outputs, boundary)
        with torch.autocast(outputs.logits.device.type, enabled=False):
            parts = self._parts(outputs, label.long(), boundary)
            loss = torch.stack(list(parts.values())).sum()
            loss = loss + sum(unused.float().sum() * 0.0 for unused in self._unused(outputs))
        return loss, {name: part.detach() for name, part in parts.items()}

    def check(self, outputs: Outputs, boundary: Tensor | None) -> None:
        """Raise ValueError if the outputs or the targets do not match the configured terms."""
        if len(outputs.aux) != len(self.aux_weights):
            raise InputError(
                f"{len(self.aux_weights)} auxiliary loss weights {self.aux_weights} for a network "
                f"with {len(outputs.aux)} auxiliary outputs; one weight per output is needed"
            )
        if outputs.boundary is None and (self.boundary_weight or self.boundary_aware_weight):
            raise InputError(
                f"boundary loss weight {self.boundary_weight} and boundary-aware loss weight "
                f"{self.boundary_aware_weight} for a network without a boundary output; "
                "both must be 0"
            )
        if self.boundary_weight and boundary is None:
            raise InputError(
                f"boundary loss weight is {self.boundary_weight}, but the batch has no boundary "
                "map; the dataset must make one"
            )

    def _parts(self, outputs: Outputs, label: Tensor, boundary: Tensor | None) -> dict[str, Tensor]:
        num_classes = outputs.logits.shape[1]
        logits = self._resize(outputs.logits, label)
        losses = self.main.pixels(logits, label)
        parts = {"main": self.main.reduce(losses, label, num_classes)}
        for name, (weight, region_loss) in self.region_losses.items():
            if weight:
                parts[name] = weight * region_loss(logits, label, self.ignore_label)
        aux = [
            weight * self.aux(self._resize(logits, label), label)
            for weight, logits in zip(self.aux_weights, outputs.aux, strict=True)
            if weight
        ]
        if aux:
            parts["aux"] = torch.stack(aux).sum()
        if self.boundary_weight or self.boundary_aware_weight:
            edge = self._resize(outputs.boundary, label)
        if self.boundary_weight:
            parts["boundary"] = boundary_loss(edge, boundary, self.boundary_weight)
        if self.boundary_aware_weight:
            near = torch.sigmoid(edge[:, 0].detach()) > self.boundary_threshold
            chosen = label.where(near, self.ignore_label)
            term = self.main.reduce(losses, chosen, num_classes)
            parts["boundary_aware"] = self.boundary_aware_weight * term
        return parts

    def _unused(self, outputs: Outputs) -> list[Tensor]:
        pairs = zip(self.aux_weights, outputs.aux, strict=True)
        unused = [logits for weight, logits in pairs if not weight]
        if outputs.boundary is not None and not self.boundary_weight:
            unused.append(outputs.boundary)
        return unused

    def _resize(self, x: Tensor, label: Tensor) -> Tensor:
        return resize(x.float(), label.shape[-2:], align_corners=self.align_corners)
