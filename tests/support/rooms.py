"""The table of rooms: modules, lines and imports of each folder of the three packages.

    python -m tests.support.rooms [CHECKOUT]

A room is a folder below a package, or a module right in it. A room's floor is one more than that of the highest room
that it imports.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGES = ("sewd_model", "pipeline", "jobs")


def modules(root: Path) -> dict[str, Path]:
    """Module name -> file, of all packages."""
    paths = (path for package in PACKAGES for path in (root / package).rglob("*.py"))
    return {".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def imported(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The modules of this project that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in known else node.module for name in inner if node.module in known)


def room_of(module: str, known: dict[str, Path]) -> str:
    """`pipeline.storage` of `pipeline.storage.uris`, `pipeline.errors` of itself; `jobs` is one room.

    The modules right in `sewd_model` are one room, except `engines`, which chooses between them and the packed engines.
    """
    parts = module.split(".")
    if parts[0] == "jobs":
        return "jobs"
    if parts[0] == "sewd_model" and len(parts) == 2 and module not in ("sewd_model.engines", "sewd_model.packed"):
        return "sewd_model"
    return ".".join(parts[:2])


def floors(edges: dict[str, set[str]]) -> dict[str, int]:
    """The floor of each room.

    Raises:
        graphlib.CycleError: rooms import each other.
    """
    found: dict[str, int] = {}
    for room in TopologicalSorter(edges).static_order():
        found[room] = 1 + max((found[other] for other in edges.get(room, ())), default=-1)
    return found


def table(root: Path) -> str:
    """Rooms from the highest floor down, as Markdown; the last line sums up."""
    known = {name: path for name, path in modules(root).items() if path.read_text().strip()}
    edges: dict[str, set[str]] = defaultdict(set)
    sizes: dict[str, list[int]] = defaultdict(list)
    for name, path in known.items():
        room = room_of(name, known)
        sizes[room].append(len(path.read_text().splitlines()))
        # A package's own `__init__` gives names of its rooms to users; that is no import from below.
        others = set() if name in PACKAGES else {room_of(other, known) for other in imported(path, known)}
        edges[room] |= others - {room, "pipeline"}
    edges.pop("pipeline")
    sizes.pop("pipeline")
    heights = floors(edges)
    rows = [
        f"| {heights[room]} | `{room}` | {len(sizes[room])} | {sum(sizes[room]):,} | {', '.join(sorted(edges[room]))} |"
        for room in sorted(sizes, key=lambda room: (-heights[room], room))
    ]
    arrows = sum(map(len, edges.values()))
    total = f"{len(sizes)} rooms, {max(heights.values()) + 1} floors, {arrows} imports between rooms"
    return "\n".join(
        ["| floor | room | modules | lines | imports |", "| --- | --- | --- | --- | --- |", *rows, "", total]
    )


if __name__ == "__main__":
    print(table(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))  # noqa: T201
