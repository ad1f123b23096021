"""Find out what a file is and what it holds, before anything is decoded.

Decoders lose audio in silence: libsndfile clips a WAV to the bytes that exist, drops the end of an Ogg file, believes a
Xing header that counts half of the frames, and reads the first of two joined recordings. Therefore the chunks, pages or
frames of every container are walked here. What they hold is later compared with what was decoded (`Container.check`).

Two kinds of damage cannot be detected: a cut between two frames of formats that declare no length at all (MPEG audio
without a Xing header, ADTS, AC-3, AMR, MPEG-TS, FLV), and a cut in formats whose headers have no length (PAF, PVF,
IRCAM).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from pipeline.audio import frames, headers, rare
from pipeline.audio.contents import Contents, joined
from pipeline.audio.flac import walk_flac
from pipeline.audio.mpeg import end_without_tags, find_mpeg, parse_mpeg_frame, skip_id3, tag_end
from pipeline.audio.mpeg_headers import walk_mpeg_file
from pipeline.audio.ogg import walk_ogg
from pipeline.audio.riff import walk_chunks
from pipeline.audio.source import Source
from pipeline.errors import AudioError, ErrorCode

_MAX_UNKNOWN_BYTES = 4096  # behind the audio, or a 50th of it: more may be audio that the header does not count
_PADDING = b"\0\r\n\t "  # zeros and white space
_BYTE_ORDER_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe")


@dataclass(frozen=True)
class Container:
    """What a file is, and what its decoder is to read.

    Attributes:
        view: the bytes for decoders, from the container's first byte on.
        demuxer: FFmpeg's name of the format; None where FFmpeg is not to be used.
        contents: what the container holds.
        warning: what is wrong with the file, although all its audio is read; empty where nothing is.
    """

    view: Source
    demuxer: str | None
    contents: Contents = field(default_factory=Contents)
    warning: str = ""

    @property
    def is_complete(self) -> bool:
        """Whether the container declares its length; then all its bytes exist."""
        return self.contents.end is not None

    def frames_at(self, rate: int) -> int | None:
        """The frames that it holds, at the rate of a decoder; None where the headers do not determine them."""
        if self.contents.frames is None or not self.contents.rate:
            return None
        return round(self.contents.frames * rate / self.contents.rate)

    def slack_at(self, rate: int) -> int:
        """The frames by which the output of a decoder may differ."""
        return 1 + (round(self.contents.slack * rate / self.contents.rate) if self.contents.rate else 0)

    def check(self, num_decoded: int, rate: int) -> None:
        """Compare the number of decoded frames, at `rate`, with those that the container holds.

        Raises:
            AudioError: TRUNCATED where there are fewer, UNDECODABLE where there are more.
        """
        held = self.frames_at(rate)
        if held is None or abs(num_decoded - held) <= self.slack_at(rate):
            return
        lacks = num_decoded < held
        difference = abs(held - num_decoded)
        message = (
            f"the container holds {held} frames ({held / rate:.3f} s), but {num_decoded} were decoded: "
            f"{difference} ({difference / rate:.3f} s) {'are missing' if lacks else 'too many'}"
        )
        raise AudioError(ErrorCode.TRUNCATED if lacks else ErrorCode.UNDECODABLE, message)


def check_container(source: Source) -> Container:
    """Recognise the container behind tags and junk, and walk it.

    Raises:
        AudioError: TRUNCATED where bytes are missing; UNDECODABLE where a page is damaged; UNSUPPORTED where recordings
            are joined in such a way that a decoder would read the first and drop the others.
    """
    start, demuxer, warning = _find_start(source)
    stop = end_without_tags(source)
    view = source.view(start, stop) if start or stop < source.size else source
    contents = _walk(view, demuxer)
    if contents is None:  # not MPEG audio, although it begins with a sync word
        return Container(view, demuxer, warning=warning)
    for gap in contents.gaps:
        _check_joined(view, gap, (gap, _skip_zeros(view, gap)), besides=demuxer)
    if contents.end is not None:
        warning = "; ".join(filter(None, (warning, contents.warning, _check_behind(view, demuxer, contents.end))))
    else:
        warning = "; ".join(filter(None, (warning, contents.warning)))
    end = view.size if contents.end is None else min(view.size, contents.end)
    if contents.skipped or contents.patches or end < view.size:  # some decoders take what is behind for samples
        view = view.view(contents.skipped, end, contents.patches)
    return Container(view, demuxer, contents, warning)


def _find_start(source: Source) -> tuple[int, str | None, str]:
    """Return the first byte of the container, its format, and a warning about what is in front of it."""
    start = tag_end_at_start(source)
    if (demuxer := _demuxer(source.read_at(start, 256), source, start)) is not None:
        return start, demuxer, ""
    # Behind tags there may be zeros; and a line feed or a byte-order mark in front of everything.
    head = source.read_at(start, 1 << 16)
    padding = next((len(mark) for mark in _BYTE_ORDER_MARKS if head.startswith(mark)), 0)
    padding += len(head[padding:]) - len(head[padding:].lstrip(_PADDING))
    for skipped in range(padding, max(0, padding - 8), -1):  # some formats begin with zeros
        if (demuxer := _demuxer(head[skipped : skipped + 256], source, start + skipped)) is not None:
            return start + skipped, demuxer, f"{skipped} bytes of padding are in front of the audio"
    if not start and frames.is_gsm(source):
        return 0, "gsm", ""
    # A tag may be longer or shorter than it says.
    first = find_mpeg(source, 10 if start else 0)
    if first is not None:
        return first, "mp3", f"{first} bytes in front of the first MPEG frame are not audio"
    start += padding if start and padding > 3 else 0  # libsndfile may know it
    return start if start < source.size else 0, None, ""


def tag_end_at_start(source: Source) -> int:
    """The first byte behind ID3v2 and APE tags at the start of the file."""
    position = skip_id3(source)
    return tag_end(source, position) if source.read_at(position, 8) == b"APETAGEX" else position


_GUID_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_GUID_W64_RIFF = b"riff" + bytes.fromhex("2e91cf11a5d628db04c10000")

_MAGIC: Final = (  # position, bytes, FFmpeg's name
    (0, b"OggS", "ogg"),
    (0, b"RIFF", "wav"),  # except AVI, see _demuxer
    (0, b"RIFX", "wav"),
    (0, b"RF64", "wav"),
    (0, b"BW64", "wav"),
    (0, _GUID_W64_RIFF, "w64"),
    (0, b"FORM", "aiff"),
    (0, b"caff", "caf"),
    (0, b".snd", "au"),
    (0, b"NIST_1A", "nistsphere"),
    (0, b"fLaC", "flac"),
    (0, b"Creative Voice File\x1a", "voc"),
    (4, b"ftyp", "mp4"),
    (4, b"moov", "mp4"),
    (4, b"mdat", "mp4"),
    (4, b"wide", "mp4"),
    (0, b"\x1aE\xdf\xa3", "matroska"),
    (0, _GUID_ASF, "asf"),
    (0, b"#!AMR", "amr"),
    (0, b"FLV\x01", "flv"),
    (0, b"MAC ", "ape"),
    (0, b"wvpk", "wv"),
    (0, b"TTA1", "tta"),
    (0, b"2BIT", "avr"),
    (0, b"PVF1\n", "pvf"),
    (0, b"MATLAB 5.0", "mat5"),
    (0, b"\xf0\x7e\x00\x01", "sds"),
    (0, b"ALawSoundFile**", "wve"),
    (0, b"\x01\x04    ", "mpc2k"),
    (0, b"Extended Instrument: ", "xi"),
    (0, b"\x64\xa3\x01\x00", "ircam"),
    (0, b"\x64\xa3\x02\x00", "ircam"),
    (0, b"\x64\xa3\x03\x00", "ircam"),
    (0, b"\x00\x03\xa3\x64", "ircam"),
    (0, b"\x00\x02\xa3\x64", "ircam"),
    (0, b" paf\0\0\0\0", "epaf"),
    (0, b"fap \0\0\0\0", "epaf"),
    (20, b"samplerate\0", "mat4"),
    (0, b"\0\0\x01\xba", "mpeg"),
)
ONLY_SNDFILE: Final = frozenset({"mat4", "mat5", "sds", "wve", "mpc2k", "xi"})
"""Names of formats that FFmpeg does not know."""
_LENIENT: Final = frozenset({"mp3", "aac", "ac3", "eac3"})  # bytes that are no frame may follow


def _demuxer(head: bytes, source: Source, position: int) -> str | None:
    """Return FFmpeg's name for the format of a file that begins with `head`; None where it is not recognised."""
    if head[:4] == b"RIFF" and head[8:11] == b"AVI":
        return "avi"
    if head[:4] == b"FORM" and head[8:12] in (b"8SVX", b"16SV"):
        return "iff"
    for offset, magic, name in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return name
    return _demuxer_of_frames(head, source, position)


