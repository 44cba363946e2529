"""The work of the published PIDNet loader per training sample, to measure against.

What its repository does, in its order: the whole image, label and boundary map are scaled, then
padded and cropped; the image is float32 from then on. Two things are cheaper here than there, in
favour of the published loader: class indices come from a table rather than from one comparison per
class, and mean and deviation are float32 rather than lists that numpy computes with in float64.
"""

import cv2
import numpy as np

from datasets import SegmentationDataset
from datasets.transforms import IMAGENET_MEAN, IMAGENET_STD

FRAME, DILATION = 6, 4  # pixels


class PublishedLoading:
    """Samples of a dataset with a TrainTransform, which says crop, scales and flipping."""

    def __init__(self, dataset: SegmentationDataset) -> None:
        self.dataset, self.rule = dataset, dataset.transform
        self.mean, self.std = (np.float32(values) for values in (IMAGENET_MEAN, IMAGENET_STD))

    def sample(self, index: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Image (3, h, w) float32, label (h, w) uint8 and boundary (h, w) float64.

        The scale is the one that our transform draws with the same seed.
        """
        rng = np.random.default_rng(seed)
        entry = self.dataset.entries[index]
        image = self.read_image(self.dataset.folder / entry.image)
        label = self.encode(self.read_label(self.dataset.folder / entry.label))
        arrays = [image, label, self.boundary(label)]
        factor = self.rule.draw_factor(rng) * self.rule.base_scale(label.shape)
        arrays = self.crop(self.scale(arrays, factor), rng)
        arrays[0] = self.normalise(arrays[0])
        return self.flip(arrays, rng)

    def read_image(self, path) -> np.ndarray:
        return cv2.imread(str(path), cv2.IMREAD_COLOR)

    def read_label(self, path) -> np.ndarray:
        return cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)

    def encode(self, label: np.ndarray) -> np.ndarray:
        encoding = self.dataset.meta.encoding(self.dataset.encoding)
        return encoding.encode(label, self.dataset.meta.ignore_label)

    def boundary(self, label: np.ndarray) -> np.ndarray:
        edge = cv2.Canny(label, 0.1, 0.2)
        edge = np.pad(edge[FRAME:-FRAME, FRAME:-FRAME], FRAME)
        return (cv2.dilate(edge, np.ones((DILATION, DILATION), np.uint8)) > 0) * 1.0

    def scale(self, arrays: list[np.ndarray], factor: float) -> list[np.ndarray]:
        size = tuple(int(side * factor + 0.5) for side in arrays[1].shape[::-1])
        kinds = (cv2.INTER_LINEAR, cv2.INTER_NEAREST, cv2.INTER_NEAREST)
        return [
            cv2.resize(array, size, interpolation=kind)
            for array, kind in zip(arrays, kinds, strict=True)
        ]

    def crop(self, arrays: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
        high, wide = self.rule.crop_size
        rows, columns = arrays[1].shape
        below, right = max(0, high - rows), max(0, wide - columns)
        if below or right:
            fills = ((0, 0, 0), self.dataset.meta.ignore_label, 0)
            arrays = [
                cv2.copyMakeBorder(array, 0, below, 0, right, cv2.BORDER_CONSTANT, value=fill)
                for array, fill in zip(arrays, fills, strict=True)
            ]
        top = int(rng.integers(rows + below - high + 1))
        left = int(rng.integers(columns + right - wide + 1))
        return [array[top : top + high, left : left + wide] for array in arrays]

    def normalise(self, image: np.ndarray) -> np.ndarray:
        image = image.astype(np.float32)[:, :, ::-1] / 255
        image -= self.mean
        image /= self.std
        return image.transpose(2, 0, 1)

    def flip(self, arrays: list[np.ndarray], rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        if self.rule.flip == "random" and rng.random() < 0.5:
            arrays = [array[..., ::-1] for array in arrays]
        return tuple(array.copy() for array in arrays)
