"""The directory that a command happens to run in is no place to import from.

`python -m jobs.VERB`, and an empty entry in PYTHONPATH, put it first: a user's `numpy.py` or `ray/` there would be
imported in place of the library, here and in every process that Ray starts.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

_IMPORTED_FROM: Final = Path(__file__).resolve().parents[1]


def leave_working_directory() -> None:
    """Import nothing from the working directory, unless this package itself is there, as in a checkout."""
    if "PYTHONPATH" in os.environ:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, os.environ["PYTHONPATH"].split(os.pathsep)))
    here = Path.cwd().resolve()
    if here == _IMPORTED_FROM:
        return
    named = {Path(entry).resolve() for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry}
    if here not in named:
        sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != here]
