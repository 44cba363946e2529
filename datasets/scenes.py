"""Scene -> transform -> item -> batch: what every dataset shares."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from .cache import SceneCache, Source, stamp_of
from .errors import InputError
from .loading import collate
from .meta import DataError, DatasetMeta
from .mixing import Coarse, Patch, draw_patches, paste, thumbnail
from .sampler import Draw, substitute
from .transforms import Sample, TrainTransform

Transform = Callable[[Sample, np.random.Generator], Sample]

MOST_SUBSTITUTES = 16  # unreadable scenes in a row before a sample gives up
FIND_ALL = "tools/check_data.py finds all at once"


class SceneDataset(Dataset):
    """What every dataset shares: scene -> transform -> item.

    A subclass gives `__len__`, `load(index)` and `name(index)`, and `source(index)` where its
    scenes can change.

    Args:
        meta: classes.
        transform: TrainTransform, EvalTransform or the like.
        need_boundary: items carry the boundary target, which the transform has to make.
        cache: of decoded scenes.
        skip_unreadable: take another scene for one that cannot be read, and say so.
    """

    labelled = True  # whether scenes have labels

    def __init__(
        self,
        meta: DatasetMeta,
        transform: Transform,
        need_boundary: bool = False,
        *,
        cache: SceneCache | None = None,
        skip_unreadable: bool = False,
    ) -> None:
        self.meta, self.transform, self.need_boundary = meta, transform, need_boundary
        self.cache, self.skip_unreadable = cache, skip_unreadable

    def with_cache(self, cache: SceneCache | None) -> "SceneDataset":
        """The same dataset with another cache (whose size may follow from its length)."""
        other = copy.copy(self)
        other.cache = cache
        return other

    def __len__(self) -> int:
        raise NotImplementedError(f"{type(self).__name__} defines no __len__")

    def load(self, index: int) -> Sample:
        """The untransformed scene: RGB image and class indices, uint8."""
        raise NotImplementedError(f"{type(self).__name__} defines no load")

    def label(self, index: int) -> np.ndarray:
        """The class indices of `load` alone."""
        return self.load(index).label

    def name(self, index: int) -> str:
        """What identifies scene `index`, for example its image path."""
        raise NotImplementedError(f"{type(self).__name__} defines no name")

    def source(self, index: int) -> Source:
        """What scene `index` is made of, for a cache. Raises OSError where a file is gone."""
        return Source(index, f"{self.meta.name} {self.name(index)}", stamp_of())

    def scene(self, index: int) -> Sample:
        """The untransformed scene, from the cache where it is there; may be read-only."""
        if self.cache is None:
            return self.load(index)
        try:
            source = self.source(index)
        except OSError:
            return self.load(index)  # says what is wrong with the file
        scene = self.cache.get(source)
        if scene is None:
            scene = self.load(index)
            self.cache.put(source, scene)
        return scene

    def readable(self, draw: Draw) -> tuple[int, Sample, list[str]]:
        """The scene of `draw`, or with `skip_unreadable` one that takes its place.

        Which one that is follows from the draw alone.

        Returns:
            its index, the scene, and one sentence per scene that could not be read.

        Raises:
            DataError: the scene, or MOST_SUBSTITUTES in a row, cannot be read.
        """
        index, problems = draw.index, []
        while True:
            try:
                return index, self.scene(index), problems
            except DataError as error:
                problems.append(str(error))
                if not self.skip_unreadable:
                    raise
                index = next_index(draw, problems, len(self))

    def __getitem__(self, draw: int | Draw) -> dict[str, Any]:
        """One item.

        Args:
            draw: `Draw(index, seed)`; a bare index means seed 0.

        Returns:
            image (3, h, w) float32; label (h, w) uint8 where there is one; boundary (h, w) uint8
            0/1 where asked for; name; size (H, W) before the transform; with `skip_unreadable`
            also skipped, the sentences of `readable`; where CutMix may come, coarse, for `batch`.
        """
        draw = Draw(*draw) if isinstance(draw, tuple) else Draw(draw, 0)
        index, scene, skipped = self.readable(draw)
        try:
            sample, coarse = self._transformed(scene, draw)
        except (DataError, MemoryError) as error:
            raise DataError(f"{self.name(index)}: {str(error) or 'out of memory'}") from None
        item: dict[str, Any] = {"image": torch.from_numpy(sample.image)}
        if sample.label is not None:
            item["label"] = torch.from_numpy(np.require(sample.label, requirements="W"))
        if self.need_boundary:
            if sample.boundary is None:
                raise InputError(f"{self.name(index)}: the transform makes no boundary target")
            item["boundary"] = torch.from_numpy(sample.boundary)
        if self.skip_unreadable:
            item["skipped"] = skipped
        if coarse is not None:
            item["coarse"] = coarse
        return item | {"name": self.name(index), "size": scene.image.shape[:2]}

    def _transformed(self, scene: Sample, draw: Draw) -> tuple[Sample, Coarse | None]:
        if not isinstance(self.transform, TrainTransform):
            return self.transform(scene, np.random.default_rng(draw.seed)), None
        augmentation, coarse = self.transform.draw_for(
            draw, scene.image.shape[:2], self.thumbnail_of(scene)
        )
        return self.transform.apply(scene, augmentation), coarse

    def thumbnail_of(self, scene: Sample) -> np.ndarray | None:
        """What drawing an augmentation is to see of the label, if anything; a view."""
        seen = self.transform.looks_at_labels and scene.label is not None
        return thumbnail(scene.label) if seen else None

    def patches(self, coarse: Sequence[Coarse]) -> list[Patch] | None:
        """What CutMix does to a batch of crops."""
        rule = self.transform
        return draw_patches(coarse, rule.cutmix, rule.crop_size, rule.ignore_label)

    def batch(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Items -> batch, as `collate`, and CutMix where the transform asks for it."""
        coarse = [item.pop("coarse") for item in items if "coarse" in item]
        batch = collate(items)
        if coarse and (patches := self.patches(coarse)):
            paste(batch, patches)
        return batch


def next_index(draw: Draw, problems: list[str], length: int) -> int:
    """The scene to try after `problems`. Raises DataError after MOST_SUBSTITUTES of them."""
    if len(problems) > MOST_SUBSTITUTES:
        raise DataError(
            f"{len(problems)} images in a row cannot be read, the last: {problems[-1]}; {FIND_ALL}"
        )
    return substitute(draw, len(problems), length)
