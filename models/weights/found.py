"""Which trained networks lie in some folders, told without reading their weights."""

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputError
from ..registry import is_known, resolve_name
from .readers import read_facts
from .trained import check_classes, check_score

ENDINGS = (".pt", ".pth")  # of files that may say what they are
LATER = ("last.pt", "previous.pt")  # of a run, whose best.pt stands for it


class Found(NamedTuple):
    """A file that `load_trained` needs no argument for.

    score: as in `Trained`.
    """

    path: Path
    architecture: str
    dataset: str
    class_names: tuple[str, ...]
    score: dict[str, Any]

    def title(self, root: str | Path) -> str:
        """The network, whose classes, its score, and the file's place below `root`."""
        path = self.path.absolute()
        place = path.relative_to(root) if path.is_relative_to(root) else path
        classes = self.dataset or f"{len(self.class_names)} classes"
        score = f", {100 * self.score['miou']:.1f} % mIoU" if self.score else ""
        return f"{self.architecture}, {classes}{score} ({place.as_posix()})"


def describe(path: str | Path) -> Found:
    """What the file says of itself.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it does not say enough for `load_trained`, or is no checkpoint.
    """
    facts = read_facts(path)
    architecture = facts.get("architecture", "")
    if not is_known(architecture):
        raise InputError(f"{path} does not say of which network of this project it is")
    if "class_names" not in facts:
        raise InputError(f"{path} does not say what its classes are")
    names, _ = check_classes(path, facts["class_names"], facts.get("palette"))
    score, dataset = check_score(facts.get("score", {})), facts.get("dataset", "")
    return Found(Path(path), resolve_name(architecture), dataset, names, score)


def find_trained(folders: Iterable[str | Path]) -> tuple[list[Found], list[str]]:
    """The trained networks in `folders` and below, in the order of their paths, and a sentence for
    each file with weights that is left out. Folders that do not exist hold none; of a run that has
    a best.pt, the files to go on from are not told of."""
    found, left_out = [], []
    for folder in folders:
        for path in sorted(Path(folder).rglob("*")):
            if path.suffix not in ENDINGS or path.name.startswith("."):
                continue
            if path.name in LATER and path.with_name("best.pt").is_file():
                continue
            try:
                status = path.stat()
            except OSError as error:  # it has just gone, or is a link to nothing
                left_out.append(f"{path} cannot be read ({error.strerror})")
                continue
            told = _described(path, status.st_mtime_ns, status.st_size)
            (found if isinstance(told, Found) else left_out).append(told)
    return found, left_out


@functools.lru_cache(maxsize=1024)
def _described(path: Path, changed: int, size: int) -> Found | str:
    """As `describe`, with the sentence instead of the error, so that it is kept too."""
    try:
        return describe(path)
    except (InputError, OSError) as error:
        return str(error)
