"""The documents: their code blocks run, the tests that they name exist, and their tables are complete."""

from __future__ import annotations

import ast
import contextlib
import json
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import soundfile
import soxr

from pipeline.errors import ErrorCode

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "jobs" / "demo_corpus" / "audio"
DOCUMENTS = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md")))
NAMED = [
    (document.name, *match.groups())
    for document in DOCUMENTS
    for match in re.finditer(r"`(tests/[\w/]+\.py)::(\w+)`", document.read_text(encoding="utf-8"))
]
BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = {document: BLOCK.findall(document.read_text(encoding="utf-8")) for document in DOCUMENTS}


def test_some_are_named():
    assert len(NAMED) > 10


@pytest.mark.parametrize(("document", "path", "name"), NAMED)
def test_a_test_that_a_document_names_exists(document, path, name):
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, f"{document}: {path}"


def threats(document: str) -> list[list[str]]:
    """The cells of each row of a document's tables of threats, whose last column names tests."""
    text = (ROOT / "docs" / document).read_text(encoding="utf-8")
    tables = re.findall(r"^\|[^\n]*\| tests? \|\n\|[-|]+\n((?:\|[^\n]*\n)+)", text, re.MULTILINE)
    return [[cell.strip() for cell in row.strip("|").split("|")] for table in tables for row in table.splitlines()]


@pytest.mark.parametrize(("document", "fewest"), [("security.md", 40), ("inputs.md", 11)])
def test_every_threat_has_a_test(document, fewest):
    rows = threats(document)
    assert len(rows) >= fewest
    named: list[str] = []
    for threat, held, tests in rows:
        named = named if tests == "the same" else re.findall(r"`(tests/[\w/]+\.py)", tests)
        assert threat, rows
        assert held, threat
        assert named, threat
        assert all((ROOT / path).is_file() for path in named), threat


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(document):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_block_runs_or_is_marked_as_one_that_cannot(document):
    """`console` is for what needs a cluster, a registry, object storage, or hours."""
    needs = re.compile(
        r"git clone|pip install|make |ray up|ray down|http://|s3://|kubectl|finetune|benchmarks|pip wheel|asapp/"
    )
    for kind, block in BLOCKS[document]:
        assert kind in ("sh", "python", "console", "text", "yaml"), block
        assert kind != "console" or needs.search(block), block


def test_the_table_of_error_codes_is_complete():
    listed = set(re.findall(r"`([A-Z_]+)`", (ROOT / "docs" / "outputs.md").read_text().partition("## Error codes")[2]))
    assert listed >= {code.value for code in ErrorCode}
    assert {name for name in listed if name != "RUN"} <= {code.value for code in ErrorCode}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, local_ray):
    """Where the blocks run: recordings with references, a clip, and the runs that the README's blocks leave."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "recordings").mkdir()
    for index, name in enumerate(("order-0.wav", "order-1.flac")):
        shutil.copy(DEMO / name, folder / "recordings" / name)
        (folder / "recordings" / name).with_suffix(".txt").write_text(f"text {index}")
    texts = {"order-0": "a latte", "order-1": "a mocha"}
    (folder / "corrected.jsonl").write_text(
        "".join(json.dumps({"utt_id": name, "text": text}) + "\n" for name, text in texts.items())
    )
    for name in ("a.txt", "b.txt"):
        (folder / name).write_text("".join(f"{utt_id} {text}\n" for utt_id, text in texts.items()))
    samples, rate = soundfile.read(DEMO / "order-1.flac", dtype="float32")
    soundfile.write(folder / "clip.wav", soxr.resample(samples, rate, 16_000), 16_000)
    with contextlib.chdir(folder):
        for command in commands(ROOT / "README.md"):
            run_command(command)
    return folder


def commands(document: Path) -> list[list[str]]:
    """The commands of a document's `sh` blocks, split as a shell splits them."""
    blocks = [block.replace("\\\n", " ") for kind, block in BLOCKS[document] if kind == "sh"]
    return [shlex.split(line, comments=True) for block in blocks for line in block.splitlines() if line.strip()]


def run_command(command: list[str]) -> None:
    """Run `sewd ...` in this process, on the Ray of the tests."""
    from jobs import main

    assert command[0] == "sewd", f"a block marked sh holds {command[0]}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as ended:
            main.main()
    assert ended.value.code == 0, command


def test_the_commands_of_the_readme_leave_runs_and_a_report(folder):
    assert (folder / "first" / "run.json").exists()
    assert (folder / "second" / "run.json").exists()
    assert (folder / "first.html").read_text().lower().lstrip().startswith("<!doctype html>")


@pytest.mark.parametrize(
    "document",
    [document for document in DOCUMENTS[1:] if any(kind == "sh" for kind, _ in BLOCKS[document])],
    ids=lambda path: path.name,
)
def test_the_commands_of_a_document_run(document, folder, monkeypatch):
    monkeypatch.chdir(folder)
    for command in commands(document):
        run_command(command)


@pytest.mark.parametrize(
    ("document", "block"),
    [
        pytest.param(document.name, block, id=f"{document.name}-{index}")
        for document in DOCUMENTS
        for index, (kind, block) in enumerate(BLOCKS[document])
        if kind == "python"
    ],
)
def test_a_block_of_python_runs(document, block, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("recordings", "clip.wav"):
        (tmp_path / name).symlink_to(folder / name)
    exec(compile(block, document, "exec"), {"__name__": "block"})


@pytest.mark.parametrize("name", ["python_api", "ray_pipeline", "duckdb_over_a_run"])
def test_an_example_runs(name, folder, tmp_path, monkeypatch, capsys):
    arguments = {
        "python_api": [str(folder / "recordings"), str(tmp_path / "run")],
        "ray_pipeline": [str(folder / "recordings")],
        "duckdb_over_a_run": [str(folder / "first")],
    }
    script = ROOT / "examples" / f"{name}.py"
    monkeypatch.setattr(sys, "argv", [str(script), *arguments[name]])
    runpy.run_path(str(script), run_name="__main__")
    printed = capsys.readouterr().out
    assert "order-0" in printed


def test_every_example_is_tested():
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == {
        "python_api",
        "ray_pipeline",
        "duckdb_over_a_run",
    }
