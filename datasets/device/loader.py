"""Augmentation of whole batches on the training device.

What is drawn is the same `Augmentation` that the CPU path applies. A batch is one gather from a
flat block of source pixels: the whole data set where it fits on the device, otherwise the source
windows of the batch, which loader processes cut out and send as uint8.
"""

import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ..boundary import label_boundary
from ..cache import GIGA, LEFT_FREE, SceneCache
from ..loading import make_loader
from ..machine import free_memory
from ..meta import DataError
from ..mixing import Coarse
from ..sampler import Draw, EpochBatchSampler
from ..scenes import FIND_ALL, SceneDataset, next_index
from ..transforms import Sample, cut
from .render import Pixels, Renderer, pack

LARGEST_SHARE = 0.5  # of the free CUDA memory that resident scenes may take
HOPELESS = 1.5  # times the limit, estimated by the first scene: not even tried


class DeviceLoader:
    """Batches as `make_loader` gives them with `collate`, but made and lying on `device`.

    Args:
        dataset: with a TrainTransform and labels.
        sampler: which samples; the batches follow from it as on the CPU path.
        device: where the batches are wanted.
        limit: gigabytes (10^9 bytes) that resident scenes may take; of the free memory of a
            CUDA device LARGEST_SHARE at most, of the system's all but LEFT_FREE. 0 keeps nothing
            resident.
        workers: loader processes, or threads while resident scenes are read.

    Raises:
        DataError: a scene to keep resident cannot be read and is not to be skipped.
    """

    def __init__(
        self,
        dataset: SceneDataset,
        sampler: EpochBatchSampler,
        device: torch.device,
        *,
        limit: float,
        workers: int = 0,
    ) -> None:
        self.dataset, self.sampler, self.device = dataset, sampler, device
        self.renderer = Renderer(dataset.transform, device)
        size = limit * GIGA
        if device.type == "cuda":
            size = min(size, LARGEST_SHARE * torch.cuda.mem_get_info(device)[0])
        else:
            size = min(size, (1 - LEFT_FREE) * free_memory())
        self.resident = ResidentScenes.read(dataset, device, int(size), workers)
        if self.resident is None:
            self.windows = make_loader(
                SourceWindows(dataset),
                batch_sampler=sampler,
                workers=workers,
                pin_memory=device.type == "cuda",
                collate_items=functools.partial(join_windows, patches=dataset.patches),
            )

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if self.resident is not None:
            for draws in self.sampler:
                yield self.renderer(self.resident.pixels, self.resident.plan(draws))
            return
        for batch in self.windows:
            packed, edge = batch.pop("packed"), batch.pop("edge")
            pinned = self.device.type == "cuda"
            packed = packed.to(self.device, non_blocking=pinned)
            edge = None if edge is None else edge.to(self.device, non_blocking=pinned)
            yield self.renderer(Pixels(packed, edge), batch)


