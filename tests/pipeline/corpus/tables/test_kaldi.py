"""Kaldi's data directories."""

import json

import pytest

from pipeline.corpus.plan import plan
from pipeline.errors import UsageError
from tests.support.inputs import outcomes, read, write, write_files

FILES = {
    "wav.scp": "r1 wav/r1.wav\nr2\twav/r2.flac\n",
    "segments": "u1 r1 0.0 1.5\nu2 r1 1.5 3.25\nu3 r2 0 -1\n",
    "text": "u1 hello world\nu2\nu4 of nobody\n",
    "utt2spk": "u1 ann\nu2 bob\nu3 ann\n",
    "utt2lang": "u1 en\n",
}


def data_directory(folder, **changes):
    write_files(folder, "wav/r1.wav", "wav/r2.flac")
    for name, text in {**FILES, **changes}.items():
        if text is not None:
            write(folder / "data" / name, text)
    return folder / "data"


@pytest.mark.parametrize("named", ["", "wav.scp"])
def test_segments_are_utterances_with_text_and_speaker(tmp_path, named):
    found = read(data_directory(tmp_path) / named)
    assert [(u.utt_id, u.meta.span, u.meta.text, u.meta.speaker) for u in found] == [
        ("u1", (0.0, 1.5), "hello world", "ann"),
        ("u2", (1.5, 1.75), "", "bob"),
        ("u3", (0.0, None), None, "ann"),
    ]
    assert [u.uri for u in found] == [f"{tmp_path}/wav/r1.wav"] * 2 + [f"{tmp_path}/wav/r2.flac"]
    assert json.loads(found[0].meta.tags) == {"lang": "en"}
    assert all(u.fixed_id for u in found)


def test_recordings_are_utterances_without_segments(tmp_path):
    directory = data_directory(tmp_path, segments=None, text="r1 hello\n", reco2dur="r1 2.5\n")
    found = read(directory)
    assert [(u.utt_id, u.meta.span, u.meta.text, u.meta.duration) for u in found] == [
        ("r1", None, "hello", 2.5),
        ("r2", None, None, None),
    ]


def test_a_command_is_never_run(tmp_path):
    trap = tmp_path / "trap"
    directory = data_directory(tmp_path, **{"wav.scp": f"r1 touch {trap} |\nr2 wav/r2.flac\n"})
    found = outcomes(directory)
    assert [code for _, code in found[:2]] == ["UNSUPPORTED"] * 2
    assert found[2][0] == "u3"
    assert not trap.exists()
    directory = data_directory(tmp_path, **{"wav.scp": f"r1 cat x.flac | touch {trap} |\nr2 touch {trap}|\n"})
    with pytest.raises(UsageError, match=r"never run: .*name the audio file itself"):
        read(directory / "wav.scp")
    assert not trap.exists()


def test_broken_lines_are_error_rows(tmp_path):
    lines = "a r1 0\nb r1 x 1\nc r9 0 1\nd r2 0 1\ne r3 0 1\n"
    directory = data_directory(tmp_path, segments=lines, **{"wav.scp": "r1 wav/r1.wav\nr2 x.ark:12\nr3\n"})
    codes = [code for _, code in outcomes(directory / "wav.scp")]
    assert codes == ["BAD_ROW", "BAD_ROW", "MISSING", "UNSUPPORTED", "BAD_ROW"]


def test_the_files_of_kaldi_are_not_counted_as_left_out(tmp_path):
    left_out = json.loads(plan([str(data_directory(tmp_path))], 1).schema.metadata[b"sewd.left_out"])
    assert not left_out["files"]


def test_directories_below_an_input_are_each_read(tmp_path):
    data_directory(tmp_path / "egs/train")
    data_directory(tmp_path / "egs/dev")
    found = read(tmp_path / "egs")
    assert len(found) == 6
    assert sum(u.problem is not None for u in found) == 3  # the same ids twice
