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
    """Shows pictures until somebody quits or closes it.

    Attributes:
        closed: whether that has happened; nothing is shown any more.

    Raises ValueError where no window can be opened.
    """

    def __init__(self) -> None:
        self.closed = False
        if re.search(r"GUI:\s*NONE", cv2.getBuildInformation()):
            raise InputError(
                "this OpenCV has no windows (opencv-python-headless); `pip install opencv-python` "
                "in its place brings them"
            )
        displays = ("DISPLAY", "WAYLAND_DISPLAY")
        if sys.platform == "linux" and not any(os.environ.get(name) for name in displays):
            raise InputError("there is no display to open a window on (DISPLAY is not set)")
        cv2.namedWindow(TITLE, cv2.WINDOW_NORMAL)

    def show(self, picture: np.ndarray, *, waits: bool, stop: object = None) -> None:
        """Show RGB uint8 (H, W, 3).

        Args:
            waits: until a key is pressed, or `stop` is true.
        """
        if self.closed:
            return
        cv2.imshow(TITLE, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        key = -1
        while key < 0 and not self.closed:
            key = cv2.waitKey(WAIT if waits else 1)
            visible = cv2.getWindowProperty(TITLE, cv2.WND_PROP_VISIBLE) >= 1
            self.closed = not visible or (key >= 0 and key & 0xFF in QUITS)
            if not waits or stop:
                return
