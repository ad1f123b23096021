"""Real bytes of each layout, damaged at random: planning and reading raise nothing but errors of this project."""

import gzip
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus.parts import Part
from pipeline.corpus.plan import plan
from pipeline.corpus.read import read_part
from pipeline.errors import UsageError
from pipeline.storage import objects
from tests.pipeline.corpus.test_every_layout import INPUTS, OBJECTS
from tests.support.inputs import outcome

TOKENS = [
    *(b"null", b"true", b"[]", b"{}", b'""', b'"', b"\\", b"-1", b"0", b"1e999", b"NaN", b"-Infinity", b"9" * 400),
    *(b'"\\ud800"', b"\0", b"\r\n", b"\n", b"\n\n", b"\t", b",", b" ", b"|", b"../../", b"/etc/passwd", b"\xff\xfe"),
    *(b"\xef\xbb\xbf", "\u2028".encode(), b"[" * 5000, b'{"a":' * 3000, b"x" * 5000, b"simplecache::a", b"nosuch://a"),
]
NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF]


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Some of the bytes changed, cut, doubled, or replaced by a token or a number."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 12))):
        at = rng.randrange(len(changed) + 1)
        end = min(len(changed), at + rng.choice((0, 1, 4, 20, 200)))
        kind = rng.randrange(6)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[at:end] = rng.choice(TOKENS)
        elif kind == 2:
            size = rng.choice((1, 2, 4, 8))
            number = rng.choice(NUMBERS) & (1 << 8 * size) - 1
            changed[at : at + size] = number.to_bytes(size, rng.choice(("little", "big")))
        elif kind == 3:
            changed[at:at] = changed[at:end] * rng.choice((1, 3))
        elif kind == 4:
            other = rng.randrange(len(changed) + 1)
            changed[at:end] = changed[other : other + end - at]
        elif rng.random() < 0.3:
            del changed[at:]
        else:
            del changed[at:end]
    return bytes(changed)


def damaged_object(name: str, data: bytes, rng: random.Random) -> bytes:
    """As `damaged`; within the compression at times, where all of it is damage to the content."""
    if name.endswith(".gz") and rng.random() < 0.7:
        return gzip.compress(damaged(gzip.decompress(data), rng), 1)
    return damaged(data, rng)


def inputs_of(name: str) -> list[str]:
    return [one for one in INPUTS if name == one or name.startswith(f"{one}/")]


TARGETS = sorted(name for name in OBJECTS if inputs_of(name) and not name.endswith((".wav", ".flac")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    base = tmp_path_factory.mktemp("corpus")
    for name, data in OBJECTS.items():
        objects.put(str(base / name), data)
    return base


def check(folder, seed: int) -> None:
    rng = random.Random(seed)
    name = rng.choice(TARGETS)
    data = damaged_object(name, OBJECTS[name], rng)
    (folder / name).write_bytes(data)
    try:
        limit = rng.choice((None, None, 2))
        try:
            table = plan([str(folder / inputs_of(name)[0])], rng.choice((1, 1 << 30)), limit)
        except UsageError:
            return
        for row in table.to_pylist():
            for utterance in read_part(Part.from_row(row)):
                utt_id, found = outcome(utterance)
                assert utt_id
                assert found is not None
    finally:
        (folder / name).write_bytes(OBJECTS[name])


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 2**32))
def test_a_damaged_manifest_table_or_shard_is_refused_or_gives_rows(folder, seed):
    check(folder, seed)


@pytest.mark.slow
@settings(max_examples=20_000, deadline=None)
@given(st.integers(0, 2**32))
def test_many_damaged_manifests_tables_and_shards_are_refused_or_give_rows(folder, seed):
    check(folder, seed)
