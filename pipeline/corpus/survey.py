"""What each INPUT holds, before a run: layouts, objects, parts, bytes, utterances, references, what is left out.

INPUTs are listed and planned as for a run. Tables and manifests are read; of shards and Parquet files no more than
planning reads; audio is not opened, and nothing is written.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pipeline.corpus.layout import Layout, Listing
from pipeline.corpus.layouts.files import FILES
from pipeline.corpus.layouts.manifest import MANIFEST
from pipeline.corpus.layouts.parquet import PARQUET
from pipeline.corpus.layouts.table import kind_of
from pipeline.corpus.layouts.tar import TAR
from pipeline.corpus.layouts.tar_rows import TAR_ROWS, stored_rows
from pipeline.corpus.left_out import LeftOut
from pipeline.corpus.listings import Choice, listings
from pipeline.corpus.naming import suffix
from pipeline.corpus.parts import Part
from pipeline.corpus.plan import mark_duplicates, no_audio
from pipeline.corpus.read import read_part
from pipeline.errors import UsageError
from pipeline.storage import uris


@dataclass
class Found:
    """What one INPUT holds of one format. Numbers that only reading shards or Parquet files would show are None.

    Attributes:
        format: a name of `input_formats.FORMATS`.
        objects: audio files, shards, tables and manifests.
        parts: number of parts.
        bytes: of the parts; where rows name audio files, estimated by the durations that they state.
        utterances: rows of the run, those included that are known to be errors.
        references: utterances with a reference text.
        labels: utterances with a label and no text.
        errors: utterances that are known to be errors, by code.
        suffixes: audio files by the suffix of their names.
        suffix_bytes: bytes of audio files by suffix, where they are listed.
        uris: shards, tables and manifests that are counted.
        planned: its parts.
    """

    format: str
    objects: int = 0
    parts: int = 0
    bytes: int = 0
    utterances: int | None = 0
    references: int | None = 0
    labels: int | None = 0
    errors: Counter[str] = field(default_factory=Counter)
    suffixes: Counter[str] = field(default_factory=Counter)
    suffix_bytes: Counter[str] = field(default_factory=Counter)
    uris: set[str] = field(default_factory=set, repr=False)
    planned: list[Part] = field(default_factory=list, repr=False)


@dataclass
class InputSurvey:
    """What one INPUT holds.

    Attributes:
        uri: the INPUT.
        found: by format, in the order in which they are read.
        left_out: what is passed over, and why, in lines.
        problem: why a run would refuse the INPUT; None if it would not.
    """

    uri: str
    found: list[Found] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    problem: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As `sewd plan --json` prints it."""
        found = [
            {name: value for name, value in vars(one).items() if name not in ("uris", "planned")} for one in self.found
        ]
        return {**vars(self), "found": found}


def survey(inputs: Iterable[str], part_bytes: int, choice: Choice, allow_any_path: bool = False) -> list[InputSurvey]:
    """Survey each INPUT. An INPUT that a run would refuse has a `problem`; the others are surveyed all the same.

    Args:
        inputs: as of a run.
        part_bytes: size at which a part is closed.
        choice: what the user says about the INPUTs.
        allow_any_path: a manifest may name objects outside the store that it is in.

    Raises:
        StorageError: an INPUT could not be reached.
    """
    surveys: list[InputSurvey] = []
    parts: dict[str, tuple[Found, Part]] = {}
    for uri in dict.fromkeys(uris.absolute(uri) for uri in inputs):
        of_input, left_out = InputSurvey(uri), LeftOut()
        surveys.append(of_input)
        by_format: dict[str, Found] = {}
        known = 0
        try:
            for layout, listing in listings(uri, left_out, choice):
                for name, part in _planned(layout, listing, part_bytes):
                    if part.unlimited_id in parts:
                        known += 1
                        continue
                    found = by_format.setdefault(name, Found(name))
                    parts[part.unlimited_id] = (found, part)
                    _count(part, found, left_out, allow_any_path)
        except UsageError as error:
            of_input.problem = str(error)
        of_input.found = list(by_format.values())
        of_input.left_out = left_out.lines
        if known:
            of_input.left_out.append(f"{known:,} parts are in an earlier INPUT too, and are read once")
        elif not of_input.found and of_input.problem is None:
            of_input.problem = no_audio(uri, left_out.notes, choice)
    counted = list(parts.values())
    for (found, _), marked in zip(counted, mark_duplicates([part for _, part in counted]), strict=True):
        if marked.duplicates:
            found.errors["DUPLICATE_ID"] += len(marked.duplicates)
    return surveys


_NAMES: Final = {FILES.kind: "audio", MANIFEST.kind: "manifest", TAR.kind: "webdataset", PARQUET.kind: "parquet"}


def _planned(layout: Layout, listing: Listing, part_bytes: int) -> Iterator[tuple[str, Part]]:
    """The parts of a listing, each with the name of its format."""
    objects_by_uri = {item.uri: item for item in listing.objects}
    key_of = functools.cache(lambda uri: kind_of(objects_by_uri[uri]).key)
    for part in layout.plan(listing, part_bytes, None):
        yield _NAMES.get(layout.kind) or listing.kind or key_of(part.uri), part


def _count(part: Part, found: Found, left_out: LeftOut, allow_any_path: bool) -> None:
    """Count a part, which was planned last, in what is found of its format."""
    if part.uri not in found.uris:
        found.objects += len(part.items) or 1
    found.uris.update([part.uri] if part.uri else [])
    found.parts += 1
    found.planned.append(part)
    found.bytes += part.bytes
    found.utterances = _sum(found.utterances, part.rows)
    if part.kind == FILES.kind:
        found.references = _sum(found.references, sum(item.reference_uri is not None for item in part.items))
        for item in part.items:
            found.suffixes[suffix(item.uri)] += 1
            found.suffix_bytes[suffix(item.uri)] += item.size
    elif part.kind in (TAR.kind, PARQUET.kind):
        found.references = found.labels = None
    else:
        found.references = _sum(found.references, left_out.texts)
        found.labels = _sum(found.labels, left_out.labels_only)
        left_out.texts = left_out.labels_only = 0
        for name, code in _named_audio(part, allow_any_path):
            if code:
                found.errors[code] += 1
            elif name:
                found.suffixes[suffix(name)] += 1


def _named_audio(part: Part, allow_any_path: bool) -> Iterator[tuple[str, str]]:
    """The name of the audio of each row, empty where it shows no suffix, and the code of what is wrong with the row."""
    if part.kind != TAR_ROWS.kind:
        for utterance in read_part(part, allow_any_path):  # which opens no audio
            yield utterance.uri, utterance.problem.code.value if utterance.problem else ""
        return
    yield from stored_rows(part)  # reading the part would read the shard


def _sum(total: int | None, more: int | None) -> int | None:
    return None if total is None or more is None else total + more


def total_of(surveys: Sequence[InputSurvey]) -> Found:
    """The numbers of all INPUTs together."""
    total = Found("all")
    for found in (one for of_input in surveys for one in of_input.found):
        total.objects += found.objects
        total.parts += found.parts
        total.bytes += found.bytes
        total.utterances = _sum(total.utterances, found.utterances)
        total.references = _sum(total.references, found.references)
        total.labels = _sum(total.labels, found.labels)
        total.errors += found.errors
        total.suffixes += found.suffixes
        total.suffix_bytes += found.suffix_bytes
    return total
