"""lhotse's Shar, with lhotse as the oracle."""

from __future__ import annotations

import gzip
import io
import json

import numpy as np
import pytest
import soundfile

from pipeline.corpus.plan import plan
from pipeline.errors import UsageError
from tests.support.corpora import parts_of, write_audio
from tests.support.inputs import outcomes, read, write
from tests.support.shards import ODD_ROWS, json_lines, shar, shar_cut, shar_recording, tar_bytes


def write_all(folder, files):
    for name, data in files.items():
        write(folder / name, data)
    return folder


@pytest.fixture
def corpus(tmp_path):
    """Two shards: of two cuts and of one."""
    said = {"speaker": "ann", "language": "English", "custom": {"topic": "tea", "f0": {"type": "array"}}}
    first = [shar_cut("r1-0", "hello", **said), shar_cut("d/r1.1", "world")]
    write_all(tmp_path, shar(first, {"r1-0": b"A", "d/r1.1": b"B"}))
    write_all(tmp_path, shar([shar_cut("r2-0", "again")], {"r2-0": b"C"}, ".000001"))
    return tmp_path


def test_cuts_are_utterances_with_their_audio(corpus):
    found = read(corpus)
    assert [(u.utt_id, u.open(), u.meta.text, u.meta.speaker, u.meta.span) for u in found] == [
        ("r1-0", b"A", "hello", "ann", None),
        ("d/r1.1", b"B", "world", None, None),
        ("r2-0", b"C", "again", None, None),
    ]
    assert json.loads(found[0].meta.tags) == {"lang": "English", "topic": "tea"}
    assert found[0].uri == f"{corpus}/recording.000000.tar"
    assert found[1].where == f"{corpus}/cuts.000000.jsonl.gz, row 2"
    assert all(u.fixed_id for u in found)


@pytest.mark.parametrize("odd", ODD_ROWS)
def test_an_odd_row_of_json_is_an_error_row(tmp_path, odd):
    write_all(tmp_path, shar([shar_cut("a", "x"), odd], {"a": b"A"}))
    assert outcomes(tmp_path) == [("a", b"A"), (f"{tmp_path}/cuts.000000.jsonl.gz[1]", "BAD_ROW")]


@pytest.mark.parametrize("named", ["cuts.000000.jsonl.gz", "cuts.*.jsonl.gz", "cuts*"])
def test_cuts_are_named_one_by_one_or_by_a_glob(corpus, named):
    expected = ["r1-0", "d/r1.1"] if named == "cuts.000000.jsonl.gz" else ["r1-0", "d/r1.1", "r2-0"]
    assert [u.utt_id for u in read(f"{corpus}/{named}")] == expected


def test_a_shard_without_a_number_and_without_compression_is_read(tmp_path):
    files = shar([shar_cut("a", "x")], {"a": b"A"}, "")
    write(tmp_path / "cuts.jsonl", gzip.decompress(files["cuts.jsonl.gz"]))
    write(tmp_path / "recording.tar", files["recording.tar"])
    assert outcomes(tmp_path) == outcomes(tmp_path / "cuts.jsonl") == [("a", b"A")]


def test_each_shard_is_a_part_and_a_limit_counts_rows(corpus):
    found = parts_of(corpus)
    assert [(part.kind, part.rows) for part in found] == [("tar_rows", 2), ("tar_rows", 1)]
    assert [part.bytes for part in found] == [(corpus / f"recording.00000{i}.tar").stat().st_size for i in (0, 1)]
    assert [part.rows for part in parts_of(corpus, limit=1)] == [1]


def test_fields_that_are_no_recordings_are_tags_or_left_out(corpus):
    write(corpus / "snr.000000.jsonl.gz", gzip.compress(json_lines([{"cut_id": "r1-0", "snr": 7}, {"cut_id": "x"}])))
    write(corpus / "features.000000.tar", tar_bytes([("r1-0.npy", b"x"), ("r1-0.json", b"{}")]))
    found = read(corpus)
    assert len(found) == 3
    assert json.loads(found[0].meta.tags)["snr"] == 7
    assert json.loads(plan([str(corpus)], 1).schema.metadata[b"sewd.left_out"])["files"] == {"tar": 1}


def test_fields_with_names_of_a_row_do_not_change_the_audio(corpus):
    for name, value in (("offset", 12.5), ("duration", 0.1), ("channel", 1), ("id", "x")):
        rows = json_lines([{"cut_id": "r1-0", name: value}])
        write(corpus / f"{name}.000000.jsonl.gz", gzip.compress(rows))
    found = read(corpus)[0]
    assert (found.problem, found.utt_id, found.meta.span, found.channel) == (None, "r1-0", None, None)


def test_a_cut_of_a_part_of_its_recording_has_a_span(tmp_path):
    cut = shar_cut("a", "x", duration=0.5, start=0.25, recording=shar_recording("a", 1.0))
    (found,) = read(write_all(tmp_path, shar([cut], {"a": b"A"})))
    assert found.meta.span == (0.25, 0.5)


