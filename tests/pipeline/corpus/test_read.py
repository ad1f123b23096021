"""Reading parts in any layout: changes since planning, limits, sizes, duplicates."""

import os
from pathlib import Path

import pytest

from pipeline.corpus.read import read_part
from pipeline.errors import ErrorCode, InputChangedError
from pipeline.storage import objects
from tests.support import s3
from tests.support.corpora import parts_of
from tests.support.inputs import manifest, outcome, outcomes, parquet, read, tar, write

# One corpus in every layout.

KEYS = ["a", "d/b", "d/c.1", "ü/ö x"]


def directory(base: Path) -> Path:
    for key in KEYS:
        write(base / f"{key}.wav", key)
        write(base / f"{key}.txt", f"text of {key}")
    return base


CORPORA = {
    "directory": directory,
    "glob": lambda base: f"{directory(base)}/**/*.wav",
    "manifest": lambda base: manifest(
        directory(base) / "m.jsonl", *({"audio_filepath": f"{key}.wav", "text": f"text of {key}"} for key in KEYS)
    ),
    "manifest, absolute": lambda base: manifest(
        directory(base) / "m.jsonl",
        *({"audio_filepath": f"{base}/{key}.wav", "text": f"text of {key}"} for key in KEYS),
    ),
    "tar": lambda base: tar(
        base / "s.tar",
        *(m for key in KEYS for m in ((f"{key}.txt", f"text of {key}".encode()), (f"{key}.wav", key.encode()))),
    ),
    "parquet": lambda base: parquet(
        base / "t.parquet",
        [{"audio": {"bytes": key.encode(), "path": f"./{key}.wav"}, "text": f"text of {key}"} for key in KEYS],
    ),
    "parquet, paths": lambda base: parquet(
        directory(base) / "t.parquet", [{"audio": f"{key}.wav", "text": f"text of {key}"} for key in KEYS]
    ),
}


@pytest.mark.parametrize("kind", ["files", "tar", "parquet", "manifest"])
@pytest.mark.parametrize("change", ["rewritten", "shorter", "missing"])
def test_an_input_that_changed_after_planning_fails_the_part(tmp_path, kind, change):
    write(tmp_path / "d/a.wav", b"1234")
    path = {
        "files": tmp_path / "d/a.wav",
        "tar": tar(tmp_path / "s.tar", ("a.wav", b"A")),
        "parquet": parquet(tmp_path / "t.parquet", [{"audio": {"bytes": b"A", "path": "a.wav"}}]),
        "manifest": manifest(tmp_path / "m.jsonl", {"audio_filepath": "d/a.wav"}),
    }[kind]
    (part,) = parts_of(tmp_path / "d" if kind == "files" else path)
    data = path.read_bytes()
    path.unlink()
    if change != "missing":
        path.write_bytes(data.replace(b"a", b"b") if change == "rewritten" else data[:-3])
        os.utime(path, (1, 1))
    if kind == "files" and change == "missing":  # a missing file is bad data
        assert [outcome(u) for u in read_part(part)] == [("a", "MISSING")]
        return
    with pytest.raises(InputChangedError, match=str(path)):
        [outcome(u) for u in read_part(part)]


def test_the_limit_holds_across_all_layouts(tmp_path):
    for name in ("a/1.wav", "a/2.wav", "x.wav", "y.wav"):
        write(tmp_path / name, b"A")
    whole = tar(tmp_path / "whole.tar", ("a.wav", b"A"), ("b.wav", b"B"), ("c.wav", b"C"))
    inputs = (
        tmp_path / "a",
        tar(tmp_path / "b.tar", ("3.wav", b"A"), ("4.wav", b"A"), ("5.txt", b""), ("5.wav", b"A")),
        write(tmp_path / "broken.tar", whole.read_bytes()[: 1024 + 5]),
        parquet(tmp_path / "c.parquet", [{"audio": {"bytes": b"A", "path": f"p{i}"}} for i in range(4)], row_group=2),
        manifest(tmp_path / "d.jsonl", {"audio_filepath": "x.wav"}, {"audio_filepath": "y.wav"}),
    )
    everything = outcomes(*inputs)
    assert len(everything) == 13
    for limit in range(1, 15):
        assert outcomes(*inputs, limit=limit) == everything[:limit]


def test_the_sizes_of_utterances_sum_to_the_planned_bytes(tmp_path):
    write(tmp_path / "1.wav", b"A" * 10)
    rows = [{"audio_filepath": "1.wav", "id": i, "duration": d} for i, d in enumerate((1.3, 2.7, 0.001))]
    for path in (
        tmp_path / "1.wav",
        manifest(tmp_path / "m.jsonl", *rows),
        parquet(tmp_path / "p.parquet", [{"audio": "1.wav", "id": str(i)} for i in range(7)]),
    ):
        (part,) = parts_of(path)
        assert sum(u.size for u in read_part(part)) == part.bytes
    (part,) = parts_of(tar(tmp_path / "s.tar", ("a.wav", b"A"), ("b.wav", b"B")))
    assert 0 < sum(u.size for u in read_part(part)) <= part.bytes


def test_duplicates_across_parts_and_inputs_are_error_rows_that_name_both_places(tmp_path):
    write(tmp_path / "a/x.wav", b"1")
    write(tmp_path / "b/x.wav", b"2")
    rows = manifest(tmp_path / "b/m.jsonl", {"audio_filepath": "y.wav", "id": "z"}, {"audio_filepath": "x.wav"})
    first, second, _, third = read(tmp_path / "a", tmp_path / "b", rows)
    assert outcome(first) == ("x", b"1")
    assert second.problem.code == ErrorCode.DUPLICATE_ID
    assert second.problem.message == f"x names both {tmp_path}/a/x.wav and {tmp_path}/b/x.wav"
    offset = rows.read_text().index("\n") + 1
    assert third.problem.message == f"x names both {tmp_path}/a/x.wav and {rows}, row at byte {offset}"


@pytest.mark.parametrize("layout", CORPORA)
def test_the_same_audio_has_the_same_id_and_reference_in_every_layout(tmp_path, layout):
    found = read(CORPORA[layout](tmp_path))
    assert sorted((*outcome(u), u.meta.text) for u in found) == sorted(
        (key, key.encode(), f"text of {key}") for key in KEYS
    )


@pytest.mark.parametrize("layout", ["directory", "manifest", "tar", "parquet"])
def test_every_layout_is_read_from_object_storage(tmp_path, layout):
    corpus = Path(CORPORA[layout](tmp_path))
    with s3.moto_server():
        base = s3.make_bucket("bucket")
        for path in tmp_path.rglob("*"):
            if path.is_file():
                objects.put(f"{base}/c/{path.relative_to(tmp_path)}", path.read_bytes())
        uri = f"{base}/c" if corpus == tmp_path else f"{base}/c/{corpus.name}"
        assert sorted(outcomes(uri)) == sorted((key, key.encode()) for key in KEYS)
        assert all(u.uri.startswith(f"{base}/c/") for u in read(uri))
