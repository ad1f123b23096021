"""Mutations of audio files, with what decoding may then give."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import NamedTuple

from tests.support.containers import SECONDS, kinds, written


class Mutated(NamedTuple):
    """A mutated file.

    Attributes:
        name: of the kind and the mutation, for messages.
        data: the bytes.
        seconds: durations that are right, seconds; an error is right too, except where `must_read`.
        tolerance_s: of them.
        must_read: an error is wrong.
        has_length: a missing end can be found.
    """

    name: str
    data: bytes
    seconds: tuple[float, ...]
    tolerance_s: float
    must_read: bool = False
    has_length: bool = True


NO_LENGTH = ("mp2", "ac3", "eac3", "adts", "amr", "flv", "mpegts", "mpeg ", "PAF", "PVF", "IRCAM", "HTK", "XI")
"""Formats without a length in their headers: a cut between two frames cannot be found."""


def id3(size: int, footer: bool = False, body: bytes = b"") -> bytes:
    """An ID3v2.4 tag with `size` bytes between header and footer."""
    coded = bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0))
    flags = b"\x10" if footer else b"\0"
    tag = b"ID3\x04\0" + flags + coded + body.ljust(size, b"\0")
    return tag + (b"3DI\x04\0" + flags + coded if footer else b"")


def id3v1() -> bytes:
    """An ID3v1 tag."""
    return b"TAG" + b"title".ljust(125, b"\0")


def ape(size: int = 32) -> bytes:
    """An APEv2 tag of a header, an item and a footer."""
    item = struct.pack("<II", size, 0) + b"Title\0" + b"x" * size

    def block(flags: int) -> bytes:
        return b"APETAGEX" + struct.pack("<IIII", 2000, len(item) + 32, 1, flags) + bytes(8)

    return block(0xA0000000) + item + block(0x80000000)


def mutate(rng: random.Random) -> Mutated:
    """A random mutation of a random kind of file."""
    kind = rng.choice(kinds())
    data = written(kind.name)
    name, change = rng.choice(_MUTATIONS)
    return change(rng, kind.name, data)._replace(name=f"{kind.name}, {name}")


def _has_length(name: str) -> bool:
    return not any(prefix in name for prefix in NO_LENGTH)


def _tolerance(name: str) -> float:
    return next(kind.padding_s for kind in kinds() if kind.name == name) + 0.002


def _whole(name: str, data: bytes, **options: bool) -> Mutated:
    return Mutated(name, data, (SECONDS,), _tolerance(name), **options)


def _truncated(rng: random.Random, name: str, data: bytes) -> Mutated:
    size = rng.randrange(len(data))
    return _whole(name, data[:size], has_length=_has_length(name))


def _joined_to_itself(rng: random.Random, name: str, data: bytes) -> Mutated:
    del rng
    return Mutated(name, data + data, (2 * SECONDS,), 2 * _tolerance(name), has_length=_has_length(name))


def _joined(rng: random.Random, name: str, data: bytes) -> Mutated:
    other = rng.choice(kinds())
    tolerance = _tolerance(name) + _tolerance(other.name)
    if other.container == "HTK":  # which has no magic number: behind MPEG frames it is junk, and a warning
        return _joined_to_itself(rng, name, data)
    return Mutated(name, data + written(other.name, seed=1), (2 * SECONDS,), tolerance, has_length=_has_length(name))


def _tags_in_front(rng: random.Random, name: str, data: bytes) -> Mutated:
    tag = rng.choice(
        [
            id3(rng.choice((0, 10, 127, 128, 5000, 300_000))),
            id3(rng.choice((20, 4000)), footer=True),
            id3(100) + id3(3000),
            id3(100) + bytes(rng.randrange(2, 3000)),
            ape(),
        ]
    )
    return _whole(name, tag + data, must_read="HTK" not in name)


def _tags_behind(rng: random.Random, name: str, data: bytes) -> Mutated:
    tag = rng.choice([id3v1(), ape(), ape() + id3v1(), id3(500), bytes(rng.randrange(1, 9000))])
    return _whole(name, data + tag, has_length=_has_length(name))


def _wrong_sizes(rng: random.Random, name: str, data: bytes) -> Mutated:
    """Another number in a field of the header that looks like a size or a count."""
    known = (len(data), len(data) - 8, round(SECONDS * 16_000), round(SECONDS * 44_100), round(SECONDS * 8000))
    fields = []
    for position in range(min(len(data), 400) - 4):
        for form in ("<I", ">I"):
            value = struct.unpack_from(form, data, position)[0]
            if name.startswith(("CAF", "caf")) and position < 32:
                continue  # the sample rate
            if any(0 <= size - value <= 600 for size in known) and value > 1000:
                fields.append((position, form, value))
    if not fields or "DWVW" in name:  # whose only count is in the header
        return _whole(name, data, must_read=True)
    position, form, value = rng.choice(fields)
    wrong = rng.choice([0, value // 2, value - 100, value + 44, 2 * value, 0x7F000008, 0x7FFFFFFF, 0xFFFFFFFF])
    changed = bytearray(data)
    struct.pack_into(form, changed, position, wrong)
    whole = _whole(name, bytes(changed))
    return whole._replace(tolerance_s=whole.tolerance_s + 0.05 * SECONDS)  # less behind the end is a warning


def _wrong_frame_count(rng: random.Random, name: str, data: bytes) -> Mutated:
    """A Xing header that counts wrong, or a FLAC total that does."""
    changed = bytearray(data)
    if (at := max(data.find(b"Xing"), data.find(b"Info"))) > 0 and "mp3" in name.lower():
        count = struct.unpack_from(">I", data, at + 8)[0]
        struct.pack_into(">I", changed, at + 8, rng.choice([0, count // 2, 1, count - 3]))
    elif data[:4] == b"fLaC":
        total = struct.unpack_from(">I", data, 22)[0]
        struct.pack_into(">I", changed, 22, rng.choice([0, total // 2, total - 100, total + 100, 2 * total]))
    else:
        return _wrong_sizes(rng, name, data)
    return _whole(name, bytes(changed))


_MUTATIONS: list[tuple[str, Callable[[random.Random, str, bytes], Mutated]]] = [
    ("truncated", _truncated),
    ("joined to itself", _joined_to_itself),
    ("joined to another", _joined),
    ("tags in front", _tags_in_front),
    ("tags behind", _tags_behind),
    ("wrong size", _wrong_sizes),
    ("wrong count", _wrong_frame_count),
]
