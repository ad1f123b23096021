"""Objects that a pattern with `*`, `?`, `[...]` or `**` names."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from pipeline.storage.objects import Object, in_path_order, list_children, walk
from pipeline.storage.retry import is_transient, retried
from pipeline.storage.uris import filesystem, uri_of


def is_glob(uri: str) -> bool:
    """Has `uri` a pattern in it. In a web address `?` begins a query, and nothing can be listed."""
    return not uri.startswith(("http://", "https://")) and any(mark in uri for mark in "*?[")


def glob_root(pattern: str) -> str:
    """The directory down to which `pattern` has no marks."""
    return pattern[: min(pattern.index(mark) for mark in "*?[" if mark in pattern)].rpartition("/")[0] or "/"


def glob_objects(pattern: str) -> list[Object]:
    """Every object that `pattern` (`*`, `?`, `[...]`, `**`) names, in path order; a directory is all below it."""
    return glob_and_beside(pattern)[0]


@retried
def glob_and_beside(pattern: str) -> tuple[list[Object], list[Object]]:
    """What `glob_objects` gives, and the other objects in the same directories, which were listed on the way."""
    fs, path = filesystem(pattern)
    root = glob_root(path)
    segments = [segment for segment in path.removeprefix(root).split("/") if segment]
    named: list[Object] = []
    beside: list[Object] = []
    try:
        for found, fits in _matches(fs, root, segments):
            (named if fits else beside).append(found)
    except (FileNotFoundError, NotADirectoryError) as error:
        if is_transient(error):
            raise
    return in_path_order(named), in_path_order(beside)


def _matches(fs: Any, directory: str, segments: list[str]) -> Iterator[tuple[Object, bool]]:
    """Objects where the pattern looks, and whether it names them."""
    first, rest = segments[0], segments[1:]
    if first == "**":
        above = directory if isinstance(fs, LocalFileSystem) else uri_of(fs, directory)
        for found in walk(fs, directory):
            yield found, _fits(found.uri.removeprefix(above).strip("/").split("/"), segments)
        return
    directories, objects = list_children(fs, directory)
    if not rest:
        yield from ((found, fnmatchcase(posixpath.basename(found.uri), first)) for found in objects)
    for child in directories:
        if fnmatchcase(posixpath.basename(child.rstrip("/")), first):
            if rest:
                yield from _matches(fs, child, rest)
            else:
                yield from ((found, True) for found in walk(fs, child))


def _fits(names: list[str], segments: list[str]) -> bool:
    """Do the first of `names` fit `segments`: then the last of them is, or lies below, what the pattern names."""
    if not segments:
        return True
    if segments[0] == "**":
        return _fits(names, segments[1:]) or (bool(names) and _fits(names[1:], segments))
    return bool(names) and fnmatchcase(names[0], segments[0]) and _fits(names[1:], segments[1:])
