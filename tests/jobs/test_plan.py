"""`sewd plan`: what it prints, and its exit codes."""

from __future__ import annotations

import json

from tests.support.command import sewd_in_process
from tests.support.inputs import manifest, tar_of, write_files


def test_what_is_recognised_is_printed_by_input(tmp_path):
    write_files(tmp_path / "d", "a.wav", "a.txt", "b.wav", "x.pdf")
    tar_of(tmp_path / "s.tar", "c.wav")
    done = sewd_in_process("plan", tmp_path / "d", tmp_path / "s.tar")
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        f"{tmp_path}/d",
        "  audio: 2 objects in 1 parts, 0.0 MiB",
        "    utterances 2, with a reference 1, with a label only 0",
        "    audio: wav 2 (0.0 MiB)",
        f"{tmp_path}/s.tar",
        "  webdataset: 1 objects in 1 parts, 0.0 MiB",
        "    utterances ?, with a reference ?, with a label only ?",
        "  all: 3 objects in 2 parts, 0.0 MiB",
        "    utterances ?, with a reference ?, with a label only ?",
        "    audio: wav 2 (0.0 MiB)",
    ]
    assert done.stderr.splitlines() == ["warning: left out: 1 file that is neither audio nor text of it: .pdf 1"]


def test_json_has_the_same_numbers_and_rows_with_errors_give_code_3(tmp_path):
    path = manifest(tmp_path / "m.jsonl", {"clip": "a.wav", "text": "x"}, {"clip": "a.wav"}, {"clip": 5})
    done = sewd_in_process("plan", path, "--json", "--column", "audio=clip", "--input-format", "manifest")
    (of_input,) = json.loads(done.stdout)["inputs"]
    (found,) = of_input["found"]
    assert (of_input["uri"], of_input["problem"]) == (str(path), None)
    assert (found["format"], found["utterances"], found["references"]) == ("manifest", 3, 1)
    assert (found["suffixes"], found["errors"]) == ({"wav": 2, "": 1}, {"DUPLICATE_ID": 1})
    assert done.returncode == 3


def test_an_input_that_is_refused_gives_code_2_and_the_others_are_printed(tmp_path):
    write_files(tmp_path, "a.wav", "b.zip")
    done = sewd_in_process("plan", tmp_path / "b.zip", tmp_path / "a.wav")
    assert done.returncode == 2
    assert "audio: 1 objects" in done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("sewd: ")
    assert "unpack it" in line
