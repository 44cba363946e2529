"""Import this first in every entry point: it puts the repository root first on sys.path.

Without it an installed package that happens to be called `datasets` or `utils` would win.
"""

import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def run_main(main: Callable[[], int | None]) -> None:
    """Run an entry point; bad input ends as one sentence on stderr and exit status 2."""
    try:
        status = main()
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    raise SystemExit(status or 0)
