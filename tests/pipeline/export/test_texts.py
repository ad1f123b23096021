"""Each format of texts, read back by a program that is not ours: equal in words and times."""

from __future__ import annotations

import html
import itertools
import json
import re

import pysubs2
import pytest
import webvtt
from hypothesis import given
from hypothesis import strategies as st
from praatio import textgrid

from pipeline.errors import UsageError
from pipeline.export.cues import CueSettings, TimedWord, cues
from pipeline.export.export import FORMATS, ExportSettings, export
from pipeline.export.names import file_name
from pipeline.scoring.stm import parse_stm
from tests.support.runs import errors, labels, transcripts, write_run

LONG = [f"w{n}" for n in range(60)]
ODD = ["so", '"quoted"', "-->", "<i>tag</i>", "&", "{x}", "é", "語"]


def row(recording, start_s, words, *, channel=None, end_s=None, step=0.5, **more):
    end_s = start_s + 30 if end_s is None else end_s
    suffix = "" if channel is None else f"#c{channel}"
    timed = [
        {"word": word, "start_s": start_s + n * step, "end_s": start_s + n * step + 0.75 * step, "confidence": 0.5}
        for n, word in enumerate(words)
    ]
    name = f"{recording}{suffix}#{round(start_s * 1000)}-{round(end_s * 1000)}"
    own = {"start_s": start_s, "duration_s": end_s - start_s, "channel": channel, "text": " ".join(words)}
    return {"utt_id": name, "uri": f"audio/{recording}.wav", "words": timed} | own | more


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A long recording, one of two channels, one with no words, odd names and odd words, and an error row."""
    rows = [
        row("long", 3645.0, LONG[30:]),
        row("long", 3630.0, LONG[:30], end_s=3645.0),
        *(row("call", 0.0, [f"c{c}w{n}" for n in range(6)], channel=c) for c in (1, 0)),
        row("silent", 0.0, []),
        row("a b/ü 100%", 1.0, ODD, speaker="anna maria"),
    ]
    path = tmp_path_factory.mktemp("runs") / "run"
    return write_run(path, transcripts(rows), errors=errors([{}]), chunk_rows=2)


@pytest.fixture(scope="module")
def words():
    """The words of each recording and channel with their times."""
    found = {("long", None): [(word, 3630 + n * 0.5, 3630 + n * 0.5 + 0.375) for n, word in enumerate(LONG)]}
    for c in (0, 1):
        found["call", c] = [(f"c{c}w{n}", n * 0.5, n * 0.5 + 0.375) for n in range(6)]
    found["silent", None] = []
    found["a b/ü 100%", None] = [(word, 1 + n * 0.5, 1 + n * 0.5 + 0.375) for n, word in enumerate(ODD)]
    return found


def written(run, tmp_path, kind, **settings):
    output = tmp_path / "out"
    done = export(run, ExportSettings(format=kind, **settings), str(output))
    assert done.failed == 1
    return output, done


def said(words, name):
    return [word for (recording, _), found in words.items() if recording == name for word in found]


def test_srt_is_read_by_pysubs2(run, words, tmp_path):
    output, done = written(run, tmp_path, "srt")
    assert (done.files, done.recordings, done.utterances) == (4, 4, 6)
    found = pysubs2.load(str(output / "long.srt"), keep_html_tags=True)
    lines = [line for cue in found for line in cue.text.split(r"\N")]
    assert [word for line in lines for word in line.split()] == LONG
    assert max(map(len, lines)) <= 42
    assert found[0].start == 3_630_000
    assert found[-1].end >= round(said(words, "long")[-1][2] * 1000)
    starts = {word: round(start * 1000) for word, start, _ in said(words, "long")}
    assert all(cue.start == starts[re.split(r"\\N| ", cue.text)[0]] for cue in found)
    assert all(cue.end < following.start for cue, following in itertools.pairwise(found))
    odd = pysubs2.load(str(output / "a b" / "ü 100%25.srt"), keep_html_tags=True)
    assert [word for cue in odd for word in cue.text.replace(r"\N", " ").split()] == ODD
    assert len(pysubs2.load(str(output / "silent.srt"), format_="srt")) == 0
    both = pysubs2.load(str(output / "call.srt"))
    assert [cue.text for cue in both] == [
        f"channel {c + 1}: " + " ".join(f"c{c}w{n}" for n in range(6)) for c in (0, 1)
    ]


def test_vtt_is_read_by_webvtt(run, words, tmp_path):
    output, _ = written(run, tmp_path, "vtt")
    found = list(webvtt.read(str(output / "long.vtt")))
    assert " ".join(cue.text.replace("\n", " ") for cue in found).split() == LONG
    assert found[0].start == "01:00:30.000"
    raw = (output / "a b" / "ü 100%25.vtt").read_text()
    assert "<i>" not in raw
    assert raw.count("-->") == len(list(webvtt.from_string(raw)))
    odd = " ".join(html.unescape(cue.raw_text) for cue in webvtt.from_string(raw))
    assert odd.split() == ODD
    assert [cue.voice for cue in webvtt.read(str(output / "call.vtt"))] == ["channel 1", "channel 2"]
    assert list(webvtt.read(str(output / "silent.vtt"))) == []


def test_a_textgrid_is_read_by_praatio(run, words, tmp_path):
    output, _ = written(run, tmp_path, "textgrid")
    found = textgrid.openTextgrid(str(output / "long.TextGrid"), includeEmptyIntervals=True)
    assert found.tierNames == ("segments", "words")
    tier = found.getTier("words")
    assert tuple(tier.entries[0]) == (0.0, 3630.0, "")
    kept = [entry for entry in tier.entries if entry.label]
    assert [(word, start, end) for start, end, word in kept] == said(words, "long")
    assert all(a.end == b.start for a, b in itertools.pairwise(tier.entries))
    odd = textgrid.openTextgrid(str(output / "a b" / "ü 100%25.TextGrid"), includeEmptyIntervals=False)
    assert [entry.label for entry in odd.getTier("words (anna maria)").entries] == ODD
    both = textgrid.openTextgrid(str(output / "call.TextGrid"), includeEmptyIntervals=False)
    assert both.tierNames == ("segments (channel 1)", "words (channel 1)", "segments (channel 2)", "words (channel 2)")
    silent = textgrid.openTextgrid(str(output / "silent.TextGrid"), includeEmptyIntervals=True)
    assert [tuple(entry) for entry in silent.getTier("words").entries] == [(0.0, 30.0, "")]


NAMES = {"a b/ü 100%": "a%20b/ü%20100%25"}


def test_ctm_stm_and_rttm_are_read_by_meeteval(run, words, tmp_path):
    meeteval = pytest.importorskip("meeteval")
    ctm = meeteval.io.CTM.load(written(run, tmp_path / "ctm", "ctm")[0])
    found = {}
    for line in ctm.lines:
        start = float(line.begin_time)
        found.setdefault((line.filename, line.channel), []).append((line.word, start, start + float(line.duration)))
    expected = {(NAMES.get(name, name), str((c or 0) + 1)): w for (name, c), w in words.items() if w}
    assert found.keys() == expected.keys()
    for key, own in found.items():
        assert [word for word, *_ in own] == [word for word, *_ in expected[key]]
        assert [t for _, *times in own for t in times] == pytest.approx(
            [t for _, *times in expected[key] for t in times]
        )

    stm = meeteval.io.STM.load(written(run, tmp_path / "stm", "stm")[0])
    by_name = {}
    for line in stm.lines:
        by_name.setdefault((line.filename, str(line.channel)), []).append(line)
    for (name, channel), own in by_name.items():
        spoken = [word for line in own for word in line.transcript.split()]
        assert spoken == [word for word, *_ in expected.get((name, channel), [])]
    assert [(float(line.begin_time), float(line.end_time)) for line in by_name["long", "1"]] == [
        (3630, 3645),
        (3645, 3675),
    ]
    assert by_name["silent", "1"][0].transcript == ""
    assert {line.speaker_id for line in by_name["call", "2"]} == {"channel%202"}
    ours = parse_stm((tmp_path / "stm" / "out").read_text())
    assert [segment.channel for segment in ours["call"]] == [0, 1]
    assert ours["a%20b/ü%20100%25"][0].speaker == "anna%20maria"

    rttm = meeteval.io.RTTM.load(written(run, tmp_path / "rttm", "rttm")[0])
    turns = [(line.filename, line.channel, float(line.begin_time), float(line.duration)) for line in rttm.lines]
    assert ("long", "1", 3630.0, 29.5 + 0.375) in turns
    assert {line.speaker_id for line in rttm.lines} == {"unknown", "channel%201", "channel%202", "anna%20maria"}


def test_rttm_is_read_by_lhotse(run, tmp_path):
    lhotse = pytest.importorskip("lhotse")
    output, _ = written(run, tmp_path, "rttm")
    found = lhotse.SupervisionSet.from_rttm(output)
    assert {(one.recording_id, one.channel, one.speaker) for one in found} >= {("call", 1, "channel%201")}


def test_trn_is_one_line_for_each_utterance_of_the_source(run, tmp_path):
    output, _ = written(run, tmp_path, "trn")
    lines = [re.fullmatch(r"(.*?) ?\((\S+)\)", line).groups() for line in output.read_text().splitlines()]
    assert {name: text.split() for text, name in lines} == {
        "long": LONG,
        "silent": [],
        "a%20b/ü%20100%25": ODD,
        **{f"call#c{c}": [f"c{c}w{n}" for n in range(6)] for c in (0, 1)},
    }


def test_parts_that_a_manifest_names_stay_apart_in_trn_and_are_one_recording_in_stm(tmp_path):
    rows = [
        {"utt_id": f"u{n}", "uri": "/audio/talk one.wav", "start_s": 3.0 * n, "duration_s": 1.0, "text": f"t{n}"}
        for n in range(3)
    ]
    run = write_run(tmp_path / "run", transcripts(rows))
    export(run, ExportSettings(format="trn"), str(tmp_path / "trn"))
    export(run, ExportSettings(format="stm"), str(tmp_path / "stm"))
    assert (tmp_path / "trn").read_text() == "t0 (u0)\nt1 (u1)\nt2 (u2)\n"
    assert {line.split()[0] for line in (tmp_path / "stm").read_text().splitlines()} == {"/audio/talk%20one.wav"}


def test_jsonl_has_all_words_with_their_times(run, words, tmp_path):
    output, _ = written(run, tmp_path, "jsonl")
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    found = {
        (line["recording"], line["channel"]): [(w["word"], w["start_s"], w["end_s"]) for w in line["words"]]
        for line in lines
    }
    assert found == {(name, c): own for (name, c), own in words.items()}


@pytest.mark.parametrize("kind", FORMATS)
def test_an_empty_run_is_an_empty_export(tmp_path, kind):
    run = write_run(tmp_path / "run", transcripts([]))
    done = export(run, ExportSettings(format=kind), str(tmp_path / "out"))
    assert (done.recordings, done.utterances) == (0, 0)


def test_a_condition_selects_utterances_by_columns_and_labels(tmp_path):
    rows = [{"text": f"t{n}", "confidence": n / 10, "duration_s": float(n), "speaker": "ab"[n % 2]} for n in range(10)]
    tasks = [{"label": "yes" if n < 5 else "no"} for n in range(9)]  # one has no label
    run = write_run(tmp_path / "run", transcripts(rows), labels(tasks))
    run = run.with_changes(fingerprint={**run.record.fingerprint, "classifiers": {"keyword": "0"}})

    def texts(where):
        output = tmp_path / "out.trn"
        done = export(run, ExportSettings(format="trn", where=where), str(output))
        found = [line.split()[0] for line in output.read_text().splitlines()]
        assert (done.utterances, done.not_selected) == (len(found), 10 - len(found))
        return sorted(found)

    assert texts("confidence > 0.65 and duration_s < 9") == ["t7", "t8"]
    assert texts("keyword = 'no'") == ["t5", "t6", "t7", "t8"]
    assert texts("NOT keyword = 'no'") == ["t0", "t1", "t2", "t3", "t4"]
    assert texts("keyword is null or (speaker in ('a') and keyword.score >= 1 and confidence < 0.3)") == [
        "t0",
        "t2",
        "t9",
    ]
    assert texts("length(text) > 2") == []


def test_a_file_is_replaced_and_a_directory_must_be_empty(run, tmp_path):
    (tmp_path / "out").write_text("old")
    assert "old" not in written(run, tmp_path, "ctm")[0].read_text()
    with pytest.raises(UsageError, match="not empty"):
        written(run, tmp_path, "srt")


@given(st.lists(st.text("ab/.%\\ :", max_size=6), min_size=2, max_size=2, unique=True))
def test_different_recordings_have_different_files_below_the_directory(names):
    first, second = (file_name(name, ".srt") for name in names)
    assert first != second
    parts = first.split("/")
    assert not {"", ".", ".."} & set(parts)
    assert "\\" not in first


@pytest.mark.parametrize("name", ["a" * 300, "é" * 150, "\U0001f600" * 63, "\U0001f600" * 63 + "b"])
def test_file_systems_take_the_name_of_a_long_one(name):
    assert len(file_name(name, ".TextGrid").encode()) < 220  # and what a file has in its name until it is complete
    assert file_name(name, "") != file_name(name + "c", "")


WORDS = st.lists(st.tuples(st.text("abc.", min_size=1, max_size=50), st.floats(0, 3), st.floats(0.02, 1)), max_size=40)


@given(WORDS, st.integers(1, 60), st.integers(1, 3), st.floats(0.5, 8))
def test_cues_have_all_words_in_order_within_the_limits(drawn, line_chars, lines, longest_s):
    words, now = [], 0.0
    for word, gap, length in drawn:
        words.append(TimedWord(word, now + gap, now + gap + length, 1.0))
        now += gap + length
    settings = CueSettings(line_chars=line_chars, lines=lines, shortest_s=0.5, longest_s=longest_s)
    found = cues(words, settings)
    assert [word for cue in found for line in cue.lines for word in line.split()] == [word.word for word in words]
    for cue, following in itertools.zip_longest(found, found[1:]):
        assert cue.start_s < cue.end_s
        assert following is None or cue.end_s <= following.start_s
        number = sum(len(line.split()) for line in cue.lines)
        assert number == 1 or cue.end_s - cue.start_s <= longest_s + 1e-9
        assert len(cue.lines) <= lines
        assert all(len(line) <= line_chars or " " not in line for line in cue.lines)
    assert {cue.start_s for cue in found} <= {word.start_s for word in words}
