"""CamVid: 11 classes, 960x720 (also distributed at 480x360), 367/101/233 images.

The class order is that of the published PIDNet and RDRNet checkpoints.
"""

from .meta import ColorEncoding, DatasetMeta, IdEncoding

# Class name and its colour in the 32-colour label images; all other colours are ignored.
CLASSES = (
    ("bicyclist", (0, 128, 192)),
    ("building", (128, 0, 0)),
    ("car", (64, 0, 128)),
    ("pole", (192, 192, 128)),
    ("fence", (64, 64, 128)),
    ("pedestrian", (64, 64, 0)),
    ("road", (128, 64, 128)),
    ("sidewalk", (0, 0, 192)),
    ("sign", (192, 128, 128)),
    ("sky", (128, 128, 128)),
    ("tree", (128, 128, 0)),
)

CLASS_NAMES = tuple(name for name, _ in CLASSES)
PALETTE = tuple(color for _, color in CLASSES)

# Label values 0..10 of the index images that the SegNet tutorial distributes; 11 is void.
INDEX_ORDER = (
    "sky", "building", "pole", "road", "sidewalk", "tree", "sign", "fence", "car", "pedestrian",
    "bicyclist",
)  # fmt: skip

# Runs of frames: (prefix, first, last), inclusive; 367, 101 and 233 frames in all.
SPLITS = {
    "train": (
        ("0001TP_", 6690, 8520),
        ("0006R0_f", 930, 3930),
        ("0016E5_", 390, 7920),
        ("0016E5_", 8190, 8640),
    ),
    "val": (("0016E5_", 7959, 8159),),
    "test": (("0001TP_", 8550, 10380), ("Seq05VD_f", 0, 5100)),
}

ENCODINGS = {
    "color": ColorEncoding({color: index for index, color in enumerate(PALETTE)}),
    "index": IdEncoding(
        ids={value: CLASS_NAMES.index(name) for value, name in enumerate(INDEX_ORDER)},
        ignored=frozenset({11, 255}),
    ),
}

CAMVID = DatasetMeta("camvid", CLASS_NAMES, PALETTE, ENCODINGS)

# The embedded street scenes have the same classes; their labels are drawn, not read.
SYNTHETIC = DatasetMeta(
    "synthetic",
    CLASS_NAMES,
    PALETTE,
    {"class": IdEncoding({index: index for index in range(11)}, frozenset({255}))},
)


def split_of(frame: str) -> str | None:
    """The split of a frame such as 0016E5_00390; None if it belongs to none."""
    for split, runs in SPLITS.items():
        for prefix, first, last in runs:
            number = frame.removeprefix(prefix)
            if number != frame and number.isdecimal() and first <= int(number) <= last:
                return split
    return None
