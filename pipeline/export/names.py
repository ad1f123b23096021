"""Names of the files of recordings: different ids have different names, and none leads out of the directory."""

from __future__ import annotations

import hashlib
import re
from typing import Final
from urllib.parse import quote

_UNSAFE: Final = re.compile(r'[%\\:*?"<>|\x00-\x1f\x7f]|(?<![^/])/|(?<![^/])\.{1,2}(?![^/])')
_LONGEST: Final = 180  # bytes of a name between two slashes: file systems take 255, with the suffix
_SHOWN: Final = 120  # bytes that are kept of a longer one


def file_name(recording: str, suffix: str) -> str:
    """The path of a recording's file below the directory: its id, with `%XX` for what names cannot hold."""
    safe = _UNSAFE.sub(lambda match: quote(match[0], safe="").replace(".", "%2E"), recording)
    return "/".join(map(_short, safe.split("/"))) + suffix


def _short(name: str) -> str:
    data = name.encode()
    if len(data) <= _LONGEST:
        return name
    return f"{data[:_SHOWN].decode(errors='ignore')}%{hashlib.sha256(data).hexdigest()[:16]}"
