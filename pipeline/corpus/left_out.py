"""What planning passes over: files that are no audio by their suffix, and tables and runs that hold none.

It is counted while INPUTs are planned, and stored in the metadata of the plan.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.corpus.naming import suffix

_KEY = b"sewd.left_out"
MAX_NOTES = 20
MAX_SUFFIXES = 12  # named in a line


@dataclass
class LeftOut:
    """What was passed over; planners add to it.

    Attributes:
        files: number of files by suffix; the key is empty for names without one.
        hidden: number of audio files whose path has a component that begins with a dot.
        notes: one line for each table or run that was passed over.
        labels_only: rows of manifests that have a label and no text.
        texts: rows of manifests that have a text.
    """

    files: Counter[str] = field(default_factory=Counter)
    hidden: int = 0
    notes: list[str] = field(default_factory=list)
    labels_only: int = 0
    texts: int = 0

    def add_file(self, path: str) -> None:
        """Count a file that is not read."""
        self.files[suffix(path)] += 1

    def note(self, line: str) -> None:
        """Say what was passed over, once."""
        if line not in self.notes:
            self.notes.append(line)

    @property
    def lines(self) -> list[str]:
        """What was left out, in words; usually at most one line."""
        lines = list(self.notes[:MAX_NOTES])
        if len(self.notes) > MAX_NOTES:
            lines.append(f"and {len(self.notes) - MAX_NOTES:,} more tables or runs were passed over")
        if total := sum(self.files.values()):
            kinds = [f"{'.' + kind if kind else 'no suffix'} {number:,}" for kind, number in self.files.most_common()]
            rest = f", and {len(kinds) - MAX_SUFFIXES:,} more suffixes" if len(kinds) > MAX_SUFFIXES else ""
            names = ", ".join(kinds[:MAX_SUFFIXES]) + rest
            count = f"{total:,} files that are" if total > 1 else "1 file that is"
            lines.append(f"left out: {count} neither audio nor text of it: {names}")
        if self.hidden:
            lines.append(
                f"left out: {self.hidden:,} hidden audio file{'s' * (self.hidden != 1)}, whose path has a .name"
            )
        return lines

    def to_json(self) -> dict[str, object]:
        """As the record of a run holds it."""
        files = dict(self.files.most_common())
        counts = {"hidden": self.hidden, "labels_only": self.labels_only, "texts": self.texts}
        return {"files": files, "notes": self.notes[:MAX_NOTES], **counts}

    @staticmethod
    def from_json(values: Mapping[str, object] | None) -> LeftOut:
        """The content of `to_json`; empty for a run of a version that did not record it."""
        values = values or {}
        files, notes = values.get("files"), values.get("notes")
        counts = {name: int(str(values.get(name, 0))) for name in ("hidden", "labels_only", "texts")}
        return LeftOut(
            files=Counter(files if isinstance(files, dict) else {}),
            notes=[str(note) for note in notes] if isinstance(notes, list) else [],
            **counts,
        )

    def to_metadata(self) -> dict[bytes, bytes]:
        """As the metadata of the plan holds it; empty if there is nothing to say."""
        return {} if self == LeftOut() else {_KEY: json.dumps(self.to_json()).encode()}

    @staticmethod
    def from_metadata(metadata: Mapping[bytes, bytes] | None) -> LeftOut:
        """What the plan with this metadata left out."""
        return LeftOut.from_json(json.loads((metadata or {}).get(_KEY, b"{}")))
