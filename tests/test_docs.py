"""The tests that the documents name are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMED = [
    (document.name, *match.groups())
    for document in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for match in re.finditer(r"`(tests/[\w/]+\.py)::(\w+)`", document.read_text(encoding="utf-8"))
]


def test_some_are_named():
    assert len(NAMED) > 10


@pytest.mark.parametrize(("document", "path", "name"), NAMED)
def test_a_test_that_a_document_names_is_there(document, path, name):
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, f"{document}: {path}"
