"""`sewd` with the stand-in stages of `stand_in`: `python -m tests.faults.drive transcribe ...`."""

from __future__ import annotations

from jobs.main import main
from tests.faults import stand_in

if __name__ == "__main__":
    stand_in.install()
    main()
