"""Whether an exported file computes what the network computes.

The file runs in its own runtime, the network in float32 PyTorch before it is folded, normalised by
other code than the file's: a wrong fold, mean, resize or weight on the way shows as other classes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from .failures import first_cause
from .metrics import ConfusionMatrix
from .runtimes import ArrayRunner

LEAST_EQUAL = {"fp32": 0.9999, "fp16": 0.995, "bf16": 0.995}  # share of the pixels
MOST_MIOU = {"fp16": 0.2, "bf16": 0.2, "int8": 1.0}  # difference, percent
FLOOR = 0.9  # equal pixels below which rounding is no excuse any more
MALFORMED = "its output is no map of these classes at the size of the input"
PASSED, FAILED, UNVERIFIED = "passed", "failed", "unverified"


class Scene(NamedTuple):
    """What both compute.

    frame: H, W, 3, uint8 RGB, at a size that the file takes.
    image: the same normalised, 3, H, W, float32.
    label: class ids, uint8, of any size; None = not known.
    """

    frame: np.ndarray
    image: np.ndarray
    label: np.ndarray | None = None


class Reference(NamedTuple):
    """The network's answer to a scene.

    logits: 1, C, h, w, at its stride; classes: 1, H, W; margin: how much stronger the first class
    is than the second, 1, H, W.
    """

    logits: Tensor
    classes: Tensor
    margin: Tensor


@torch.inference_mode()
def reference(model: Any, image: np.ndarray) -> Reference:
    """What `model`, in eval mode and float32, gives for a normalised image (3, H, W)."""
    logits = model(torch.from_numpy(image)[None])
    resized = model.upsample(logits, image.shape[1:])
    first, second = resized.topk(2, 1)[0].unbind(1)
    return Reference(logits, resized.argmax(1), first - second)


@dataclass
class Comparison:
    """What has been seen so far of a file beside its network.

    Attributes:
        scenes, pixels, equal: how many; `equal` pixels have the same class.
        logits_difference, logits_largest: the largest difference of two logits and the largest
            logit, where the file gives them.
        overturned: the largest margin, in logits, of a pixel that got another class.
        fault: why an output could not be compared, which ended the comparison; "" for none.
        scores: confusion matrices of the network and of the file, where there are labels.
    """

    class_names: Sequence[str]
    ignore_label: int = 255
    scenes: int = 0
    pixels: int = 0
    equal: int = 0
    logits_difference: float | None = None
    logits_largest: float | None = None
    overturned: float = 0.0
    fault: str = ""
    scores: tuple[ConfusionMatrix, ConfusionMatrix] | None = None

    @property
    def share(self) -> float:
        """Of the pixels that have the same class."""
        return self.equal / max(1, self.pixels)

    @property
    def miou(self) -> tuple[float, float] | None:
        """Percent, of the network and of the file; None without a labelled pixel."""
        if self.scores is None or not self.scores[0].matrix.any():
            return None
        network, file = (100 * matrix.overall()["mIoU"] for matrix in self.scores)
        return network, file

    def add(self, expected: Reference, found: np.ndarray, classes: Tensor, scene: Scene) -> None:
        """Count a scene.

        Args:
            found: the file's output.
            classes: the class map that follows from it, 1, H, W.
        """
        if found.dtype.kind == "f":
            difference = (torch.from_numpy(found) - expected.logits).abs().max().item()
            largest = expected.logits.abs().max().item()
            # NaN would be lost in max(); it must not
            worst = difference if difference == difference else float("inf")
            self.logits_difference = max(self.logits_difference or 0.0, worst)
            self.logits_largest = max(self.logits_largest or 0.0, largest)
        same = classes == expected.classes
        self.scenes += 1
        self.pixels += same.numel()
        self.equal += int(same.sum())
        if not same.all():
            self.overturned = max(self.overturned, expected.margin[~same].max().item())
        if scene.label is not None:
            self._score(expected.classes, classes, scene.label)

    def _score(self, expected: Tensor, found: Tensor, label: np.ndarray) -> None:
        if self.scores is None:
            names, ignored = self.class_names, self.ignore_label
            self.scores = tuple(ConfusionMatrix(len(names), names, ignored) for _ in range(2))
        for matrix, classes in zip(self.scores, (expected, found), strict=True):
            matrix.update(at_size(classes, label.shape), torch.from_numpy(label)[None])

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        report = {
            "scenes": self.scenes,
            "pixels": self.pixels,
            "equal_percent": 100 * self.share,
            "largest_margin_overturned": self.overturned,
        }
        if self.logits_difference is not None:
            finite = np.isfinite(self.logits_difference)
            report["largest_logit_difference"] = self.logits_difference if finite else "not finite"
            report["largest_logit"] = self.logits_largest
        if self.miou is not None:
            network, file = self.miou
            report |= {"miou_network": network, "miou_file": file, "miou_lost": network - file}
        return report


def at_size(classes: Tensor, size: tuple[int, ...]) -> Tensor:
    """A class map (1, H, W) by the nearest pixel at `size`, as the files' run.py does."""
    if classes.shape[1:] == tuple(size):
        return classes
    resized = cv2.resize(
        classes[0].numpy().astype(np.uint8), tuple(size)[::-1], interpolation=cv2.INTER_NEAREST
    )
    return torch.from_numpy(resized)[None]


