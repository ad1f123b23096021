"""INPUTs that name several objects as NeMo does: `a.json,b.json`, `[[a.json],[b.json]]`, `audio__OP_0..7_CL_.tar`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Final

from pipeline.errors import UsageError

MAX_NAMES: Final = 1_000_000
_RANGE: Final = re.compile(r"(?:\{|_OP_)(?P<first>[0-9]+)\.\.(?P<last>[0-9]+)(?:\}|_CL_)")
_LIST: Final = re.compile(r"\[+(?P<names>[^\[\]]+(?:\]\s*,\s*\[[^\[\]]+)*)\]+")
_ITEM: Final = re.compile(r"\.(jsonl?|ndjson|tar|tgz|tar\.gz|jsonl?\.gz)$", re.IGNORECASE)


def expanded(uri: str) -> list[str]:
    """The INPUTs that `uri` lists, in order; itself where it is no list, or a local file has this name.

    Numbers are written with as many digits as the first, as a shell does.

    Raises:
        UsageError: it lists more than `MAX_NAMES`, or a range runs backwards.
    """
    if "://" not in uri and os.path.lexists(uri):
        return [uri]
    whole = _LIST.fullmatch(uri.strip())
    names = re.split(r"[\[\],\s]+", whole["names"]) if whole else uri.split(",")
    if not all(_ITEM.search(name) for name in names) or (whole is None and len(names) == 1):
        names = [uri]
    return [one for name in names for one in _numbered(name)]


def _numbered(name: str) -> Iterator[str]:
    found = _RANGE.search(name)
    if found is None:
        yield name
        return
    first, last = int(found["first"]), int(found["last"])
    if not 0 <= last - first < MAX_NAMES:
        raise UsageError(f"{name}: a range is two numbers, at most {MAX_NAMES:,} apart, the smaller one first")
    for number in range(first, last + 1):
        digits = f"{number:0{len(found['first'])}d}"
        yield from _numbered(name[: found.start()] + digits + name[found.end() :])
