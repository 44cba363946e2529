"""The run's own words: console, log.txt, metrics.jsonl and tensorboard, from one process only."""

import contextlib
import errno
import json
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar
from tqdm import tqdm

from .records import atomic_write, storage_error

KEPT = "checkpoints are whole; TRAIN.RESUME True goes on from last.pt"
QUIET_SECONDS = 60  # without a terminal
FLUSH_SECONDS = 60  # within which tensorboard sees a number


class RunLog:
    """Writes into a run folder. Disabled (other processes), every method does nothing.

    Every method raises StorageError where the disk is full or the like.
    """

    def __init__(self, folder: Path, enabled: bool = True) -> None:
        self.folder, self.enabled = folder, enabled
        self._open: list[Any] = []
        self._said = time.monotonic()
        if not enabled:
            return
        with self._writing(folder, "nothing was written"):
            (folder / "tensorboard").mkdir(parents=True, exist_ok=True)
            self._log = (folder / "log.txt").open("a", encoding="utf-8")
            # Not tensorboardX's SummaryWriter: its thread dies of a full disk, and the run then
            # waits for ever for room in its queue. Without a thread forking is safer, too.
            name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}"
            self._board = RecordWriter(str(folder / "tensorboard" / name))
            self._open += [self._log, self._board]
            self._event(file_version="brain.Event:2")
            self._board.flush()
        self._flushed = time.monotonic()

    @property
    def metrics_file(self) -> Path:
        """One JSON object per epoch."""
        return self.folder / "metrics.jsonl"

    def info(self, message: str) -> None:
        """A line on the console and in log.txt."""
        if self.enabled:
            self._said = time.monotonic()
            with self._writing(Path("the console")):
                try:
                    tqdm.write(message)
                    sys.stdout.flush()  # a file or a pipe would keep it for hours
                except OSError as error:
                    if error.errno not in (errno.EIO, errno.EPIPE):
                        raise  # else the terminal or the reader is gone; the run need not be
            with self._writing(self.folder / "log.txt"):
                self._log.write(message + "\n")
                self._log.flush()

    def every_minute(self, line: Callable[[], str]) -> None:
        """`line()` where no terminal shows a bar and a minute has passed since the last line."""
        quiet = time.monotonic() - self._said > QUIET_SECONDS
        if self.enabled and quiet and not sys.stderr.isatty():
            self.info(line())

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Numbers for tensorboard."""
        if not self.enabled:
            return
        with self._writing(self.folder / "tensorboard"):
            for key, value in values.items():
                self._event(step=step, summary=scalar(key, value))
            if time.monotonic() - self._flushed > FLUSH_SECONDS:
                self._board.flush()
                self._flushed = time.monotonic()

    def metrics(self, record: dict[str, Any]) -> None:
        """One line of metrics.jsonl."""
        if self.enabled:
            path = self.metrics_file
            with self._writing(path), path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(record) + "\n")

    def forget_after(self, epoch: int) -> None:
        """Drop metrics of epochs that a resumed run will do again (`epoch` is the last kept)."""
        if self.enabled and self.metrics_file.is_file():
            kept = [r for r in read_metrics(self.metrics_file) if r["epoch"] <= epoch]
            atomic_write(self.metrics_file, "".join(json.dumps(r) + "\n" for r in kept))

    def close(self) -> None:
        """Flush and close all files."""
        with self._writing(self.folder):
            while self._open:
                self._open.pop().close()

    def _event(self, **content: Any) -> None:
        self._board.write(Event(wall_time=time.time(), **content).SerializeToString())

    @contextlib.contextmanager
    def _writing(self, path: Path, kept: str = KEPT) -> Iterator[None]:
        """What goes wrong inside is said to be about `path`, and ends this log."""
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            while self._open:
                with contextlib.suppress(OSError):  # what they still hold cannot be written either
                    self._open.pop().close()
            raise storage_error(path, error, None, kept) from None


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; a last line that was cut off by a crash is left out."""
    records = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records
