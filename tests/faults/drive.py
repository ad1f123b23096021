"""`sewd` with the stand-in stages of `stand_in`: `python -m tests.faults.drive transcribe ...`."""

from __future__ import annotations

from jobs.main import ended_by_ctrl_c, main

if __name__ == "__main__":
    with ended_by_ctrl_c():
        from tests.faults import stand_in
    stand_in.install()
    main()
