"""Data sets in tar shards with their rows beside them, as lhotse's Shar and NeMo have them."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tests.support.corpora import add_member

# JSON to Python, and no text that can be stored, or nested too deep.
ODD_ROWS: tuple[Any, ...] = (
    *({"audio_filepath": "a.wav", "note": "\ud83d"}, {"audio_filepath": "\ud83d.wav"}),
    b'{"audio_filepath": "a.wav", "note": %s%s}' % (b"[" * 600, b"]" * 600),
)


def json_lines(rows: Iterable[Any]) -> bytes:
    """Rows as JSON lines; what is bytes already is a line as it is."""
    return b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)


def tar_bytes(members: Iterable[tuple[Any, ...]]) -> bytes:
    """A shard of (name, data) or (name, data, fields of its TarInfo)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data, *fields in members:
            add_member(archive, name, data, **(fields[0] if fields else {}))
    return buffer.getvalue()


def shar_recording(recording_id: str, duration: float = 1.0, channels: Sequence[int] = (0,)) -> dict[str, Any]:
    """A recording as Shar has it: its audio is in the shard."""
    source = {"type": "shar", "channels": list(channels), "source": ""}
    return {"id": recording_id, "sources": [source], "sampling_rate": 16_000, "duration": duration}


def shar_cut(cut_id: str, text: str | None = None, duration: float = 1.0, **values: Any) -> dict[str, Any]:
    """A cut of Shar; `values` are further ones, `speaker` and `language` of its supervision."""
    said = {key: values.pop(key) for key in ("speaker", "language") if key in values}
    supervision = {"id": f"{cut_id}-s", "recording_id": cut_id, "start": 0, "duration": duration, "channel": 0, **said}
    return {
        "id": cut_id,
        "start": 0,
        "duration": duration,
        "channel": 0,
        "supervisions": [supervision | {"text": text}] if text is not None else [],
        "recording": shar_recording(cut_id, duration),
        "type": "MonoCut",
        **values,
    }


def shar(cuts: Sequence[Any], audio: Mapping[str, bytes | None], number: str = ".000000") -> dict[str, bytes]:
    """The two objects of a shard by name: its cuts, and the audio by id; None for a cut that was stored without it."""
    members: list[tuple[str, bytes]] = []
    for cut_id, data in audio.items():
        if data is None:
            members += [(f"{cut_id}.nodata", b""), (f"{cut_id}.nometa", b"")]
        else:
            members += [(f"{cut_id}.flac", data), (f"{cut_id}.json", json.dumps(shar_recording(cut_id)).encode())]
    return {
        f"cuts{number}.jsonl.gz": gzip.compress(json_lines(cuts)),
        f"recording{number}.tar": tar_bytes(members),
    }
