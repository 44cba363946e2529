"""Cityscapes: 19 classes, 2048x1024, 2975/500/1525 images (Cordts et al., CVPR 2016)."""

from .meta import DatasetMeta, IdEncoding

CLASS_NAMES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign",
    "vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "train",
    "motorcycle", "bicycle",
)  # fmt: skip

PALETTE = (
    (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153),
    (153, 153, 153), (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152),
    (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100),
    (0, 80, 100), (0, 0, 230), (119, 11, 32),
)  # fmt: skip

# labelIds value of every class, in class order; the other values of 0..33 are not evaluated.
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)

# Of the HRNet and PIDNet recipes.
CLASS_WEIGHTS = (
    0.8373, 0.918, 0.866, 1.0345, 1.0166, 0.9969, 0.9754, 1.0489, 0.8786, 1.0023, 0.9539, 0.9843,
    1.1116, 0.9037, 1.0865, 1.0955, 1.0865, 1.1529, 1.0507,
)  # fmt: skip

CITYSCAPES = DatasetMeta(
    name="cityscapes",
    class_names=CLASS_NAMES,
    palette=PALETTE,
    encodings={
        "labelIds": IdEncoding(
            ids={value: index for index, value in enumerate(LABEL_IDS)},
            ignored=frozenset({*range(34), 255} - set(LABEL_IDS)),
        ),
        "labelTrainIds": IdEncoding(
            ids={index: index for index in range(19)}, ignored=frozenset({255})
        ),
    },
    class_weights=CLASS_WEIGHTS,
)