def compare(
    model: Any,
    runs: Mapping[str, ArrayRunner],
    output: str,
    scenes: Iterable[Scene],
    class_names: Sequence[str],
    ignore_label: int = 255,
) -> dict[str, Comparison]:
    """Run files and their network on `scenes`.

    Args:
        model: the network, in eval mode and float32, not folded.
        runs: files by name; from a frame (1, H, W, 3) to classes or an image (1, 3, H, W) to
            logits.
        output: "classes" or "logits", what they give.

    Returns:
        what was seen of each file.
    """
    seen = {name: Comparison(class_names, ignore_label) for name in runs}
    for scene in scenes if runs else ():
        expected = reference(model, scene.image)
        for name, run in runs.items():
            if seen[name].fault:
                continue
            taken = np.ascontiguousarray(scene.frame) if output == "classes" else scene.image
            try:
                found = run(taken[None])
            except Exception as error:  # noqa: BLE001  (each runtime has its own)
                seen[name].fault = f"it cannot run on every picture: {first_cause(error)}"
                continue
            classes = class_map_of(model, output, found, expected)
            if classes is None or int(classes.max()) >= len(class_names):
                seen[name].fault = MALFORMED
                continue
            seen[name].add(expected, found, classes, scene)
    return seen


def class_map_of(model: Any, output: str, found: np.ndarray, expected: Reference) -> Tensor | None:
    """The class map that follows from a file's output; None where that has another shape."""
    right = expected.logits if output == "logits" else expected.classes
    if found.shape != right.shape:
        return None
    values = torch.from_numpy(found)
    if output == "classes":
        return values.long()
    return model.upsample(values, expected.classes.shape[1:]).argmax(1)


class Verdict(NamedTuple):
    """status: PASSED, FAILED or UNVERIFIED. reasons: one sentence each."""

    status: str
    reasons: tuple[str, ...]


def judge(seen: Comparison, precision: str, *, trained: bool) -> Verdict:
    """Hold a comparison against the limits.

    float32: LEAST_EQUAL of the pixels. Half precision: also at most MOST_MIOU, where labels are
    given. int8: at most MOST_MIOU; without labels that cannot be judged, and the file is
    unverified. Under FLOOR of the pixels all fail.

    Random weights decide pixels by less than these precisions round, so that equal pixels say
    little: beyond a limit the file is unverified in half precision, in int8 it always is.
    """
    share, miou = seen.share, seen.miou
    if seen.fault:
        return Verdict(FAILED, (seen.fault,))
    if not seen.scenes:
        return Verdict(FAILED, ("there is no scene to compare on",))
    if seen.logits_difference == float("inf"):
        return Verdict(FAILED, ("some logits are not finite numbers",))
    reasons = [f"{100 * share:.4f} % of the pixels of {seen.scenes} scenes have the same class"]
    failed = doubtful = False
    if precision in LEAST_EQUAL and share < LEAST_EQUAL[precision]:
        reasons.append(f"at least {100 * LEAST_EQUAL[precision]:g} % are needed in {precision}")
        doubtful = precision != "fp32" and not trained
        failed = not doubtful
    if miou is not None:
        lost = miou[0] - miou[1]
        reasons.append(f"mIoU {miou[0]:.2f} of the network, {miou[1]:.2f} of the file")
        if precision in MOST_MIOU and not abs(lost) <= MOST_MIOU[precision]:
            reasons.append(f"a difference of {MOST_MIOU[precision]:g} is allowed in {precision}")
            doubtful |= not trained
            failed |= trained
    elif precision == "int8":
        reasons.append("no labels were compared, so that the loss in mIoU could not be judged")
        doubtful = True
    if share < FLOOR and (trained or precision != "int8"):
        reasons.append(f"at least {100 * FLOOR:g} % are needed in any case")
        failed = True
    elif not trained and precision != "fp32":
        reasons.append("the weights are random, so that rounding decides many pixels")
        doubtful |= precision == "int8"
    return Verdict(FAILED if failed else UNVERIFIED if doubtful else PASSED, tuple(reasons))
