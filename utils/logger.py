"""The run's own words: console, log.txt, metrics.jsonl and tensorboard, from one process only."""

import json
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter
from tqdm import tqdm

from .records import atomic_write


class RunLog:
    """Writes into a run folder. Disabled (other processes), every method does nothing."""

    def __init__(self, folder: Path, enabled: bool = True) -> None:
        self.folder, self.enabled = folder, enabled
        if enabled:
            folder.mkdir(parents=True, exist_ok=True)
            self._log = (folder / "log.txt").open("a", encoding="utf-8")
            self._board = SummaryWriter(str(folder / "tensorboard"))

    @property
    def metrics_file(self) -> Path:
        """One JSON object per epoch."""
        return self.folder / "metrics.jsonl"

    def info(self, message: str) -> None:
        """A line on the console and in log.txt."""
        if self.enabled:
            tqdm.write(message)
            self._log.write(message + "\n")
            self._log.flush()

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Numbers for tensorboard."""
        if self.enabled:
            for key, value in values.items():
                self._board.add_scalar(key, value, step)

    def metrics(self, record: dict[str, Any]) -> None:
        """One line of metrics.jsonl."""
        if self.enabled:
            with self.metrics_file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(record) + "\n")

    def forget_after(self, epoch: int) -> None:
        """Drop metrics of epochs that a resumed run will do again (`epoch` is the last kept)."""
        if self.enabled and self.metrics_file.is_file():
            kept = [r for r in read_metrics(self.metrics_file) if r["epoch"] <= epoch]
            atomic_write(self.metrics_file, "".join(json.dumps(r) + "\n" for r in kept))

    def close(self) -> None:
        """Flush and close all files."""
        if self.enabled:
            self._log.close()
            self._board.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; a last line that was cut off by a crash is left out."""
    records = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records
