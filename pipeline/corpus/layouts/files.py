"""Audio files, with references in text files beside them: `NAME.txt`, or LibriSpeech's `*.trans.txt`."""

from __future__ import annotations

import posixpath
from array import array
from collections.abc import Callable, Iterator
from dataclasses import replace

from pipeline.corpus.layout import Layout, Listing
from pipeline.corpus.librispeech import place_of, speaker_tags
from pipeline.corpus.metadata import UtteranceMeta
from pipeline.corpus.naming import AUDIO_SUFFIXES, composed, relative_path, stem, suffix
from pipeline.corpus.parts import Item, Part, cut_to_parts, key_digest
from pipeline.corpus.utterances import MAX_TEXT_BYTES, ObjectOpener, Utterance, decode_text, fetch_planned
from pipeline.errors import AudioError, ErrorCode
from pipeline.storage import uris
from pipeline.storage.concurrently import once_each, ordered_map
from pipeline.storage.reads import Object

_TRANSCRIPT_SUFFIX = ".trans.txt"


def plan_files(listing: Listing, part_bytes: int, limit: int | None) -> Iterator[Part]:
    """Parts of audio files; see `Layout.plan`."""
    for files in cut_to_parts(listing.objects[:limit], lambda file: file.size, part_bytes):
        items = tuple(_item(file, listing) for file in files)
        yield Part(
            kind=FILES.kind,
            bytes=sum(item.size for item in items),
            items=items,
            rows=len(items),
            keys=array("Q", [key_digest(item.utt_id) for item in items]),
        )


def _item(file: Object, listing: Listing) -> Item:
    reference = reference_uri(file.uri, listing)
    return Item(
        utt_id=stem(relative_path(file.uri, listing.root)),
        uri=file.uri,
        size=file.size,
        version=file.version,
        reference_uri=reference,
        reference_version=None if reference is None else listing.version(reference),
    )


def reference_uri(uri: str, listing: Listing) -> str | None:
    """The text file that holds the reference of an audio file; None if there is none."""
    return next(filter(None, map(listing.find, _reference_uris(uri))), None)


def _reference_uris(uri: str) -> Iterator[str]:
    """Where the reference of an audio file may be, best first.

    `NAME.txt`, then `*.trans.txt` whose name is that of the audio file up to one of its hyphens, the longest first.
    """
    directory, name = posixpath.split(stem(uri))
    yield posixpath.join(directory, f"{name}.txt")
    while "-" in name:
        name = name.rpartition("-")[0]
        yield posixpath.join(directory, f"{name}{_TRANSCRIPT_SUFFIX}")


def read_files(part: Part) -> Iterator[Utterance]:
    """The utterances of a part of audio files; see `Layout.read`."""
    # The texts are kept for this part alone: another run in this process may find another text in the same file.
    transcripts_of = once_each(_read_transcripts)
    tags_of = once_each(speaker_tags)

    def utterance_of(item: Item) -> Utterance:
        opener = ObjectOpener(item.uri, item.version)
        utterance = Utterance(utt_id=item.utt_id, uri=item.uri, open=opener, size=item.size)
        try:
            text = _reference(item, transcripts_of)
        except AudioError as error:
            return replace(utterance, problem=error)
        place = place_of(item.uri)
        tags = {} if place is None else tags_of(place.directory).get(place.speaker, {})
        return replace(utterance, meta=UtteranceMeta(text=text, **tags))

    is_remote = any("://" in item.uri for item in part.items[:1])
    return ordered_map(utterance_of, part.items, part.ahead if is_remote else 0)


def _reference(item: Item, transcripts_of: Callable[[str], dict[str, str]]) -> str | None:
    uri = item.reference_uri
    if uri is None:
        return None
    if uri.lower().endswith(_TRANSCRIPT_SUFFIX):
        return transcripts_of(uri).get(composed(posixpath.basename(stem(item.uri))))
    return decode_text(_fetch_text(uri), uri)


def _fetch_text(uri: str) -> bytes:
    if uris.is_irregular(uri):
        raise AudioError(ErrorCode.BAD_ROW, f"{uri} is a dangling link or not a regular file")
    # Before it is read. (In a store the size would take another request for each text.)
    _check_size(uri, 0 if "://" in uri else uris.local_size(uri))
    data = fetch_planned(uri)
    _check_size(uri, len(data))
    return data


def _check_size(uri: str, size: int) -> None:
    if size > MAX_TEXT_BYTES:
        raise AudioError(ErrorCode.BAD_ROW, f"{uri} has {size} bytes, and a text may have {MAX_TEXT_BYTES}")


def _read_transcripts(uri: str) -> dict[str, str]:
    """Text by file name, from LibriSpeech's `NAME TEXT` lines of one chapter."""
    rows = (line.strip().partition(" ") for line in decode_text(_fetch_text(uri), uri).split("\n"))
    return {composed(name): text.strip() for name, _, text in rows}


FILES = Layout(
    kind="files",
    claims=lambda uri: suffix(uri) in AUDIO_SUFFIXES,
    plan=plan_files,
    read=read_files,
    plans_keys=True,
)
