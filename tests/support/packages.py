"""The table of packages: modules, lines and imports of each folder of the project's code.

    python -m tests.support.packages [CHECKOUT]

A module directly in a top-level package has a row of its own. The layer of a package is one more than that of the
highest package that it imports.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

TOP_LEVEL = ("sewd_model", "pipeline", "jobs")


def modules(root: Path) -> dict[str, Path]:
    """Module name -> file, of all packages."""
    paths = (path for package in TOP_LEVEL for path in (root / package).rglob("*.py"))
    return {".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def imported(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The modules of this project that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in known else node.module for name in inner if node.module in known)


def package_of(module: str, known: dict[str, Path]) -> str:
    """`pipeline.storage` of `pipeline.storage.uris`, `pipeline.errors` of itself; `jobs` is one package.

    The modules directly in `sewd_model` count as one package, except `engines`, which chooses between them and the
    packed engines.
    """
    parts = module.split(".")
    if parts[0] == "jobs":
        return "jobs"
    if parts[0] == "sewd_model" and len(parts) == 2 and module not in ("sewd_model.engines", "sewd_model.packed"):
        return "sewd_model"
    return ".".join(parts[:2])


def layers(edges: dict[str, set[str]]) -> dict[str, int]:
    """The layer of each package.

    Raises:
        graphlib.CycleError: packages import each other.
    """
    found: dict[str, int] = {}
    for package in TopologicalSorter(edges).static_order():
        found[package] = 1 + max((found[other] for other in edges.get(package, ())), default=-1)
    return found


def table(root: Path) -> str:
    """Packages from the highest layer down, as Markdown; the last line sums up."""
    known = {name: path for name, path in modules(root).items() if path.read_text().strip()}
    edges: dict[str, set[str]] = defaultdict(set)
    sizes: dict[str, list[int]] = defaultdict(list)
    for name, path in known.items():
        package = package_of(name, known)
        sizes[package].append(len(path.read_text().splitlines()))
        # A package's own `__init__` gives names of its packages to users; that is no import from below.
        others = set() if name in TOP_LEVEL else {package_of(other, known) for other in imported(path, known)}
        edges[package] |= others - {package, "pipeline"}
    edges.pop("pipeline")
    sizes.pop("pipeline")
    heights = layers(edges)
    rows = [
        f"| {heights[name]} | `{name}` | {len(sizes[name])} | {sum(sizes[name]):,} | {', '.join(sorted(edges[name]))} |"
        for name in sorted(sizes, key=lambda name: (-heights[name], name))
    ]
    arrows = sum(map(len, edges.values()))
    total = f"{len(sizes)} packages, {max(heights.values()) + 1} layers, {arrows} imports between them"
    return "\n".join(
        ["| layer | package | modules | lines | imports |", "| --- | --- | --- | --- | --- |", *rows, "", total]
    )


if __name__ == "__main__":
    print(table(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))  # noqa: T201