def _demuxer_of_frames(head: bytes, source: Source, position: int) -> str | None:
    """Return FFmpeg's name for a format without a header, whose frames begin with sync words."""
    name = None
    if head[:2] == b"\x0bw":
        name = "eac3" if len(head) > 5 and head[5] >> 3 > 10 else "ac3"
    elif len(head) > 188 and head[0] == head[188] == 0x47:
        name = "mpegts"
    elif len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:  # a sync word with layer 0
        name = "aac"
    elif len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0 and _is_mpeg(head, source, position):
        name = "mp3"
    return name


def _is_mpeg(head: bytes, source: Source, position: int) -> bool:
    """Whether two frames follow each other, or one ends with the file, or the format is the free one."""
    frame = parse_mpeg_frame(head)
    if frame is None:
        return head[2] >> 4 == 0 if len(head) > 2 else False
    behind = position + frame.size
    second = source.read_at(behind, 4)
    return len(second) < 4 or parse_mpeg_frame(second) is not None or tag_end(source, behind) > behind


_WALKS: Final[dict[str, Callable[[Source], Contents]]] = {
    "flac": walk_flac,
    "ogg": walk_ogg,
    "au": headers.au,
    "nistsphere": headers.nist,
    "avr": headers.avr,
    "mat4": rare.mat4,
    "mat5": headers.mat5,
    "sds": rare.sds,
    "wve": rare.wve,
    "mpc2k": rare.mpc2k,
    "xi": rare.xi,
    "mp4": headers.mp4,
    "matroska": headers.matroska,
    "asf": headers.asf,
    "avi": headers.avi,
    "aac": frames.adts,
    "amr": frames.amr,
    "gsm": frames.gsm,
    "ac3": frames.ac3,
    "eac3": frames.ac3,
    "wv": frames.wavpack,
    "tta": frames.tta,
    "flv": frames.flv,
    "mpegts": frames.mpegts,
    "mpeg": frames.mpegps,
    "voc": frames.voc,
}