class ResidentScenes:
    """A whole data set on the device, 4 bytes per pixel (5 with boundary targets)."""

    def __init__(self, dataset: SceneDataset, device: torch.device) -> None:
        self.dataset, self.device = dataset, device
        self.with_edge = dataset.transform.boundary
        self.sizes: list[tuple[int, int] | None] = []  # None: unreadable
        self.offsets: list[int] = []
        self.thumbs: list[np.ndarray | None] = []
        self.problems: dict[int, str] = {}
        self.used = 0
        self.pixels = self._reserve(0)

    @classmethod
    def read(
        cls, dataset: SceneDataset, device: torch.device, limit: int, workers: int
    ) -> "ResidentScenes | None":
        """Decode all of `dataset` in threads; None as soon as it turns out larger than `limit`."""
        if limit <= 0:
            return None
        scenes = cls(dataset, device)
        per_pixel = 5 if scenes.with_edge else 4
        threads = max(1, workers)
        with ThreadPoolExecutor(threads) as pool:
            decoded = _in_order(pool, scenes._decode, len(dataset), 2 * threads)
            for index, (scene, edge) in enumerate(decoded):
                if isinstance(scene, Sample) and not scenes.used:
                    # Most data sets have one size: then this is all the memory that is needed.
                    expected = scene.label.size * (len(dataset) - index)
                    if expected * per_pixel > HOPELESS * limit:
                        return None
                    scenes.pixels = scenes._reserve(min(expected, limit // per_pixel))
                if not scenes._add(index, scene, edge, limit // per_pixel):
                    return None
        if not scenes.used:
            raise DataError(f"no image can be read, the first: {scenes.problems[0]}; {FIND_ALL}")
        return scenes

    @property
    def bytes(self) -> int:
        """What the scenes take on the device."""
        return sum(part.nbytes for part in self.pixels if part is not None)

    def plan(self, draws: Sequence[Draw]) -> dict[str, Any]:
        """Where the samples of a batch lie, and what happens to them."""
        names, sizes, skipped, augmentations, places, crops = [], [], [], [], [], []
        for draw in draws:
            index, problems = draw.index, []
            while self.sizes[index] is None:
                problems.append(self.problems[index])
                index = next_index(draw, problems, len(self.sizes))
            size = self.sizes[index]
            rule, thumb = self.dataset.transform, self.thumbs[index]
            augmentation, coarse = rule.draw_for(draw, size, thumb)
            crops += [] if coarse is None else [coarse]
            top, left = augmentation.window[:2]
            places.append((self.offsets[index] + top * size[1] + left, size[1]))
            augmentations.append(augmentation)
            names.append(self.dataset.name(index))
            sizes.append(size)
            skipped.append(problems)
        batch = {"augmentation": augmentations, "place": places, "name": names, "size": sizes}
        batch["patches"] = self.dataset.patches(crops) if crops else None
        return batch | ({"skipped": skipped} if self.dataset.skip_unreadable else {})

    def _decode(self, index: int) -> tuple[Sample | str, np.ndarray | None]:
        try:
            scene = self.dataset.scene(index)
        except DataError as error:
            if not self.dataset.skip_unreadable:
                raise
            return str(error), None
        return scene, label_boundary(scene.label) if self.with_edge else None

    def _add(self, index: int, scene: Sample | str, edge: np.ndarray | None, limit: int) -> bool:
        self.offsets.append(self.used)
        if isinstance(scene, str):
            self.problems[index] = scene
            self.sizes.append(None)
            self.thumbs.append(None)
            return True
        self.sizes.append(scene.label.shape)
        thumb = self.dataset.thumbnail_of(scene)
        self.thumbs.append(None if thumb is None else thumb.copy())
        end = self.used + scene.label.size
        if end > limit:
            return False
        if end > len(self.pixels.packed):
            before = self.pixels
            self.pixels = self._reserve(min(limit, end + end // 2))
            for old, new in zip(before, self.pixels, strict=True):
                if new is not None:
                    new[: self.used] = old[: self.used]
        self.pixels.packed[self.used : end] = pack(scene.image, scene.label)
        if edge is not None:
            self.pixels.edge[self.used : end] = torch.from_numpy(edge).reshape(-1)
        self.used = end
        return True

    def _reserve(self, count: int) -> Pixels:
        edge = torch.empty(count, dtype=torch.uint8, device=self.device)
        packed = torch.empty(count, dtype=torch.int32, device=self.device)
        return Pixels(packed, edge if self.with_edge else None)


class SourceWindows(Dataset):
    """The source windows of a data set's samples: decoded and cut out, not yet scaled."""

    def __init__(self, dataset: SceneDataset) -> None:
        self.dataset = dataset

    @property
    def cache(self) -> SceneCache | None:
        """That of the data set."""
        return self.dataset.cache

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        """packed and edge as in Pixels, augmentation, name, size, and where there are any skipped
        and coarse, as those of SceneDataset."""
        dataset = self.dataset
        index, scene, skipped = dataset.readable(draw)
        size = scene.image.shape[:2]
        rule = dataset.transform
        augmentation, coarse = rule.draw_for(draw, size, dataset.thumbnail_of(scene))
        image, label, edge = cut(scene, augmentation.window, rule.boundary)
        item = {
            "packed": pack(image, label),
            "edge": None if edge is None else torch.from_numpy(edge.copy()).reshape(-1),
            "augmentation": augmentation,
            "name": dataset.name(index),
            "size": size,
        }
        if coarse is not None:
            item["coarse"] = coarse
        return item | ({"skipped": skipped} if dataset.skip_unreadable else {})


def join_windows(
    items: Sequence[dict[str, Any]], patches: Callable[[Sequence[Coarse]], Any] | None = None
) -> dict[str, Any]:
    """Items of SourceWindows -> one block of pixels, and lists; `patches` draws CutMix."""
    crops = [item.pop("coarse") for item in items if "coarse" in item]
    batch: dict[str, Any] = {key: [item[key] for item in items] for key in items[0]}
    counts = [len(packed) for packed in batch["packed"]]
    starts = [0, *itertools.accumulate(counts)]
    batch["place"] = [
        (start, augmentation.window[3])
        for start, augmentation in zip(starts, batch["augmentation"], strict=False)
    ]
    batch["patches"] = patches(crops) if patches and crops else None
    batch["packed"] = torch.cat(batch["packed"])
    batch["edge"] = None if batch["edge"][0] is None else torch.cat(batch["edge"])
    return batch


def _in_order(
    pool: ThreadPoolExecutor, function: Callable[[int], Any], count: int, ahead: int
) -> Iterator[Any]:
    """Results of function(0) .. function(count - 1), `ahead` of them computed ahead."""
    waiting: deque = deque()
    try:
        for index in range(count):
            waiting.append(pool.submit(function, index))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
