"""Objects that changed since the run was planned: a recording is an error row, a container fails the part."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from pathlib import Path

import pytest

from pipeline.audio import decode
from pipeline.audio.decode import AudioSettings
from pipeline.corpus import utterances
from pipeline.corpus.layouts import tar as tar_layout
from pipeline.errors import InputChangedError
from pipeline.stages.rows import RowSettings, part_steps
from pipeline.stages.steps import START
from pipeline.storage import objects, uris
from tests.support import s3
from tests.support.corpora import parts_of, write_audio
from tests.support.inputs import manifest, parquet, tar

SETTINGS = RowSettings(audio=AudioSettings(sample_rate=16_000), min_samples=400)


@pytest.fixture(scope="module", params=["local", "rclone", "moto"])
def store(request, tmp_path_factory):
    """Where the corpus is: a directory, or a bucket; as a function that gives the base of a test."""
    with contextlib.ExitStack() as stack:
        if request.param == "local":
            yield str
            return
        server = s3.moto_server() if request.param == "moto" else s3.rclone_server(tmp_path_factory.mktemp("rclone"))
        stack.enter_context(server)
        bucket = s3.make_bucket("speech")
        yield lambda path: f"{bucket}/{path.name}"


@pytest.fixture
def corpus(store, tmp_path):
    """Write the same recordings in each layout; return where the layouts are, by name, and the recordings."""
    local = tmp_path / "made"
    audio = {name: write_audio(local / "d" / f"{name}.wav", 3, n).read_bytes() for n, name in enumerate("abc")}
    tar(local / "t.tar", *((f"{name}.wav", data) for name, data in audio.items()))
    parquet(local / "p.parquet", [{"audio": {"bytes": audio[n], "path": f"{n}.wav"}} for n in audio], row_group=1)
    parquet(local / "q.parquet", [{"audio": f"d/{name}.wav"} for name in audio])
    manifest(local / "m.jsonl", *({"audio_filepath": f"d/{name}.wav"} for name in audio))
    (local / "c.csv").write_text("path\n" + "".join(f"d/{name}.wav\n" for name in audio))
    base = store(tmp_path)
    for path in sorted(local.rglob("*.*")):
        objects.put(f"{base}/{path.relative_to(local)}", path.read_bytes())
    inputs = {"files": "d", "tar": "t.tar", "parquet": "p.parquet", "parquet, paths": "q.parquet"}
    inputs |= {"manifest": "m.jsonl", "table": "c.csv"}
    return {kind: f"{base}/{name}" for kind, name in inputs.items()}, f"{base}/d/b.wav", audio


def overwrite(uri, data):
    """Replace an object; a local file in place, since one that is renamed over leaves an open one as it was."""
    if "://" in uri:
        objects.put(uri, data)
    else:
        Path(uri).write_bytes(data)


def rows(part):
    return [step.row for step in part_steps(part, SETTINGS, START, {}) if step.row is not None]


def outcomes(part):
    return [(row.utt_id[-1], row.error and (row.error.code, "has changed" in row.error.message)) for row in rows(part)]


def test_a_file_that_was_replaced_after_planning_is_one_error_row(corpus):
    inputs, uri, audio = corpus
    (part,) = parts_of(inputs["files"])
    objects.put(uri, audio["c"])
    assert outcomes(part) == [("a", None), ("b", ("MISSING", True)), ("c", None)]


@pytest.mark.parametrize("kind", ["manifest", "table", "parquet, paths"])
def test_audio_that_a_row_names_is_of_one_version_also_where_it_is_replaced_while_it_is_read(
    corpus, kind, monkeypatch, tmp_path
):
    inputs, uri, audio = corpus
    (part,) = parts_of(inputs[kind])
    longer = write_audio(tmp_path / "longer.wav", 40, 5).read_bytes()
    objects.put(uri, longer)  # a row states no version: the one that is there is read
    assert outcomes(part) == [("a", None), ("b", None), ("c", None)]

    monkeypatch.setattr(utterances, "WHOLE_OBJECT_BYTES", 1000)
    if "://" in uri:
        monkeypatch.setattr(uris.filesystem(uri)[0], "default_block_size", 1000)
    found = {}
    for step in part_steps(part, replaced_while_read(uri, audio["a"], monkeypatch), START, {}):
        if step.row is not None:
            found.setdefault(step.row.utt_id.partition("#")[0][-1], []).append(step.row)
    assert {row.error for row in found["a"] + found["c"]} == {None}
    *before, last = found["b"]
    assert len(before) >= 1  # the segments before the change stay
    assert (last.error.code, "has changed" in last.error.message) == ("MISSING", True)


def replaced_while_read(uri, data, monkeypatch):
    """Settings that cut what is longer than 4 s, at least every second; the object is replaced while it is read."""
    read_segments = decode.read_segments

    def read(source, settings, **options):
        replaced = False
        for segment in read_segments(source, settings, **options):
            yield segment
            if segment.start_s > 5 and not replaced:  # of the only recording that is so long
                overwrite(uri, data)
                replaced = True

    monkeypatch.setattr("pipeline.stages.rows.read_segments", read)
    return dataclasses.replace(SETTINGS, audio=dataclasses.replace(SETTINGS.audio, max_segment_s=4.0))


@pytest.mark.parametrize("kind", ["tar", "parquet", "manifest"])
def test_a_container_that_was_replaced_after_planning_fails_the_part(corpus, kind):
    inputs, _, _ = corpus
    part = parts_of(inputs[kind])[0]
    data = objects.fetch(inputs[kind])
    objects.put(inputs[kind], data[: len(data) // 2] + b"x" + data[len(data) // 2 + 1 :])
    with pytest.raises(InputChangedError, match="changed since"):
        rows(part)


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_container_that_is_replaced_while_it_is_read_gives_no_row_of_the_other(corpus, kind, monkeypatch):
    uri = corpus[0][kind]
    (part,) = parts_of(uri)
    expected = rows(part)
    if "://" in uri:
        monkeypatch.setattr(uris.filesystem(uri)[0], "default_block_size", 1)
    monkeypatch.setattr(tar_layout, "open_tar", functools.partial(tar_layout.open_tar, buffer_bytes=512))
    found = []

    def read_and_replace():
        for step in part_steps(part, SETTINGS, START, {}):
            if step.row is not None:
                found.append(step.row)
                overwrite(uri, other_container(uri))

    with pytest.raises(InputChangedError, match="changed since"):
        read_and_replace()
    assert 1 <= len(found) < 3
    assert [row.samples.tolist() for row in found] == [row.samples.tolist() for row in expected[: len(found)]]


def other_container(uri):
    """A container of the same size with other bytes."""
    return bytes(255 - byte for byte in objects.fetch(uri))
