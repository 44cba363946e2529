"""Windows: refused in a sentence where there are none, and quit by a key."""

import sys

import cv2
import numpy as np
import pytest

from utils.window import Window

PICTURE = np.zeros((4, 6, 3), np.uint8)


@pytest.fixture
def screen(monkeypatch):
    """An OpenCV with windows, whose keys come from a list; -1 is none."""
    keys, shown = [], []
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "  GUI:     QT5\n")
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(cv2, "namedWindow", lambda *_: None)
    monkeypatch.setattr(cv2, "imshow", lambda _, picture: shown.append(picture))
    monkeypatch.setattr(cv2, "waitKey", lambda _: keys.pop(0) if keys else -1)
    monkeypatch.setattr(cv2, "getWindowProperty", lambda *_: 1.0)
    return keys, shown


@pytest.mark.parametrize(
    ("waits", "keys", "goes_on", "left"),
    [
        (False, [], True, 0),
        (False, [ord("x")], True, 0),
        (False, [ord("q")], False, 0),
        (True, [-1, -1, ord(" "), ord("q")], True, 1),
        (True, [-1, 27, 5], False, 1),
    ],
)
def test_keys(screen, waits, keys, goes_on, left):
    screen[0].extend(keys)
    picture = PICTURE + np.array([1, 2, 3], np.uint8)
    window = Window()
    window.show(picture, waits=waits)
    assert window.closed != goes_on
    assert len(screen[0]) == left
    assert screen[1][0][0, 0].tolist() == [3, 2, 1]  # OpenCV takes BGR


def test_a_window_that_was_closed_quits(screen, monkeypatch):
    window = Window()
    monkeypatch.setattr(cv2, "getWindowProperty", lambda *_: 0.0)
    for _ in range(3):
        window.show(PICTURE, waits=True)
    assert window.closed and len(screen[1]) == 1


def test_a_request_to_stop_ends_the_wait(screen):
    window = Window()
    window.show(PICTURE, waits=True, stop=True)
    assert not window.closed


def test_no_window_no_display(screen, monkeypatch):
    if sys.platform == "linux":
        monkeypatch.delenv("DISPLAY")
        monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
        with pytest.raises(ValueError, match="no display"):
            Window()
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "  GUI:     NONE\n")
    with pytest.raises(ValueError, match="opencv-python-headless"):
        Window()
