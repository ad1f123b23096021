"""The packages and which imports which: pyproject.toml has the table (`tool.importlinter`), import-linter checks it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support import packages

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONTRACTS = {contract["name"]: contract for contract in PROJECT["tool"]["importlinter"]["contracts"]}


def test_no_package_imports_one_above_it():
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_import_from_below_is_found(tmp_path):
    """The check can fail: the table upside down is refused."""
    text = (ROOT / "pyproject.toml").read_text()
    (tmp_path / "pyproject.toml").write_text(
        text.replace('layers = ["jobs", "pipeline", "sewd_model"]', 'layers = ["sewd_model", "pipeline", "jobs"]')
    )
    program = Path(sys.executable).with_name("lint-imports")
    config = tmp_path / "pyproject.toml"
    done = subprocess.run(
        [program, "--no-cache", "--config", config], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "jobs -> pipeline -> sewd_model BROKEN" in done.stdout


def test_every_package_has_its_layer_in_the_table():
    listed = {package for line in CONTRACTS["packages of pipeline"]["layers"] for package in line.split(" | ")}
    here = {
        path.stem for path in (ROOT / "pipeline").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert listed == here - {"__init__"}


def test_the_tests_mirror_the_packages():
    for package in ("pipeline", "sewd_model"):
        tested = {path.name for path in (ROOT / "tests" / package).iterdir() if (path / "__init__.py").exists()}
        assert tested == {path.name for path in (ROOT / package).iterdir() if (path / "__init__.py").exists()}


def test_the_table_of_packages_has_no_cycle_and_every_line_of_code():
    table = packages.table(ROOT)
    lines = sum(
        int(row.split("|")[4].replace(",", "")) for row in table.splitlines() if row.startswith("| ") and "`" in row
    )
    init = len((ROOT / "pipeline" / "__init__.py").read_text().splitlines())
    code = [path for package in packages.TOP_LEVEL for path in (ROOT / package).rglob("*.py")]
    assert lines + init == sum(len(path.read_text().splitlines()) for path in code)


@pytest.mark.parametrize("package", packages.TOP_LEVEL)
def test_imports_are_absolute(package):
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: relative import"


@pytest.mark.parametrize(
    "package", sorted((ROOT / "pipeline").glob("*/__init__.py")), ids=lambda path: path.parent.name
)
def test_a_package_says_what_it_does_and_exports_nothing(package):
    body = ast.parse(package.read_text()).body
    assert len(body) == 1
    assert ast.get_docstring(ast.parse(package.read_text()))


def test_versions_come_from_tags():
    assert PROJECT["project"]["dynamic"] == ["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(r"^## \[Unreleased\]$", changelog, re.MULTILINE)
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", changelog, re.MULTILINE)
    assert released[0] == PROJECT["tool"]["setuptools_scm"]["fallback_version"]
