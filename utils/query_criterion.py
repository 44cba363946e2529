"""The loss of networks whose queries each predict a class and a mask (Mask2Former, 2112.01527)."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from .criterion import check_labels
from .errors import InputError

WEIGHTS = {"class": 2.0, "mask": 5.0, "dice": 5.0}  # of the parts; the matching weighs alike
PARTS = {"class": "loss_cross_entropy", "mask": "loss_mask", "dice": "loss_dice"}  # the library's


class QueryOutputs(Protocol):
    """What a network's training pass gives: for every round of its queries logits of their classes,
    N, queries, classes + 1, the last for "no object", and of their masks, N, queries, h, w."""

    classes: Sequence[Tensor]
    masks: Sequence[Tensor]


class QueryCriterion(nn.Module):
    """Matches the queries of every round with the classes of an image, and compares the pairs.

    The library transformers does both, in float32. A class that an image shows is one mask; pixels
    to ignore make none and, as published, belong to none. Each round is matched anew, by classes
    and by points drawn evenly. A matched query learns the class and, at points most of which are
    drawn where it is unsure, the mask; all others learn "no object". The losses of all rounds are
    added up.

    `needs_host`: the matching is computed on the host, which waits for the device.

    Differs from the published training: of several processes each divides by the number of its own
    masks, not by the mean number.

    Args:
        num_classes: without "no object".
        class_weights: one factor per class in the loss of classes, or None for 1.
        ignore_label: label value of pixels that belong to no mask.
        num_points: at which a mask is compared.
        no_object: factor of "no object" in the loss of classes.

    Raises:
        ValueError: the library is not installed, or not a version that has the loss.
    """

    needs_host = True

    def __init__(
        self,
        num_classes: int,
        *,
        class_weights: Sequence[float] | None = None,
        ignore_label: int = 255,
        num_points: int = 12544,
        no_object: float = 0.1,
    ) -> None:
        super().__init__()
        try:
            from transformers import Mask2FormerConfig
            from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

            config = Mask2FormerConfig(
                num_labels=num_classes,
                no_object_weight=no_object,
                train_num_points=num_points,
                oversample_ratio=3.0,
                importance_sample_ratio=0.75,
                **{f"{part}_weight": weight for part, weight in WEIGHTS.items()},
            )
            self.loss = Mask2FormerLoss(config, {})
        except ImportError as error:
            reason = str(error).strip().partition("\n")[0]
            raise InputError(
                f"the loss of queries needs transformers and scipy ({reason}): pip install "
                "-e .[query]"
            ) from error
        self.num_classes, self.ignore_label = num_classes, ignore_label
        if class_weights is not None:
            self.weigh_classes(class_weights)

    def weigh_classes(self, class_weights: Sequence[float]) -> None:
        """Replace the class weights. Raises ValueError where they are not one per class."""
        if len(class_weights) != self.num_classes:
            raise InputError(f"{len(class_weights)} class weights for {self.num_classes} classes")
        self.loss.empty_weight[:-1] = torch.as_tensor(class_weights)

    def forward(
        self, outputs: QueryOutputs, label: Tensor, boundary: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The total loss and its detached parts, weighted, so that they sum to it.

        Args:
            outputs: of the network's training pass, any resolution and precision.
            label: N, H, W, uint8 or int64.
            boundary: not looked at.

        Returns:
            loss: scalar, float32.
            parts: "class", "mask", "dice".

        Raises:
            ValueError: a label value that is neither a class nor ignore.
        """
        check_labels(label, self.num_classes, self.ignore_label)
        targets = [self.masks_of(each) for each in label]
        present, masks = map(list, zip(*targets, strict=True))
        rounds = list(zip(outputs.masks, outputs.classes, strict=True))
        with torch.autocast(label.device.type, enabled=False):
            losses = [self.loss(m.float(), c.float(), masks, present) for m, c in rounds]
            parts = {
                part: weight * torch.stack([loss[PARTS[part]] for loss in losses]).sum()
                for part, weight in WEIGHTS.items()
            }
            loss = torch.stack(list(parts.values())).sum()
        return loss, {name: part.detach() for name, part in parts.items()}

    def masks_of(self, label: Tensor) -> tuple[Tensor, Tensor]:
        """Of a label H, W the classes that it shows, K, and where each of them is, K, H, W, float32
        of 0 and 1."""
        present = label.unique()
        present = present[present != self.ignore_label]
        return present.long(), (label == present[:, None, None]).float()
