"""Data sets on the Hub: listed, looked up and read as they are now."""

from __future__ import annotations

import pytest

from pipeline.errors import InputChangedError, StorageError, UsageError
from pipeline.storage import globs, objects, retry, uris
from tests.support import hub
from tests.support.corpora import parts_of
from tests.support.inputs import outcomes, parquet_of_bytes, read, tar_of, write, write_files


@pytest.fixture
def base(tmp_path):
    write_files(tmp_path, "data/a.wav", "data/b c.wav", "data/deep/\u00e9.wav", "README.md")
    write(tmp_path / "data/a.txt", "said")
    with hub.hub_server(tmp_path) as uri:
        yield uri


def test_files_are_listed_and_read(base):
    assert [(u.utt_id, u.open(), u.meta.text) for u in read(f"{base}/data")] == [
        ("a", b"data/a.wav", "said"),
        ("b c", b"data/b c.w", None),
        ("deep/\u00e9", "data/deep/\u00e9".encode()[:10], None),
    ]
    assert read(base)[0].uri == f"{base}/data/a.wav"
    assert [item.uri for item in globs.expand_glob(f"{base}/data/*.wav").matched] == [
        f"{base}/data/a.wav",
        f"{base}/data/b c.wav",
    ]
    assert [u.uri for u in read(f"{base}@main/data/a.wav")] == [f"{base}@main/data/a.wav"]


def test_ranges_are_read_in_one_request_each(base):
    requests = hub.hub_server.current.requests
    requests.clear()
    assert objects.fetch(f"{base}/data/a.wav", 5, 8) == b"a.w"
    assert sum("resolve" in request for request in requests) == 1
    with objects.open_read(f"{base}/data/a.wav") as file:
        file.seek(5)
        assert file.read(3) == b"a.w"


def test_what_changes_is_seen_at_once(base, tmp_path):
    before = objects.stat(f"{base}/data/a.wav")
    (part,) = parts_of(f"{base}/data/a.wav")
    write(tmp_path / "data/a.wav", b"other data")
    assert objects.stat(before.uri).version != before.version
    assert objects.fetch(before.uri) == b"other data"
    from pipeline.corpus.read import read_part

    (utterance,) = read_part(part)
    with pytest.raises(InputChangedError):
        utterance.open()
    write(tmp_path / "data/new.wav", b"N")
    assert objects.exists(f"{base}/data/new.wav")
    assert len(objects.list_objects(f"{base}/data")) == 5
    assert not objects.exists(f"{base}/data/none.wav")


def test_shards_and_parquet_files_are_read(base, tmp_path):
    (tmp_path / "s").mkdir()
    tar_of(tmp_path / "s/s.tar", "x.wav")
    parquet_of_bytes(tmp_path / "p/t.parquet", 2)
    assert outcomes(f"{base}/s", f"{base}/p") == [("x", b"abc"), ("t/0", b"x" * 10), ("t/1", b"x" * 10)]


@pytest.mark.parametrize(
    "uri", ["hf://datasets/owner/other/a", "hf://datasets/owner/corpus@v9/a", "hf://datasets/owner/corpus/none"]
)
def test_what_is_not_there_is_refused_with_what_may_be_wrong(base, uri):
    with pytest.raises(UsageError, match=r"no such file or directory: hf://.*HF_TOKEN"):
        parts_of(uri)


def test_the_token_of_the_environment_is_sent(tmp_path, monkeypatch):
    write_files(tmp_path, "a.wav")
    with hub.hub_server(tmp_path, token="hf_secret") as base:
        assert len(read(base)) == 1
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        uris.filesystem(base)[0].invalidate_cache()
        with pytest.raises(UsageError, match="needs HF_TOKEN"):
            read(base)


def test_failures_are_retried_and_then_reported_in_a_line(base, monkeypatch):
    waits = []
    monkeypatch.setattr(retry, "_sleep", waits.append)
    hub.hub_server.current.failures = 3
    assert objects.fetch(f"{base}/data/a.wav") == b"data/a.wav"
    assert len(waits) == 3
    hub.hub_server.current.failures = 1000
    with pytest.raises(StorageError, match="503") as error:
        objects.fetch(f"{base}/data/a.wav")
    assert "\n" not in str(error.value)
