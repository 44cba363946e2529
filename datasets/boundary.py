"""The boundary target of PIDNet (Xu et al., CVPR 2023): where the label changes."""

import cv2
import numpy as np

FRAME = 6  # pixels along the image border without a target, before the dilation
DILATION = 4  # side of the square that thickens the outline
# Canny looks 2 pixels around a pixel, the dilation 2 more; the frame is placed by coordinates.
MARGIN = 4


def label_boundary(
    label: np.ndarray, window: tuple[int, int, int, int] | None = None
) -> np.ndarray:
    """Outlines of the label regions, 0/1.

    Canny on the class indices, the ignore value included (so the outline of an ignored region
    counts as well), then the frame is cleared, then a square dilation.

    Args:
        label: (H, W) uint8 class indices.
        window: (top, left, height, width): only this part of the result, at its own cost.

    Returns:
        (H, W) or (height, width) uint8.
    """
    rows, columns = label.shape
    top, left, height, width = window or (0, 0, rows, columns)
    y0, x0 = max(0, top - MARGIN), max(0, left - MARGIN)
    y1, x1 = min(rows, top + height + MARGIN), min(columns, left + width + MARGIN)
    # Neighbouring classes differ by 1 or more, so any threshold below 1 finds every outline.
    edge = cv2.Canny(np.ascontiguousarray(label[y0:y1, x0:x1]), 0.1, 0.2)
    edge[: max(0, FRAME - y0)] = 0
    edge[max(0, rows - FRAME - y0) :] = 0
    edge[:, : max(0, FRAME - x0)] = 0
    edge[:, max(0, columns - FRAME - x0) :] = 0
    edge = cv2.dilate(edge, np.ones((DILATION, DILATION), np.uint8))
    return edge[top - y0 : top - y0 + height, left - x0 : left - x0 + width] & 1