def test_what_is_wrong_with_a_cut_is_an_error_row_and_costs_no_other(tmp_path):
    cuts = [
        shar_cut("ok", "x"),
        b"not json",
        b"[1]",
        b"[" * 100_000,
        shar_cut("no-member", "x"),
        shar_cut("no-data", "x"),
        shar_cut("no-recording", "x", recording=None),
        shar_cut("mixed", "x", type="MixedCut"),
        shar_cut("file", "x", recording={"id": "r", "sources": [{"type": "file", "source": "/etc/passwd"}]}),
        shar_cut("absurd", "x", duration="soon"),
        shar_cut("absurd2", "x", duration=1e308, start=-1e308, supervisions="none"),
        shar_cut("../../etc/passwd", "x"),
        shar_cut("link", "x"),
        shar_cut("ok", "twice"),
        shar_cut("last", "y"),
    ]
    audio = {"ok": b"A", "no-data": None, "no-recording": b"B", "absurd": b"C", "absurd2": b"D", "unknown": b"E"}
    files = shar(cuts, {**audio, "last": b"Z"})
    write_all(tmp_path, files)
    found = outcomes(tmp_path)
    codes = {key: code for key, code in found if isinstance(code, str)}
    assert len(found) == len(cuts)
    assert {key: code for key, code in found if not isinstance(code, str)} == {
        "ok": b"A",
        "absurd2": b"D",  # its span is an error once the audio is decoded
        "last": b"Z",
    }
    assert {key: code for key, code in codes.items() if "[" not in key} == {
        "no-member": "MISSING",
        "no-data": "MISSING",
        "../../etc/passwd": "MISSING",
        "link": "MISSING",
        "ok": "DUPLICATE_ID",
    }
    rows = [codes[f"{tmp_path}/cuts.000000.jsonl.gz[{row}]"] for row in (1, 2, 3, 6, 7, 8, 9)]
    assert rows == ["BAD_ROW", "BAD_ROW", "BAD_ROW", "MISSING", "UNSUPPORTED", "UNSUPPORTED", "BAD_ROW"]


def test_a_link_in_a_shard_is_not_followed(tmp_path):
    files = shar([shar_cut("a", "x")], {})
    write_all(tmp_path, files)
    link = {"type": b"2", "linkname": "/etc/passwd"}
    write(tmp_path / "recording.000000.tar", tar_bytes([("a.flac", b"", link)]))
    assert outcomes(tmp_path) == [("a", "UNSUPPORTED")]


def test_a_damaged_shard_costs_the_rows_behind_the_damage(tmp_path):
    cuts = [shar_cut(f"c{i}", "x") for i in range(4)]
    files = shar(cuts, {f"c{i}": b"A" * 600 for i in range(4)})
    data = files["recording.000000.tar"]
    files["recording.000000.tar"] = data[: data.index(b"c2.flac") + 700]
    found = outcomes(write_all(tmp_path, files))
    assert [code if isinstance(code, str) else "ok" for _, code in found] == ["ok", "ok", "BAD_ARCHIVE", "BAD_ARCHIVE"]


def test_a_missing_shard_is_an_error_row_for_each_cut_and_no_shard_at_all_is_refused(corpus):
    (corpus / "recording.000001.tar").unlink()
    assert outcomes(corpus)[2:] == [(f"{corpus}/cuts.000001.jsonl.gz[0]", "MISSING")]
    (corpus / "recording.000000.tar").unlink()
    with pytest.raises(UsageError, match=r"a lhotse Shar, and .*recording\.000000\.tar is missing"):
        read(corpus / "cuts.000000.jsonl.gz")


def test_cuts_whose_recordings_are_files_are_not_of_a_shar(tmp_path):
    write(tmp_path / "a.wav", b"A")
    source = {"type": "file", "channels": [0], "source": "a.wav"}
    cut = shar_cut("a", "x", recording={"id": "a", "sources": [source], "sampling_rate": 16_000, "duration": 1.0})
    write(tmp_path / "cuts.jsonl.gz", gzip.compress(json_lines([cut])))
    write(tmp_path / "recording.tar", tar_bytes([("b.wav", b"B")]))
    assert outcomes(tmp_path / "cuts.jsonl.gz") == [("a", b"A")]
    assert ("b", b"B") in outcomes(tmp_path)


@pytest.mark.parametrize("kind", ["flac", "wav", "original", "mp3"])
def test_what_lhotse_writes_is_read_as_lhotse_reads_it(tmp_path, kind):
    lhotse = pytest.importorskip("lhotse")
    shar_module = pytest.importorskip("lhotse.shar")
    cuts = []
    for index in range(5):
        write_audio(tmp_path / f"audio/r{index}.flac", seconds=2.0, seed=index)
        recording = lhotse.Recording.from_file(tmp_path / f"audio/r{index}.flac")
        cut = recording.to_cut()
        words = [("one", "ann"), ("two", "ann" if index % 2 else "bob")]
        cut.supervisions = [
            lhotse.SupervisionSegment(f"s{index}-{i}", recording.id, i, 0.9, text=text, speaker=who, language="en")
            for i, (text, who) in enumerate(words)
        ]
        cuts.append(cut.truncate(offset=0.5, duration=1.25, keep_excessive_supervisions=True) if index == 3 else cut)
    (tmp_path / "shar").mkdir()
    with shar_module.SharWriter(str(tmp_path / "shar"), fields={"recording": kind}, shard_size=2) as writer:
        for cut in cuts:
            writer.write(cut)
    expected = {cut.id: cut for cut in lhotse.CutSet.from_shar(in_dir=tmp_path / "shar")}
    found = read(tmp_path / "shar")
    assert [u.utt_id for u in found] == list(expected)
    for utterance in found:
        cut = expected[utterance.utt_id]
        samples, rate = soundfile.read(io.BytesIO(utterance.open()), dtype="float32")
        assert utterance.meta.span is None
        assert (rate, utterance.meta.text) == (cut.sampling_rate, " ".join(s.text for s in cut.supervisions))
        assert utterance.meta.speaker == (
            cut.supervisions[0].speaker if len({s.speaker for s in cut.supervisions}) == 1 else None
        )
        assert json.loads(utterance.meta.tags)["lang"] == "en"
        heard = cut.load_audio()[0][: len(samples)]
        np.testing.assert_allclose(samples[: cut.num_samples], heard, atol=1e-6)
        assert abs(len(samples) - cut.num_samples) <= (0 if kind != "mp3" else 2304)
