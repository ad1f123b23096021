"""From a part of the plan to its utterances."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

from pipeline.corpus.ahead import opened_ahead
from pipeline.corpus.librispeech import place_of
from pipeline.corpus.metadata import unique_key
from pipeline.corpus.named_paths import check_named
from pipeline.corpus.parts import Part
from pipeline.corpus.registry import LAYOUTS
from pipeline.corpus.utterances import Utterance
from pipeline.errors import AudioError, ErrorCode


def read_part(part: Part, allow_any_path: bool = False) -> Iterator[Utterance]:
    """The utterances of a part, in order.

    Args:
        part: the part.
        allow_any_path: a manifest may name objects outside the store that it is in.

    Returns:
        Utterances whose audio is not opened yet. One that is broken, or whose id an earlier one has, comes with its
        `problem`.

    Raises:
        StorageError: the container could not be reached.
        InputChangedError: the container is not the object that was planned.
    """
    return opened_ahead(_described(part, allow_any_path), part.ahead)


def _described(part: Part, allow_any_path: bool) -> Iterator[Utterance]:
    """The utterances; those that may not be read, or whose id is taken, with their `problem`."""
    layout = LAYOUTS[part.kind]
    planned_duplicates = {duplicate.row: duplicate.first for duplicate in part.duplicates}
    seen: dict[str, str] = {}
    for row, found in enumerate(map(_with_speaker, itertools.islice(layout.read(part), part.limit))):
        utterance = found if allow_any_path else _checked(found, part)
        earlier = planned_duplicates.get(row if utterance.row is None else utterance.row)
        if earlier is None and not layout.plans_keys:
            key = unique_key(utterance.utt_id, utterance.meta)
            earlier = seen.get(key)
            seen.setdefault(key, utterance.where)
        if earlier is not None and utterance.problem is None:
            message = f"{utterance.utt_id} names both {earlier} and {utterance.where}"
            yield replace(utterance, problem=AudioError(ErrorCode.DUPLICATE_ID, message))
        else:
            yield utterance


def _checked(utterance: Utterance, part: Part) -> Utterance:
    """The utterance, with a problem if its part may not name the object that it is in."""
    if part.uri and utterance.uri != part.uri and utterance.problem is None:
        try:
            check_named(utterance.uri, part.uri)
        except AudioError as error:
            return replace(utterance, problem=error)
    return utterance


def _with_speaker(utterance: Utterance) -> Utterance:
    """The utterance with the speaker that LibriSpeech has in its paths, if its source names none."""
    if utterance.meta.speaker is not None:
        return utterance
    place = place_of(utterance.utt_id) or place_of(utterance.uri)
    if place is None:
        return utterance
    return replace(utterance, meta=utterance.meta.model_copy(update={"speaker": place.speaker}))
