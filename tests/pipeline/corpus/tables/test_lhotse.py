"""lhotse's manifests."""

import gzip
import json

import pytest

from pipeline.errors import UsageError
from tests.support.inputs import outcomes, read, write, write_files


def recording(key, path, channels=(0,), kind="file"):
    source = {"type": kind, "channels": list(channels), "source": path}
    return {"id": key, "sources": [source], "sampling_rate": 16_000, "num_samples": 48_000, "duration": 3.0}


def supervision(key, recording_id, start, duration, **values):
    return {"id": key, "recording_id": recording_id, "start": start, "duration": duration, "channel": 0, **values}


RECORDINGS = [recording("r1", "wav/r1.wav"), recording("r2", "wav/r2.wav", (0, 1)), recording("r3", "wav/r3.wav")]
SUPERVISIONS = [
    supervision("u1", "r1", 0.0, 1.5, text="hello", speaker="ann", language="English", gender="F"),
    supervision("u2", "r2", 1.0, 2.0, text="yes", channel=1),
    supervision("u3", "r9", 0.0, 1.0),
]


def write_lines(path, rows):
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return write(path, gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.mark.parametrize("end", [".jsonl", ".jsonl.gz"])
@pytest.mark.parametrize("named", ["recordings", "supervisions"])
def test_supervisions_are_utterances_and_recordings_without_them_are_too(tmp_path, end, named):
    write_files(tmp_path, "wav/r1.wav", "wav/r2.wav", "wav/r3.wav")
    write_lines(tmp_path / f"x_recordings_train{end}", RECORDINGS)
    write_lines(tmp_path / f"x_supervisions_train{end}", SUPERVISIONS)
    found = read(tmp_path / f"x_{named}_train{end}")
    assert [(u.utt_id, u.meta.span, u.meta.text, u.meta.speaker, u.channel) for u in found if not u.problem] == [
        ("u1", (0.0, 1.5), "hello", "ann", None),
        ("u2", (1.0, 2.0), "yes", None, 1),
        ("r3", None, None, None, None),
    ]
    assert json.loads(found[0].meta.tags) == {"gender": "F", "lang": "English"}
    assert [u.problem.code.value for u in found if u.problem] == ["MISSING"]


def cut(key, supervisions, start=0.5, duration=2.0, kind="MonoCut", **values):
    return {
        "id": key,
        "start": start,
        "duration": duration,
        "channel": 0,
        "supervisions": supervisions,
        "recording": RECORDINGS[0],
        "type": kind,
        **values,
    }


def test_cuts_are_utterances(tmp_path):
    write_files(tmp_path, "wav/r1.wav")
    two = [supervision("b", "r1", 1.0, 0.5, text="world", speaker="b"), supervision("a", "r1", 0.0, 1.0, text="hello")]
    cuts = [
        cut("c1", two),
        cut("c2", [supervision("c", "r1", 0, 1, text="one", speaker="ann")]),
        cut("c3", []),
        cut("c4", [], recording=None),
        cut("c5", [], kind="MixedCut"),
        cut("c6", [], recording=recording("r", "sox a.wav |", kind="command")),
    ]
    found = read(write_lines(tmp_path / "cuts.jsonl.gz", cuts))
    assert [(u.utt_id, u.meta.span, u.meta.text, u.meta.speaker) for u in found if not u.problem] == [
        ("c1", (0.5, 2.0), "hello world", None),
        ("c2", (0.5, 2.0), "one", "ann"),
        ("c3", (0.5, 2.0), None, None),
    ]
    assert [u.problem.code.value for u in found if u.problem] == ["MISSING", "UNSUPPORTED", "UNSUPPORTED"]


def test_supervisions_without_recordings_are_a_usage_error(tmp_path):
    path = write_lines(tmp_path / "supervisions.jsonl", SUPERVISIONS)
    with pytest.raises(UsageError, match="the recordings beside it are missing"):
        read(path)


def test_a_plain_manifest_is_none_of_lhotse(tmp_path):
    write_files(tmp_path, "a.wav")
    path = write_lines(tmp_path / "m.jsonl", [{"audio_filepath": "a.wav", "id": "x", "duration": 1.0}])
    assert [outcome[0] for outcome in outcomes(path)] == ["x"]
