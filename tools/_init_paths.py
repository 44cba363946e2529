"""Import this first in every entry point: it puts the repository root first on sys.path.

Without it an installed package that happens to be called `datasets` or `utils` would win.
"""

import io
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

OURS = {"configs", "datasets", "models", "utils"}  # whose exceptions are sentences
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
# What PyTorch does not compute on a Mac's GPU, the CPU does; it is read when torch is imported.
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")


def sentence_of(error: Exception) -> str | None:
    """What is wrong with the input or the machine; None where it is a fault of the program."""
    worlds = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    if isinstance(error, OSError) or worlds & OURS:
        return str(error)
    from datasets.loading import worker_failure
    from utils.failures import sentence_about

    if failure := worker_failure(error):  # torch tells of it wherever we happen to be
        return str(failure)
    return sentence_about(error)


def run_main(main: Callable[[], int | None]) -> None:
    """Run an entry point; bad input ends as one sentence on stderr and exit status 2.

    Names of files are printed as far as stdout can, the rest of them as escapes.

    Where the reader of stdout has gone (`| head`), nothing is said and the status is that of a
    program which SIGPIPE ends.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            status = main()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes stdout once more on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    except Exception as error:  # noqa: BLE001  (all of them are told; none goes on)
        if "RTSEG_DEBUG" in os.environ or (sentence := sentence_of(error)) is None:
            traceback.print_exc()  # not raised: what Python keeps of it outlives what ends at exit
            status = 1
        else:
            print(f"error: {sentence}", file=sys.stderr)
            status = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    raise SystemExit(status or 0)
