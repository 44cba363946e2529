"""Signals that ask a run to save and end."""

import contextlib
import os
import signal
import time
from types import FrameType

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))
SECOND_THOUGHT = 2.0  # seconds within which another Ctrl-C is the same one


def stopped(status: int) -> bool:
    """Whether an exit status is that of a run which was asked to stop, saved and ended."""
    return status - 128 in SIGNALS


class StopRequest:
    """Ctrl-C, and what schedulers send before they kill, as a flag that loops look at.

    The first is answered at once. A Ctrl-C after SECOND_THOUGHT seconds interrupts; the run then
    goes on from its last checkpoint only.

    Args:
        speaks: whether this process answers, one of several.
        when: said of when it will stop.
    """

    def __init__(self, speaks: bool = True, when: str = "after this step") -> None:
        self.signal: int | None = None
        self._speaks, self._when, self._since = speaks, when, 0.0
        for number in SIGNALS:
            asked = number in (signal.SIGINT, signal.SIGTERM)
            if asked or signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
                signal.signal(number, self._note)

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def status(self) -> int:
        """Exit status of a run that was asked to stop, by this process's signal or another's."""
        return 128 + (self.signal or signal.SIGTERM)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signal is None:
            self.signal, self._since = number, now
            if self._speaks:
                # A handler may run within any write of the program: not print, and no lock.
                with contextlib.suppress(OSError):
                    again = "; Ctrl-C again: discard" if number == signal.SIGINT else ""
                    os.write(2, f"\nstopping {self._when} and saving{again}\n".encode())
        elif number == signal.SIGINT and now - self._since > SECOND_THOUGHT:
            raise KeyboardInterrupt


class Interruption:
    """SIGINT, SIGTERM and SIGHUP as KeyboardInterrupt, for programs that have nothing to save.

    Libraries swallow one that is raised within their callbacks; calling this raises it again.
    """

    def __init__(self) -> None:
        self.asked = False
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # as by nohup
                signal.signal(number, self._interrupt)

    def __call__(self) -> None:
        if self.asked:
            raise KeyboardInterrupt

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        raise KeyboardInterrupt
