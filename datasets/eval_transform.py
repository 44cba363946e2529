"""What happens to an image before it is scored."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from .errors import InputError
from .transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Normalize,
    Sample,
    resized,
    scale_to_sides,
    scaled,
)

MAX_SIDE = 1 << 16  # pixels, that a file may ask for


class EvalTransform:
    """The whole image, normalised; the label keeps its size.

    Args:
        size: (height, width) to scale the image to, or the length that its long side is brought
            to with the ratio kept; None = as it is, or as the next three say.
        short_side, long_side: the image is scaled, ratio kept, until its short side has this many
            pixels or its long side that many, whichever comes first; 0 = does not count.
        divisor: both sides are then stretched up to a multiple of this. Differs from
            mmsegmentation, which interpolates twice for it.
        mean, std: of the normalisation.
    """

    def __init__(
        self,
        size: tuple[int, int] | int | None = None,
        *,
        short_side: int = 0,
        long_side: int = 0,
        divisor: int = 1,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        sides = (size,) if isinstance(size, int) else size
        if sides is not None and min(sides) < 1:
            raise InputError(f"evaluation size is {size}; accepted: above 0, or None")
        if min(short_side, long_side) < 0 or divisor < 1:
            raise InputError(
                f"short side {short_side}, long side {long_side}, divisor {divisor}; accepted: "
                "0 and above, 0 and above, 1 and above"
            )
        self.short_side, self.long_side, self.divisor = short_side, long_side, divisor
        self.size = size
        self.normalize = Normalize(mean, std)

    def __call__(self, sample: Sample, rng: np.random.Generator | None = None) -> Sample:
        """Transform one sample; nothing is random."""
        return Sample(self.image(sample.image), sample.label, sample.boundary)

    def image(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 RGB -> (3, h, w) float32, scaled and normalised."""
        size = self.target_size(image.shape[:2])
        if image.shape[:2] != size:
            image = resized(image, size, cv2.INTER_LINEAR)
        return self.normalize(image)

    def target_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) that an image of `size` is scaled to."""
        if self.size is None:
            scale = scale_to_sides(size, self.short_side, self.long_side)
            height, width = (scaled(side, scale) for side in size)
            return height + -height % self.divisor, width + -width % self.divisor
        if isinstance(self.size, int):
            factor = self.size / max(size)
            return round(size[0] * factor) or 1, round(size[1] * factor) or 1
        return self.size[0], self.size[1]

    def facts(self) -> dict[str, Any]:
        """What a network that is fed by this has to be fed by later; `from_facts` undoes it."""
        return {
            "mean": list(self.normalize.mean),
            "std": list(self.normalize.std),
            "short_side": self.short_side,
            "long_side": self.long_side,
            "size_divisor": self.divisor,
        }

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any], origin: str = "") -> "EvalTransform":
        """The transform of `facts`, which may be those of a file called `origin`, or {}.

        Raises ValueError where they are not those of such a transform.
        """
        known = cls().facts()
        right = facts.keys() <= known.keys() and all(
            _is_like(value, known[key]) for key, value in facts.items()
        )
        facts = known | dict(facts)
        if not right or min(facts["std"]) <= 0:
            raise InputError(
                f"{origin or 'a network'} states its input as {dict(facts)}; accepted: "
                f"values like {known}"
            )
        return cls(
            short_side=facts["short_side"],
            long_side=facts["long_side"],
            divisor=facts["size_divisor"],
            mean=facts["mean"],
            std=facts["std"],
        )


def _is_like(value: Any, example: Any) -> bool:
    """Whether a value is of the kind of `example`, a whole number or a list of three numbers."""
    if isinstance(example, list):
        return (
            isinstance(value, (list, tuple))
            and len(value) == len(example)
            and all(type(v) in (int, float) and math.isfinite(v) for v in value)
        )
    return type(value) is int and 0 <= value <= MAX_SIDE
