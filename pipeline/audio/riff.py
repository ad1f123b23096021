"""Walk over RIFF (WAV) and the formats built like it, in named and sized chunks: RF64, BW64, RIFX, W64, AIFF, CAF."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from pipeline.audio.contents import Contents, truncated
from pipeline.audio.source import Source
from pipeline.errors import AudioError, ErrorCode

MAX_CHUNKS = 100_000  # read at most: a gigabyte of zeros is a hundred million chunks of length 0
# Four letters that begin a file, and never a chunk behind the audio.
_FORMS = frozenset(
    b"RIFF RIFX RF64 BW64 FORM caff fLaC OggS .snd NIST riff wvpk TTA1 2BIT PVF1 Crea MATL Exte ALaw".split()
)
_EXTRA_CHUNKS = frozenset(
    b"LIST id3 ID3 bext iXML cue smpl fact PEAK JUNK junk PAD FLLR "
    b"NAME AUTH ANNO COMT MARK INST APPL info strg free midi".split()
)


class _Layout(NamedTuple):
    """How a format lays out its chunks.

    Attributes:
        start: the first chunk, in bytes from the start of the file.
        header: `struct` format of a chunk's header: name, size.
        align: chunks start at multiples of this many bytes.
        size_includes_header: whether a chunk's size counts its header.
        audio_names: the names, four bytes, of the chunk that holds the audio.
        preamble: bytes of that chunk before the samples.
        outer: position and `struct` format of the size of all chunks; None where there is none.
        outer_excludes: the bytes of the file that this size does not count.
    """

    start: int
    header: str
    align: int
    size_includes_header: bool
    audio_names: tuple[bytes, ...]
    preamble: int
    outer: tuple[int, str] | None
    outer_excludes: int


_LITTLE_ENDIAN: Final = _Layout(12, "<4sI", 2, False, (b"data",), 0, (4, "<I"), 8)
_BIG_ENDIAN: Final = _Layout(12, ">4sI", 2, False, (b"data",), 0, (4, ">I"), 8)
_LAYOUTS: Final = {
    b"RIFF": _LITTLE_ENDIAN,
    b"RF64": _LITTLE_ENDIAN,
    b"BW64": _LITTLE_ENDIAN,
    b"RIFX": _BIG_ENDIAN,
    b"FORM": _BIG_ENDIAN._replace(audio_names=(b"SSND", b"BODY"), preamble=8),
    b"caff": _Layout(8, ">4sQ", 1, False, (b"data",), 4, None, 0),
    b"riff": _Layout(40, "<16sQ", 8, True, (b"data",), 0, (16, "<Q"), 0),
}


def is_chunked(head: bytes) -> bool:
    """Return whether a file that begins with `head` is laid out in chunks that `walk_chunks` can follow."""
    return head[:4] in _LAYOUTS


def is_placeholder(size: int, bits: int = 32) -> bool:
    """Return whether `size` is what a writer to a pipe puts: all ones (FFmpeg), or half of it (sox, arecord, W64)."""
    if bits == 64:
        return size >= 1 << 62
    return size >= 0xFFFFF000 or 0x7FFFF000 <= size <= 0x80000000


class _Coding(NamedTuple):
    """How samples are laid out: `block_frames` samples of each channel in `block` bytes."""

    rate: int
    block: int
    block_frames: int = 1
    is_exact: bool = True


@dataclass
class _File:
    source: Source
    layout: _Layout
    form: bytes
    coding: _Coding | None = None
    declared_frames: int | None = None  # AIFF: by COMM; CAF: by pakt
    frames_position: int | None = None  # AIFF: of that number
    rate: int = 0
    data_size_64: int | None = None
    data_size_64_position: int = 0
    patches: list[tuple[int, bytes]] = field(default_factory=list)


def walk_chunks(source: Source, head: bytes) -> Contents:
    """Find the audio of a file in chunks, and compute its samples.

    Placeholders that writers to pipes put for sizes are replaced by the real ones, as patches. Where the size of the
    audio counts more bytes than exist, and the size of the whole file is right or the difference is just the header's
    length, the header is wrong and nothing is missing: a warning.

    Args:
        source: the recording.
        head: its first bytes; `is_chunked` holds.

    Raises:
        AudioError: TRUNCATED where bytes are missing; UNSUPPORTED where there are several chunks of audio.
    """
    layout = _LAYOUTS[head[:4]]
    file = _File(source, layout, head[8:12])
    header_size = struct.calcsize(layout.header)
    position = layout.start
    for _ in range(MAX_CHUNKS):
        header = source.read_at(position, header_size)
        if len(header) < header_size:
            truncated(f"the chunks extend to byte {position + header_size}, but the file ends at byte {source.size}")
        name, size = struct.unpack(layout.header, header)
        body = position + header_size
        if layout.size_includes_header:
            size -= header_size
        if name[:4] in layout.audio_names:
            return _audio(file, head, body, size)
        # The file is damaged, or not aligned, or has CAF's "to the end of the file" where that is not allowed.
        if size < 0 or not name[:4].isascii() or not name[:4].decode().isprintable():
            return Contents()
        _describe(file, name[:4], body, size)
        position = body + size + -size % layout.align
    return Contents()


def _audio(file: _File, head: bytes, body: int, size: int) -> Contents:
    """Compare the chunk of audio at `body` with the bytes that exist, and walk the chunks behind it."""
    source, layout = file.source, file.layout
    available = source.size - body
    warning = ""
    if size == 0xFFFFFFFF and file.data_size_64 is not None:
        size = file.data_size_64
    if _is_unknown(file, head, body, size):
        size = available
        _patch_sizes(file, head, body, size)
    elif size > available:
        missing = size - available
        outer = _outer_size(file)
        is_file_whole = outer is not None and outer + layout.outer_excludes == source.size
        if not is_file_whole and missing not in (body, body - 8):
            truncated(f"the container declares {body + size} bytes, but the file has {source.size}")
        warning = f"the header declares {missing} bytes of audio more than the file has; it counts more than the audio"
        size = available
    end = body + size + -size % layout.align
    # Some writers leave the padding out.
    is_unpadded = source.read_at(body + size, 4).strip() in _EXTRA_CHUNKS
    end = _end_of_chunks(file, end if end <= source.size and not is_unpadded else body + size)
    preamble = layout.preamble if file.form not in (b"8SVX", b"16SV") else 0
    if preamble and head[:4] == b"FORM":
        preamble += int.from_bytes(source.read_at(body, 4), "big")
    frames, slack = _frames(file, size - preamble)
    if frames is not None and file.frames_position is not None and file.patches:
        file.patches.append((file.frames_position, struct.pack(">I", min(frames, 0xFFFFFFFF))))
    rate = file.rate if frames is not None else 0
    return Contents(end, frames if rate else None, rate, slack, patches=tuple(file.patches), warning=warning)


def _frames(file: _File, size: int) -> tuple[int | None, int]:
    """The samples of each channel in `size` bytes, and how far a decoder may be off."""
    size = max(0, size)
    if file.coding is None:
        return file.declared_frames, 0
    if file.coding.is_exact:
        return size // file.coding.block * file.coding.block_frames, 0
    blocks = -(-size // file.coding.block)
    return blocks * file.coding.block_frames, 2 * file.coding.block_frames


def _is_unknown(file: _File, head: bytes, body: int, size: int) -> bool:
    """Whether `size`, of the audio at `body`, is a placeholder for what its writer did not know."""
    if head[:4] in (b"riff", b"caff") or size > 0xFFFFFFFF:
        return is_placeholder(size, 64)
    outer = _outer_size(file) or 0
    if head[:4] == b"FORM" and 0x7F000000 <= size <= 0x80000000:  # sox
        return True
    if is_placeholder(size):
        return True
    # 0 is the real size where other chunks follow (the outer size counts them), and a placeholder where the file ends
    # here by the outer size.
    is_outer_unknown = outer + 8 <= body or is_placeholder(outer)
    return size == 0 and file.source.size > body and is_outer_unknown


def _patch_sizes(file: _File, head: bytes, body: int, size: int) -> None:
    """Replace the placeholders: decoders take some of them for real sizes."""
    if head[:4] == b"riff":
        file.patches.append((body - 8, struct.pack("<Q", size + 24)))
        file.patches.append((16, struct.pack("<Q", file.source.size)))
    elif head[:4] == b"caff":
        file.patches.append((body - 8, struct.pack(">Q", size)))
    else:
        order = file.layout.header[0]
        file.patches.append((body - 4, struct.pack(f"{order}I", min(size, 0xFFFFFFFF))))
        file.patches.append((4, struct.pack(f"{order}I", min(file.source.size - 8, 0xFFFFFFFF))))
        if file.data_size_64 is not None:
            file.patches[-2:] = [(file.data_size_64_position, struct.pack("<Q", size))]


def _outer_size(file: _File) -> int | None:
    if file.layout.outer is None:
        return None
    position, form = file.layout.outer
    data = file.source.read_at(position, struct.calcsize(form))
    return int(struct.unpack(form, data)[0]) if len(data) == struct.calcsize(form) else None


def _end_of_chunks(file: _File, position: int) -> int:
    """Return the byte after the last chunk, of those that follow the audio."""
    source, layout = file.source, file.layout
    header_size = struct.calcsize(layout.header)
    for _ in range(MAX_CHUNKS):
        header = source.read_at(position, header_size)
        if len(header) < header_size:
            break
        name, size = struct.unpack(layout.header, header)
        size -= header_size if layout.size_includes_header else 0
        if size < 0 or not name[:4].isascii() or not name[:4].decode().isprintable() or name[:4] in _FORMS:
            break
        if name[:4] in layout.audio_names and size:
            message = f"the chunk at byte {position} holds audio too: several chunks of audio are not read"
            raise AudioError(ErrorCode.UNSUPPORTED, message)
        _describe(file, name[:4], position + header_size, size)
        behind = position + header_size + size
        if behind > source.size and name[:4].strip() not in _EXTRA_CHUNKS:
            break
        position = min(source.size, behind + -size % layout.align)
    return position


def _describe(file: _File, name: bytes, body: int, size: int) -> None:
    """Take what a chunk says about the samples."""
    data = file.source.read_at(body, min(size, 64))
    if name == b"ds64" and len(data) >= 16:
        file.data_size_64, file.data_size_64_position = struct.unpack_from("<Q", data, 8)[0], body + 8
    elif name == b"fmt " and len(data) >= 16:
        _describe_wav(file, data)
    elif name == b"COMM" and len(data) >= 18:
        _describe_aiff(file, data, body)
    elif name == b"desc" and len(data) >= 32:
        rate, coding, _, packet, frames, _, _ = struct.unpack_from(">d4sIIIII", data)
        file.rate = round(rate) if 0 < rate < 1e9 else 0
        if coding in (b"lpcm", b"ulaw", b"alaw") and packet and frames:
            file.coding = _Coding(file.rate, packet, frames)
    elif name == b"pakt" and len(data) >= 24:
        file.declared_frames = struct.unpack_from(">q", data, 8)[0]


def _describe_wav(file: _File, data: bytes) -> None:
    order = file.layout.header[0]
    tag, channels, rate, _, block, bits = struct.unpack_from(f"{order}HHIIHH", data)
    if tag == 0xFFFE and len(data) >= 26:
        tag = struct.unpack_from(f"{order}H", data, 24)[0]
    file.rate = rate
    if tag in (1, 3, 6, 7) and block and block == channels * ((bits + 7) // 8):
        file.coding = _Coding(rate, block)
    elif tag in (2, 0x11) and block and len(data) >= 20:
        file.coding = _Coding(rate, block, struct.unpack_from(f"{order}H", data, 18)[0], is_exact=False)
    elif tag == 0x31 and block:
        file.coding = _Coding(rate, 65, 320, is_exact=False)


_AIFF_BYTES: Final = {
    **dict.fromkeys((b"NONE", b"twos", b"sowt"), 0),
    **dict.fromkeys((b"raw ", b"ulaw", b"ULAW", b"alaw", b"ALAW"), 1),
    b"in24": 3,
    **dict.fromkeys((b"in32", b"fl32", b"FL32"), 4),
    **dict.fromkeys((b"fl64", b"FL64"), 8),
}


def _describe_aiff(file: _File, data: bytes, body: int) -> None:
    channels, frames, bits, exponent, mantissa = struct.unpack_from(">HIHHQ", data)
    shift = 16383 + 63 - (exponent & 0x7FFF)
    file.rate = mantissa >> shift if 0 <= shift < 64 else 0
    coding = data[18:22] if file.form == b"AIFC" else b"NONE"
    if coding in _AIFF_BYTES and channels:
        file.coding = _Coding(file.rate, channels * (_AIFF_BYTES[coding] or (bits + 7) // 8 or 1))
        file.frames_position = body + 2
    elif coding == b"ima4" and channels:
        file.coding = _Coding(file.rate, 34 * channels, 64, is_exact=False)
    elif coding.upper().startswith(b"GSM"):
        file.coding = _Coding(file.rate, 33, 160, is_exact=False)
    else:
        file.declared_frames = frames
