"""Python's start-up hook: whichever process has this directory on its path is born with deadly files."""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).parents[1] / "deadly.py"))["install"]()
