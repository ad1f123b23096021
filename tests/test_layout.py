"""Imports run one way, jobs -> pipeline -> sewd_model, and the model knows nothing of Ray."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "sewd_model": {"ray", "pipeline", "jobs", "typer", "tests"},
    "pipeline": {"jobs", "typer", "rich", "tests"},
    "jobs": {"tests"},
}


def imported(path: Path) -> set[str]:
    """Top-level names of all that a module imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add((node.module or "").partition(".")[0])
    return names


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_import_runs_back_up(package):
    modules = list((ROOT / package).rglob("*.py"))
    assert modules
    for path in modules:
        assert not imported(path) & FORBIDDEN[package], path


def test_the_version_is_one():
    import importlib.metadata
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert importlib.metadata.version("sewd-pipeline") == project["version"]
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text()
