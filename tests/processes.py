"""Waiting for what other processes do."""

import subprocess
import time
from collections.abc import Callable


def wait_for(
    condition: Callable[[], bool], process: subprocess.Popen, seconds: float = 600
) -> None:
    """Return once `condition()` holds; AssertionError if `process` ends or time runs out before."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)
