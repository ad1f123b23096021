"""The package installed from its wheel, in a directory that holds modules with the names of its packages."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import pipeline
from tests.support import corpora
from tests.support.heads import head

ROOT = Path(__file__).parents[2]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "sewd_model", "pipeline", "jobs")
PACKAGES = ("sewd_model", "pipeline", "jobs")
CLIPS = 3


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The directory that a wheel of this checkout is installed into."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    offline = build_requirements_are_installed()
    build = (*pip, "wheel", "--no-deps", *(["--no-build-isolation"] if offline else []), "--wheel-dir", source, source)
    built = subprocess.run(build, capture_output=True, text=True, check=False)
    if built.returncode and not offline:
        pytest.skip(f"needs what pyproject.toml builds with, or an index to get it from: {built.stderr[-300:]}")
    assert built.returncode == 0, built.stderr
    (wheel,) = source.glob("*.whl")
    subprocess.run((*pip, "install", "--no-deps", "--no-compile", "--target", target, wheel), check=True)
    imported = f"import {', '.join(PACKAGES)}; print({', '.join(f'{name}.__file__' for name in PACKAGES)})"
    paths = subprocess.run(
        [sys.executable, "-P", "-c", imported], capture_output=True, text=True, check=True, env=environment(target)
    )
    assert all(path.startswith(str(target)) for path in paths.stdout.split()), "the wheel is what is imported"
    return target


def build_requirements_are_installed() -> bool:
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return all(importlib.metadata.version(each.name) in each.specifier for each in map(Requirement, required))
    return False


def environment(installed: Path) -> dict[str, str]:
    """The variables of a user's shell: a Ray that this process started leaves its own, as for its authentication."""
    names = os.environ.keys() - {"PYTHONSAFEPATH", "RAY_ADDRESS", "RAY_AUTH_MODE"}
    kept = {name: os.environ[name] for name in names}
    return kept | {"PYTHONPATH": str(installed)}


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    """A user's directory: audio with references, and modules that are named like this project's packages."""
    return write_directory(tmp_path_factory.mktemp("user"))


def write_directory(path: Path) -> Path:
    for name in ("pipeline.py", "sewd_model.py", "jobs/__init__.py", "tests/__init__.py"):
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text(f"raise ImportError('the user\\'s own {name} was imported')\n")
    for index in range(CLIPS):
        corpora.write_audio(path / "audio" / f"{index}.wav", seconds=1, seed=index)
        (path / "audio" / f"{index}.txt").write_text("some words\n")
    return path


def sewd(installed: Path, directory: Path, *arguments: object) -> str:
    """Run `sewd` as a user does, and return what it printed."""
    command = [installed / "bin" / "sewd", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=directory, env=environment(installed), capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    return done.stdout


def test_a_users_modules_of_the_same_names_are_not_imported_by_a_local_ray(installed, directory):
    assert f"{CLIPS} transcripts" in sewd(installed, directory, "transcribe", "audio", "-o", "run")
    assert len(corpora.rows_of(directory / "run")) == CLIPS
    assert f"{CLIPS} scored" in sewd(installed, directory, "evaluate", "run")
    sewd(installed, directory, "report", "run", "--output", "report.html")
    assert (directory / "report.html").stat().st_size > 10_000


@pytest.fixture(scope="module")
def cluster(installed):
    """A cluster with the wheel installed, whose head was started in such a directory as well."""
    with (
        tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder,
        head(write_directory(Path(folder)), {"PYTHONPATH": str(installed)}) as started,
    ):
        yield started


def test_a_users_modules_of_the_same_names_are_not_imported_by_a_joined_cluster(installed, directory, cluster):
    sewd(installed, directory, "transcribe", "audio", "-o", "joined", "--address", cluster.cluster)
    assert len(corpora.rows_of(directory / "joined")) == CLIPS


def test_a_users_modules_of_the_same_names_are_not_imported_by_a_job(installed, directory, cluster):
    verb = ("transcribe", directory / "audio", "-o", directory / "job")
    sewd(installed, directory, "submit", "--address", cluster.address, "--", *verb)
    assert pipeline.Run.open(directory / "job").status == "done"
    assert len(corpora.rows_of(directory / "job")) == CLIPS
