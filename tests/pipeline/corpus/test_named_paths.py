"""What manifests, tables and Parquet files may name, by the store that they are in; what they may not is never read."""

import gzip
import io
import json
from http.server import BaseHTTPRequestHandler

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.corpus.named_paths import check_named
from pipeline.corpus.plan import plan
from pipeline.corpus.read import read_part
from pipeline.errors import AudioError, ErrorCode
from pipeline.storage import objects
from tests.support import s3
from tests.support.corpora import LARGE, parts_of
from tests.support.inputs import outcome, outcomes, read, write

ALLOWED = [  # the manifest, and what it names
    ("/data/m.jsonl", "/data/a.wav"),
    ("/data/m.jsonl", "/mnt/other/a.wav"),
    ("/data/m.jsonl", "/data/../other/a.wav"),
    ("/data/m.jsonl", "s3://bucket/a.wav"),
    ("/data/m.jsonl", "http://127.0.0.1:9/a.wav"),
    ("/data/m.jsonl", "https://no-such-host.invalid/a.wav"),  # opening it says so
    ("s3://bucket/lists/m.jsonl", "s3://bucket/audio/a.wav"),
    ("s3://bucket/m.jsonl", "s3a://bucket/a.wav"),
    ("gs://bucket/m.jsonl", "gcs://bucket/a.wav"),
    ("az://audio/m.jsonl", "abfs://audio/a.wav"),
    ("abfs://audio@mine.dfs.core.windows.net/m.jsonl", "abfss://audio@mine.dfs.core.windows.net/a.wav"),
    ("https://example.org/lists/m.jsonl", "http://EXAMPLE.org/a.wav"),
    ("hf://datasets/owner/name/m.jsonl", "hf://datasets/owner/name@main/a.wav"),
    ("memory://m.jsonl", "memory://m.jsonl"),
]
REFUSED = [
    ("s3://bucket/m.jsonl", "/etc/passwd"),
    ("s3://bucket/m.jsonl", "local:///etc/passwd"),
    ("s3://bucket/m.jsonl", "FILE:///etc/passwd"),
    ("s3://bucket/m.jsonl", "s3://other/a.wav"),
    ("s3://bucket/m.jsonl", "s3://bucket.other/a.wav"),
    ("s3://bucket/m.jsonl", "gs://bucket/a.wav"),
    ("s3://bucket/m.jsonl", "http://169.254.169.254/latest/meta-data/"),
    ("s3://bucket/m.jsonl", "s3://bucket/a/../../other/a.wav"),
    ("s3://bucket/m.jsonl", "simplecache::s3://bucket/a.wav"),
    ("gs://bucket/m.jsonl", "s3://bucket/a.wav"),
    ("abfs://audio@mine.dfs.core.windows.net/m.jsonl", "abfs://audio@other.dfs.core.windows.net/a.wav"),
    ("https://example.org/m.jsonl", "https://example.org:8080/a.wav"),
    ("https://example.org/m.jsonl", "https://example.org@evil.example/a.wav"),
    ("hf://datasets/owner/name/m.jsonl", "hf://datasets/owner/other/a.wav"),
    ("hf://datasets/owner/name/m.jsonl", "hf://datasets/owner/name/../other/a.wav"),
    ("/data/m.jsonl", "http://169.254.169.254/latest/meta-data/"),
    ("/data/m.jsonl", "https://2852039166/"),  # the same address
    ("/data/m.jsonl", "HTTP://0xa9fea9fe:80/"),
    ("/data/m.jsonl", "http://user@169.254.169.254:80/"),
    ("/data/m.jsonl", "http://[::ffff:169.254.169.254]/"),
    ("/data/m.jsonl", "http://[fe80::1]/"),
    ("/data/m.jsonl", "http://[fd00:ec2::254]/"),
]


@pytest.mark.parametrize(("source", "uri"), ALLOWED)
def test_a_manifest_may_name_what_is_in_its_store_and_a_local_one_anything(source, uri):
    check_named(uri, source)


@pytest.mark.parametrize(("source", "uri"), REFUSED)
def test_a_manifest_may_not_leave_its_store_and_none_leads_to_metadata(source, uri):
    with pytest.raises(AudioError, match="--allow-any-path") as raised:
        check_named(uri, source)
    assert raised.value.code is ErrorCode.BAD_ROW
    assert uri in raised.value.message


def test_the_account_of_azure_may_be_that_of_the_environment(monkeypatch):
    source, named = "az://audio/m.jsonl", "abfs://audio@mine.dfs.core.windows.net/a.wav"
    with pytest.raises(AudioError):
        check_named(named, source)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "mine")
    check_named(named, source)


# ---- Layouts, on a store


