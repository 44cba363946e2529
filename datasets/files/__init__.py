"""List files and pixels from disk; whatever is wrong with them is said with the file's name."""

from .clips import Clip, is_video
from .foreign import foreign_kind
from .headers import Header, orientation_of, read_header
from .lists import REPOSITORY_DATA, Entry, find_list, read_list, root_problem, scan_list
from .paths import file_problem
from .pixels import read_image, read_label
from .text import read_text

__all__ = [
    "REPOSITORY_DATA",
    "Clip",
    "Entry",
    "Header",
    "file_problem",
    "find_list",
    "foreign_kind",
    "is_video",
    "orientation_of",
    "read_header",
    "read_image",
    "read_label",
    "read_list",
    "read_text",
    "root_problem",
    "scan_list",
]
