"""Small recordings of a part are fetched before their turn, so that many of them take the time of a few requests.

Neighbouring utterances that are parts of one recording share it: it is fetched once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import BinaryIO, Final

from pipeline.corpus.utterances import ObjectOpener, Utterance
from pipeline.storage.clients import MAX_CONNECTIONS
from pipeline.storage.deadline import deadline_paused
from pipeline.storage.reads import Object

READ_AHEAD: Final = MAX_CONNECTIONS
# What is larger is fetched when it is opened: its bytes take longer than its request. So at most READ_AHEAD times as
# much is held in memory.
SMALL_BYTES: Final = 2 * 2**20


def opened_ahead(utterances: Iterable[Utterance], ahead: int) -> Iterator[Utterance]:
    """The utterances, in order, whose `open` returns what was fetched before.

    What fetching raises, `open` raises: an error is that of its utterance, whenever it happened.

    Args:
        utterances: the utterances.
        ahead: how many are looked at before their turn. With 0 each recording is fetched when it is opened. Local files
            always are: they are read faster than a thread wakes up.
    """
    waiting: deque[Utterance] = deque()
    recording: _Recording | None = None
    pool = ThreadPoolExecutor(ahead) if ahead else None
    try:
        for utterance in utterances:
            opener = utterance.open
            if utterance.problem is None and isinstance(opener, ObjectOpener):
                if recording is None or recording.opener != opener:
                    recording = _Recording(opener, pool if "://" in opener.uri else None)
                waiting.append(replace(utterance, open=recording.open))
                at_most = ahead
            else:  # it may hold its bytes, which do not gather here
                waiting.append(utterance)
                at_most = 0
            while len(waiting) > at_most:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)


class _Recording:
    """One object, which one or several utterances open."""

    def __init__(self, opener: ObjectOpener, pool: ThreadPoolExecutor | None) -> None:
        """`pool` begins to fetch it, if it is small."""
        self.opener = opener
        self._found: Object | None = None
        self._data: bytes | None = None
        self._fetching: Future[None] | None = None if pool is None else pool.submit(self._fetch_small)

    def _fetch_small(self) -> None:
        self._found = self.opener.find()
        if 0 < self._found.size <= SMALL_BYTES:  # 0 is a size that a web server does not state
            self._read(self._found)

    def _read(self, found: Object) -> bytes | BinaryIO:
        opened = self.opener.read(found)
        if isinstance(opened, bytes):
            self._data = opened
        return opened

    def open(self) -> bytes | BinaryIO:
        """The audio; raises as `ObjectOpener`. All that open it get the same version."""
        if self._fetching is not None:
            with deadline_paused():
                self._fetching.result()
        if self._data is not None:
            return self._data
        if self._found is None:
            self._found = self.opener.find()
        return self._read(self._found)
