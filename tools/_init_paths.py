"""Import this first in every entry point: it puts the repository root first on sys.path.

Without it an installed package that happens to be called `datasets` or `utils` would win.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
# What PyTorch does not compute on a Mac's GPU, the CPU does; it is read when torch is imported.
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")


def run_main(main: Callable[[], int | None]) -> None:
    """Run an entry point; bad input ends as one sentence on stderr and exit status 2.

    Where the reader of stdout has gone (`| head`), nothing is said and the status is that of a
    program which SIGPIPE ends.
    """
    try:
        try:
            status = main()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes stdout once more on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except RuntimeError as error:  # torch tells of a dead loader process wherever we happen to be
        from datasets.loading import worker_failure

        if (failure := worker_failure(error)) is None:
            raise
        print(f"error: {failure}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    raise SystemExit(status or 0)
