"""Pascal VOC 2012, segmentation: background and 20 objects, 1464/1449 images.

The augmented training set of 10582 images takes labels from the Semantic Boundaries Dataset
(Hariharan et al., ICCV 2011).
"""

from .meta import ColorEncoding, DatasetMeta, IdEncoding

CLASS_NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip

PALETTE = (
    (0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128),
    (128, 128, 128), (64, 0, 0), (192, 0, 0), (64, 128, 0), (192, 128, 0), (64, 0, 128),
    (192, 0, 128), (64, 128, 128), (192, 128, 128), (0, 64, 0), (128, 64, 0), (0, 192, 0),
    (128, 192, 0), (0, 64, 128),
)  # fmt: skip

VOC2012 = DatasetMeta(
    name="voc2012",
    class_names=CLASS_NAMES,
    palette=PALETTE,
    encodings={
        # The published PNGs have a palette; the indices are the classes, 255 their outlines.
        "index": IdEncoding(ids={index: index for index in range(21)}, ignored=frozenset({255})),
        "color": ColorEncoding({color: index for index, color in enumerate(PALETTE)}),
    },
    folders=("voc2012/VOCdevkit/VOC2012", "voc2012/VOC2012", "voc2012", "VOCdevkit/VOC2012"),
)