class _Web(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(self.path)
        self.send_response(200)
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def bucket():
    with s3.moto_server():
        s3.make_bucket("other")
        yield s3.make_bucket("bucket")


def lines(key, paths):
    return "".join(json.dumps({key: path, "id": f"u{i}"}) + "\n" for i, path in enumerate(paths)).encode()


def parquet(paths):
    buffer = io.BytesIO()
    rows = [{"bytes": None, "path": path} for path in paths]
    pq.write_table(pa.table({"audio": rows, "id": [f"u{i}" for i in range(len(paths))]}), buffer)
    return buffer.getvalue()


def cuts(paths):
    source = [[{"type": "url" if "http" in path else "file", "channels": [0], "source": path}] for path in paths]
    recordings = [{"id": f"u{i}", "sources": s, "sampling_rate": 16_000, "duration": 1.0} for i, s in enumerate(source)]
    return "".join(json.dumps(row) + "\n" for row in recordings).encode()


LAYOUTS = {
    "m.jsonl": lambda paths: lines("audio_filepath", paths),
    "nemo.jsonl": lambda paths: lines("audio_filepath", paths).replace(b"{", b'{"shard_id": 0, '),
    "m.jsonl.gz": lambda paths: gzip.compress(lines("path", paths)),
    "t.csv": lambda paths: ("path,id\n" + "".join(f"{path},u{i}\n" for i, path in enumerate(paths))).encode(),
    "t.tsv": lambda paths: ("path\tid\n" + "".join(f"{path}\tu{i}\n" for i, path in enumerate(paths))).encode(),
    "kaldi/wav.scp": lambda paths: "".join(f"u{i} {path}\n" for i, path in enumerate(paths)).encode(),
    "metadata.jsonl": lambda paths: lines("file_name", paths),
    "recordings.jsonl": cuts,
    "t.parquet": parquet,
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_a_manifest_in_a_bucket_names_outside_it_is_a_row_and_never_read(name, bucket, tmp_path):
    secret = write(tmp_path / "secret.wav", b"secret")
    objects.put(f"{bucket}/a.wav", b"RIFF-a")
    objects.put("s3://other/b.wav", b"RIFF-b")
    with s3.web_server(_Web) as web:
        address = f"http://127.0.0.1:{web.server_port}/a.wav"
        above = "../" * (3 + name.count("/")) + "other/b.wav"
        named = [f"{bucket}/a.wav", str(secret), f"file://{secret}", "s3://other/b.wav", above, address]
        objects.put(f"{bucket}/deep/er/{name}", LAYOUTS[name](named))
        found = {u.utt_id: u for u in read(f"{bucket}/deep/er/{name}")}

        assert [outcome(found[f"u{i}"])[1] for i in range(len(named))] == [b"RIFF-a", *["BAD_ROW"] * 5]
        assert all("--allow-any-path" in found[f"u{i}"].problem.message for i in range(1, len(named)))
        assert web.requests == []

        parts = parts_of(f"{bucket}/deep/er/{name}")
        allowed = dict(outcome(u) for part in parts for u in read_part(part, allow_any_path=True))
        assert [allowed[f"u{i}"] for i in range(5)] == [b"RIFF-a", b"secret", b"secret", b"RIFF-b", b"RIFF-b"]


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_local_manifest_names_what_it_likes(name, bucket, tmp_path):
    outside = write(tmp_path / "outside/a.wav", b"RIFF-o")
    (tmp_path / "link.wav").symlink_to(outside)
    objects.put(f"{bucket}/a.wav", b"RIFF-a")
    named = [str(outside), "../outside/a.wav", str(tmp_path / "link.wav"), f"{bucket}/a.wav", "http://169.254.169.254/"]
    path = write(tmp_path / "lists" / name, LAYOUTS[name](named))
    base = path.parents[1] if name.startswith("kaldi") else path.parent
    if name.startswith("kaldi"):
        write(base.parent / "outside/a.wav", b"RIFF-o")

    assert [found for _, found in sorted(outcomes(path))] == [b"RIFF-o"] * 3 + [b"RIFF-a", "BAD_ROW"]


def test_chained_uris_are_rows(tmp_path):
    path = write(tmp_path / "m.jsonl", lines("audio_filepath", ["simplecache::s3://bucket/a.wav", "zip://a::b.zip"]))
    assert [found for _, found in outcomes(path)] == ["BAD_ROW", "BAD_ROW"]


def test_planning_opens_nothing_that_a_manifest_in_a_bucket_names_elsewhere(bucket):
    with s3.web_server(_Web) as web:
        address = f"http://127.0.0.1:{web.server_port}/a.wav"
        for name, write_rows in LAYOUTS.items():
            objects.put(f"{bucket}/plan/{name}", write_rows([address, address + "?2"]))
            plan([f"{bucket}/plan/{name}"], LARGE)
        assert web.requests == []
