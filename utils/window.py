"""A window that shows pictures, where there is a display and OpenCV can open one."""

import os
import re
import sys

import cv2
import numpy as np

from .errors import InputError

TITLE = "q quits"
QUITS = (ord("q"), 27)  # 27 is Esc
WAIT = 50  # milliseconds between two looks at the keys


class Window:
    """Raises ValueError where no window can be opened."""

    def __init__(self) -> None:
        if re.search(r"GUI:\s*NONE", cv2.getBuildInformation()):
            raise InputError(
                "this OpenCV has no windows (opencv-python-headless); `pip install opencv-python` "
                "in its place brings them"
            )
        displays = ("DISPLAY", "WAYLAND_DISPLAY")
        if sys.platform == "linux" and not any(os.environ.get(name) for name in displays):
            raise InputError("there is no display to open a window on (DISPLAY is not set)")
        cv2.namedWindow(TITLE, cv2.WINDOW_NORMAL)

    def show(self, picture: np.ndarray, *, waits: bool) -> bool:
        """Show RGB uint8 (H, W, 3); False once somebody quits or closes the window.

        Args:
            waits: until a key is pressed.
        """
        cv2.imshow(TITLE, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        while True:
            key = cv2.waitKey(WAIT if waits else 1)
            if key & 0xFF in QUITS or cv2.getWindowProperty(TITLE, cv2.WND_PROP_VISIBLE) < 1:
                return False
            if key >= 0 or not waits:
                return True

    def close(self) -> None:
        """Take the window away."""
        cv2.destroyWindow(TITLE)