def _walk(view: Source, demuxer: str | None) -> Contents | None:
    if demuxer in ("wav", "w64", "aiff", "caf", "iff"):
        return walk_chunks(view, view.read_at(0, 256))
    if demuxer == "mp3":
        return walk_mpeg_file(view)
    return _WALKS[demuxer](view) if demuxer in _WALKS else Contents()


def _check_behind(view: Source, demuxer: str | None, end: int) -> str:
    """Look at what is behind the end of the container; return a warning, empty where there is nothing.

    Raises:
        AudioError: UNSUPPORTED where another recording begins there, or more than a tag.
    """
    position = end
    while position < view.size and (behind := tag_end(view, position)) > position:
        position = behind
    rest = view.read_at(position, 1 << 16)
    padding = len(rest) - len(rest.lstrip(b"\0"))
    if padding == len(rest) and _is_zero(view, position + len(rest)):
        return ""
    _check_joined(view, end, (position, position + 1, position + padding))
    size = view.size - position
    if demuxer not in _LENIENT and size > max(64, min(_MAX_UNKNOWN_BYTES, end // 50)):
        message = f"the audio ends at byte {end} by its header, but {size} bytes follow that are no chunk and no tag"
        raise AudioError(ErrorCode.UNSUPPORTED, message)
    return f"{size} bytes behind the end of the audio are not read" if size > 8 else ""


def _check_joined(view: Source, end: int, positions: tuple[int, ...], besides: str | None = None) -> None:
    """Raise UNSUPPORTED where a recording, but none of the format `besides`, begins at one of `positions`."""
    for begin in dict.fromkeys(positions):
        following = _demuxer(view.read_at(begin, 256), view, begin)
        if following is not None and following != besides and _is_recording(view, begin, following):
            joined("header", end, f"another recording ({following})")


def _skip_zeros(view: Source, position: int) -> int:
    while data := view.read_at(position, 1 << 16):
        zeros = len(data) - len(data.lstrip(b"\0"))
        position += zeros
        if zeros < len(data):
            break
    return position


def _is_recording(view: Source, begin: int, demuxer: str) -> bool:
    """Whether a recording begins at `begin`, where the bytes look like one: two bytes of a sync word are no proof."""
    if demuxer == "mp3":
        return find_mpeg(view, begin) == begin
    if demuxer not in ("aac", "ac3", "eac3", "mpegts"):
        return True
    try:
        end = _WALKS[demuxer](view.view(begin)).end
    except AudioError:  # it is cut
        return True
    return end is not None and end > (view.size - begin) // 2


def _is_zero(view: Source, position: int) -> bool:
    while data := view.read_at(position, 1 << 20):
        if data.strip(b"\0"):
            return False
        position += len(data)
    return True
