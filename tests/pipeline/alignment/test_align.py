"""Texts of runs aligned to kept posteriors: times in recordings, scores, and what only one of the two has."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.alignment.align import ALIGNMENTS, alignments, write_alignments
from pipeline.errors import UsageError
from pipeline.runs.run import Run
from tests.support.command import sewd_in_process
from tests.support.posteriors import FRAME_S, frames_of, spoken_run
from tests.support.runs import errors, transcripts, write_run

SENTENCES = [
    "the morning was clear and the road was empty",
    "nobody had seen the old man since the winter",
    "she opened every window of the small house",
    "a letter came with the last train from town",
    "his brother kept the horses behind the mill",
    "they counted the money twice before supper",
]


def times_of(words) -> list[tuple[str, float, float]]:
    return [(word.text.word.upper(), word.start_s, word.end_s) for word in words]


def expected(text: str, start_s: float = 0.0) -> list[tuple[str, float, float]]:
    return [(word, start_s + first * FRAME_S, start_s + end * FRAME_S) for word, first, end in frames_of(text)[1]]


def is_near(found, wanted) -> bool:
    """Times agree to a frame: between equal letters an end may be a frame later."""
    return len(found) == len(wanted) and all(
        one[0] == other[0] and one[1:] == pytest.approx(other[1:], abs=1.01 * FRAME_S)
        for one, other in zip(found, wanted, strict=True)
    )


def test_references_of_utterances(tmp_path: Path) -> None:
    rows = [{"spoken": text, "reference": text} for text in SENTENCES]
    rows[2]["reference"] = SENTENCES[3]
    rows[4]["reference"] = " ".join(SENTENCES)
    rows[5]["reference"] = "42"
    run = spoken_run(tmp_path / "run", [*rows, {"spoken": "no reference"}])
    found = {each.identity["utt_id"]: each for each in alignments(run)}
    assert list(found) == [f"u{index}" for index in range(6)]
    for index in (0, 1, 3):
        each = found[f"u{index}"]
        assert is_near(times_of(each.words), expected(SENTENCES[index]))
        assert each.score == pytest.approx(1.0, abs=0.01)
    assert found["u2"].score < 0.05
    assert (found["u4"].score, found["u4"].problem) == (0.0, "the text does not fit into the audio")
    assert found["u5"].score is None
    assert "cannot spell" not in (found["u0"].problem or "")
    assert found["u5"].problem == "the text has no word that the model's vocabulary can spell"


def recording(texts, reference=None, gap_s: float = 0.5, **columns) -> list[dict]:
    """Segments of one recording, with gaps between them that belong to none."""
    rows, start_s = [], 0.0
    for index, text in enumerate(texts):
        duration_s = len(frames_of(text)[0]) * FRAME_S
        name = f"talk#{round(start_s * 1000)}-{round((start_s + duration_s) * 1000)}"
        rows.append({"spoken": text, "utt_id": name, "uri": "/audio/talk.wav", "start_s": start_s, **columns})
        rows[-1]["recording_reference"] = reference if index == 0 else None
        start_s += duration_s + gap_s
    return rows


def words_of_recording(texts, gap_s: float = 0.5) -> list[tuple[str, float, float]]:
    found, start_s = [], 0.0
    for text in texts:
        found += expected(text, start_s)
        start_s += len(frames_of(text)[0]) * FRAME_S + gap_s
    return found


def test_text_of_a_recording_of_several_segments(tmp_path: Path) -> None:
    run = spoken_run(tmp_path / "run", recording(SENTENCES, " ".join(SENTENCES)))
    (found,) = alignments(run)
    assert found.identity["utt_id"] == "talk"
    assert is_near(times_of(found.words), words_of_recording(SENTENCES))
    assert found.extra == ()


def test_a_sentence_that_is_not_in_the_audio(tmp_path: Path) -> None:
    spoken = [*SENTENCES[:2], *SENTENCES[3:]]
    run = spoken_run(tmp_path / "run", recording(spoken, " ".join(SENTENCES)))
    (found,) = alignments(run)
    missing = [word.text.word for word in found.words if word.start_s is None]
    assert missing == SENTENCES[2].split()
    assert is_near(times_of([word for word in found.words if word.start_s is not None]), words_of_recording(spoken))
    assert found.to_row()["missing_words"] == len(missing)


def test_speech_that_is_not_in_the_text(tmp_path: Path) -> None:
    run = spoken_run(tmp_path / "run", recording(SENTENCES, " ".join([*SENTENCES[:2], *SENTENCES[3:]])))
    (found,) = alignments(run)
    words, first = words_of_recording(SENTENCES), len(" ".join(SENTENCES[:2]).split())
    extra = words[first : first + len(SENTENCES[2].split())]
    assert is_near(times_of(found.words), [*words[:first], *words[first + len(extra) :]])
    ((start_s, end_s),) = found.extra
    assert start_s == pytest.approx(extra[0][1], abs=0.6)
    assert end_s == pytest.approx(extra[-1][2], abs=0.6)


def test_reference_of_a_recording_whose_first_segment_failed(tmp_path: Path) -> None:
    rows = recording(SENTENCES)
    failed = errors(
        [
            {"utt_id": rows[0]["utt_id"], "uri": "/audio/talk.wav", "recording_reference": " ".join(SENTENCES)}
            | {"start_s": 0.0, "duration_s": len(frames_of(SENTENCES[0])[0]) * FRAME_S}
        ]
    )
    run = spoken_run(tmp_path / "run", rows[1:], failed)
    (found,) = alignments(run)
    first = len(SENTENCES[0].split())
    assert all(word.start_s is None for word in found.words[:first])
    assert is_near(times_of(found.words[first:]), words_of_recording(SENTENCES)[first:])


def test_one_text_may_be_that_of_a_recording_that_failed(tmp_path: Path) -> None:
    failed = errors([{"utt_id": "other", "uri": "/audio/other.wav", "start_s": None, "duration_s": None}])
    run = spoken_run(tmp_path / "run", recording(SENTENCES), failed)
    (tmp_path / "talk.txt").write_text(" ".join(SENTENCES))
    with pytest.raises(UsageError, match="the text of one recording, and there are 2"):
        list(alignments(run, str(tmp_path / "talk.txt")))


def test_channels_of_a_recording_have_no_text_in_common(tmp_path: Path) -> None:
    text = " ".join(SENTENCES)
    rows = [*recording(SENTENCES, text, channel=0), *recording(SENTENCES, text, channel=1)]
    for row in rows:
        row["utt_id"] = row["utt_id"].replace("talk", f"talk#c{row['channel']}")
    found = list(alignments(spoken_run(tmp_path / "run", rows)))
    assert [each.problem for each in found] == ["the text is that of several channels"] * 2


def test_verb_writes_a_table(tmp_path: Path) -> None:
    run = spoken_run(tmp_path / "run", recording(SENTENCES))
    (tmp_path / "talk.txt").write_text("\n".join(SENTENCES))
    done = sewd_in_process("align", run.uri, "--text", tmp_path / "talk.txt", "-o", tmp_path / "words.parquet")
    assert done.returncode == 0, done.stderr
    number = len(" ".join(SENTENCES).split())
    assert f"1 text for 6 rows of the run: {number} words, 0 of them not in the audio" in done.stdout
    table = pq.read_table(tmp_path / "words.parquet")
    assert table.schema.names == ALIGNMENTS.names
    (row,) = table.to_pylist()
    assert [word["word"] for word in row["words"]] == " ".join(SENTENCES).split()
    for options, message in (
        (["-o", tmp_path / "words.csv"], "must end in .parquet"),
        (["-o", tmp_path / "other.parquet"], "none has a text"),
    ):
        refused = sewd_in_process("align", run.uri, *options)
        assert refused.returncode == 2
        assert message in refused.stderr


def test_processes_give_the_same(tmp_path: Path) -> None:
    rows = [{"spoken": text, "reference": text} for text in SENTENCES]
    run = spoken_run(tmp_path / "run", [*rows, *recording(SENTENCES, " ".join(SENTENCES))])
    assert list(alignments(run, workers=2)) == list(alignments(run))


def test_texts_of_other_recordings_are_named(tmp_path: Path) -> None:
    run = spoken_run(tmp_path / "run", [{"spoken": text} for text in SENTENCES[:2]])
    (tmp_path / "texts").mkdir()
    for name in ("u0", "u7", "u8"):
        (tmp_path / "texts" / f"{name}.txt").write_text(SENTENCES[0])
    done = sewd_in_process("align", run.uri, "--text", tmp_path / "texts", "-o", tmp_path / "words.parquet")
    assert done.returncode == 0, done.stderr
    assert "2 texts of --text not used, since the run has no such recording: u7, u8" in done.stderr
    assert "1 text for 2 rows of the run" in done.stdout


def test_run_without_posteriors_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", transcripts([{"text": "one", "reference": "one"}]))
    with pytest.raises(UsageError, match="--keep-posteriors"):
        list(alignments(Run.open(run.uri)))


def test_file_is_complete_or_not_there(tmp_path: Path) -> None:
    def broken():
        yield from alignments(spoken_run(tmp_path / "run", recording(SENTENCES, "the")))
        raise RuntimeError

    with pytest.raises(RuntimeError):
        list(write_alignments(broken(), str(tmp_path / "out.parquet")))
    assert not (tmp_path / "out.parquet").exists()
