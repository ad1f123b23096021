"""LibriSpeech's layout: speakers in the paths of its recordings, and what SPEAKERS.TXT says about them."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from typing import NamedTuple

from pipeline.errors import StorageError
from pipeline.storage import objects
from pipeline.storage.retry import is_refused

SPEAKERS_FILE = "SPEAKERS.TXT"
# SPEAKER/CHAPTER/SPEAKER-CHAPTER-UTTERANCE
_PATH = re.compile(r"(?:^|/)(?P<speaker>\d+)/(?P<chapter>\d+)/(?P=speaker)-(?P=chapter)-\d+(?:\.\w+)?$")
_MAX_BYTES = 2**20  # read at most; the original has 140 kB


class Place(NamedTuple):
    """A speaker by a path: the id, and the directory that holds the speakers' directories."""

    speaker: str
    directory: str


def place_of(path: str) -> Place | None:
    """The speaker of a recording by its path; None if the path is not LibriSpeech's."""
    found = _PATH.search(path)
    return None if found is None else Place(found["speaker"], path[: found.start("speaker")].rstrip("/"))


def speaker_tags(directory: str) -> Mapping[str, Mapping[str, str]]:
    """What the SPEAKERS.TXT above the speakers' directories says: sex, subset and name by speaker; empty if none.

    It is looked for in `directory`, and above it, where LibriSpeech has it beside its subsets.

    Raises:
        StorageError: the storage could not be reached. That it refuses to say what is above the recordings is no error.
    """
    for parent in (directory, posixpath.dirname(directory)):
        uri = posixpath.join(parent, SPEAKERS_FILE)
        try:
            with objects.open_read(uri) as file:
                text = file.read(_MAX_BYTES).decode()
        except (FileNotFoundError, UnicodeDecodeError):
            continue
        except StorageError as error:
            if not is_refused(error.__cause__):
                raise
            continue
        # ID | SEX | SUBSET | MINUTES | NAME, and comments that begin with a semicolon
        rows = ([cell.strip() for cell in line.split("|")] for line in text.split("\n") if not line.startswith(";"))
        return {row[0]: {"sex": row[1], "subset": row[2], "speaker_name": row[4]} for row in rows if len(row) >= 5}
    return {}
