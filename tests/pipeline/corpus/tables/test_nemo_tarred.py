"""NeMo's tarred data sets, as its script convert_to_tarred_audio_dataset.py writes them."""

from __future__ import annotations

import gzip
import json

import pytest

from pipeline.corpus.plan import plan
from pipeline.errors import UsageError
from tests.support.corpora import parts_of
from tests.support.inputs import outcomes, read, write
from tests.support.shards import ODD_ROWS, json_lines, tar_bytes


def row(name, shard, **values):
    return {"audio_filepath": name, "duration": 1.0, "text": f"text of {name}", "shard_id": shard, **values}


ROWS = [row("data_a.wav", 0, speaker="ann", lang="en"), row("data_b.wav", 0), row("data_c.wav", 1)]


def write_shards(folder, **shards):
    for number, members in shards.items():
        write(folder / f"audio{number}.tar", tar_bytes((name, data) for name, data in members.items()))


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "tarred"
    write_shards(folder, _0={"data_a.wav": b"A", "data_b.wav": b"B"}, _1={"data_c.wav": b"C"})
    write(folder / "tarred_audio_manifest.json", json_lines(ROWS))
    for shard in (0, 1):
        rows = [one for one in ROWS if one["shard_id"] == shard]
        write(folder / f"sharded_manifests/manifest_{shard}.json", json_lines(rows))
    write(folder / "metadata.yaml", "version: 0\n")
    return folder


@pytest.mark.parametrize(
    "named", ["", "tarred_audio_manifest.json", "sharded_manifests/manifest_*.json", "sharded_manifests/*.json"]
)
def test_rows_are_utterances_with_the_audio_of_their_shard(corpus, named):
    found = read(f"{corpus}/{named}")
    assert [(u.utt_id, u.open(), u.meta.text) for u in found] == [
        (one["audio_filepath"].removesuffix(".wav"), data, one["text"])
        for one, data in zip(ROWS, (b"A", b"B", b"C"), strict=True)
    ]
    assert (found[0].meta.speaker, found[0].meta.span) == ("ann", None)
    assert json.loads(found[0].meta.tags) == {"lang": "en"}


def test_a_directory_counts_only_what_is_not_read(corpus):
    assert json.loads(plan([str(corpus)], 1).schema.metadata[b"sewd.left_out"])["files"] == {"yaml": 1}
    assert [(part.kind, part.rows) for part in parts_of(corpus)] == [("tar_rows", 2), ("tar_rows", 1)]
    (corpus / "tarred_audio_manifest.json").unlink()
    assert [u.utt_id for u in read(corpus)] == ["data_a", "data_b", "data_c"]


def test_a_manifest_of_one_shard_reads_that_shard(corpus):
    assert outcomes(corpus / "sharded_manifests/manifest_1.json") == [("data_c", b"C")]
    data = (corpus / "sharded_manifests/manifest_0.json").read_bytes()
    write(corpus / "manifest_normalized_0.jsonl.gz", gzip.compress(data))
    assert outcomes(corpus / "manifest_normalized_0.jsonl.gz") == [("data_a", b"A"), ("data_b", b"B")]


def test_parts_of_one_member_are_its_rows_with_sub(tmp_path):
    write_shards(tmp_path, _0={"./x.wav": b"X", "y-sub1.wav": b"Y"})
    rows = [row("x.wav", 0, offset=0), row("x-sub1.wav", 0, offset=1.5), row("x-sub2.wav", 0, offset=3)]
    rows.append(row("y-sub1.wav", 0))  # a recording of that name, not a part
    write(tmp_path / "m.json", json_lines(rows))
    assert [(u.utt_id, u.open(), u.meta.span) for u in read(tmp_path / "m.json")] == [
        ("x", b"X", (0.0, 1.0)),
        ("x-sub1", b"X", (1.5, 1.0)),
        ("x-sub2", b"X", (3.0, 1.0)),
        ("y-sub1", b"Y", None),
    ]


def test_rows_in_another_order_than_the_members_are_read_in_that_of_the_shard(tmp_path):
    write_shards(tmp_path, _0={"a.wav": b"A", "b.wav": b"B", "c.wav": b"C"})
    rows = [row("c.wav", 0), row("a.wav", 0), row("c.wav", 0), row("b.wav", 0)]
    write(tmp_path / "m.json", json_lines(rows))
    assert outcomes(tmp_path / "m.json") == [("a", b"A"), ("b", b"B"), ("c", b"C"), ("c", "DUPLICATE_ID")]
    message = read(tmp_path / "m.json")[3].problem.message
    assert message == f"c names both {tmp_path}/m.json, row 1 and {tmp_path}/m.json, row 3"


def test_what_is_wrong_with_a_row_is_an_error_row_and_costs_no_other(tmp_path):
    write_shards(tmp_path, _0={"a.wav": b"A", "z.wav": b"Z", "q.*.*": b"Y", "q.wav": b"Q", "unknown.wav": b"U"})
    write(tmp_path / "outside.wav", b"O")
    rows = [
        row("a.wav", 0),
        b"not json",
        row("no.wav", 0),
        row("x.wav", 7),
        row("x.wav", "0"),
        row("x.wav", 1e99),
        row("x.wav", None),
        row("", 0),
        row(5, 0),
        {"shard_id": 0},
        row(f"{tmp_path}/outside.wav", 0),
        row("../outside.wav", 0),
        row("q.*", 0),
        row("q\0", 0),
        row("s3://bucket/x.wav", 0),
        row("b.wav", 0, duration="soon"),
        row("z.wav", 0, duration=1e300, offset=-5),
    ]
    write(tmp_path / "m.json", json_lines(rows))
    found = outcomes(tmp_path / "m.json")
    assert len(found) == len(rows)
    assert [data for _, data in found if isinstance(data, bytes)] == [b"A", b"Z"]
    codes = sorted(code for _, code in found if isinstance(code, str))
    assert codes == ["BAD_ROW"] * 9 + ["MISSING"] * 6
    assert len({key for key, _ in found}) == len(rows)


@pytest.mark.parametrize("odd", ODD_ROWS)
def test_an_odd_row_of_json_is_an_error_row(tmp_path, odd):
    write_shards(tmp_path, _0={"b.wav": b"B"})
    write(tmp_path / "m.json", json_lines([odd, row("b.wav", 0)]))
    assert outcomes(tmp_path / "m.json") == [(f"{tmp_path}/m.json[0]", "BAD_ROW"), ("b", b"B")]


def test_shards_that_are_all_missing_are_refused_in_a_line(corpus):
    for shard in corpus.glob("*.tar"):
        shard.unlink()
    with pytest.raises(UsageError, match=r"NeMo tarred data set, and there are no shards audio_0\.tar") as error:
        read(corpus / "tarred_audio_manifest.json")
    assert "\n" not in str(error.value)


def test_two_shards_of_one_number_are_refused(corpus):
    write(corpus / "audio_16k_1.tar", tar_bytes([("data_c.wav", b"other")]))
    with pytest.raises(UsageError, match="are both shard 1"):
        read(corpus / "tarred_audio_manifest.json")


def test_shards_beside_another_manifest_are_read_as_they_are(tmp_path):
    write_shards(tmp_path, _0={"a.wav": b"A"})
    write(tmp_path / "manifest_0.json", json_lines([{"version": 1}]))
    assert outcomes(tmp_path) == [("a", b"A")]


def test_a_compressed_shard_is_read(tmp_path):
    write(tmp_path / "audio_0.tar.gz", gzip.compress(tar_bytes([("a.wav", b"A"), ("b.wav", b"B")])))
    write(tmp_path / "m.json", json_lines([row("a.wav", 0), row("b.wav", 0)]))
    assert outcomes(tmp_path / "m.json") == [("a", b"A"), ("b", b"B")]


def test_a_column_channel_is_a_tag(tmp_path):
    write_shards(tmp_path, _0={"data_a.wav": b"A"})
    write(tmp_path / "tarred_audio_manifest.json", json_lines([row("data_a.wav", 0, channel="A")]))
    (found,) = read(tmp_path)
    assert (found.problem, found.channel, json.loads(found.meta.tags)) == (None, None, {"channel": "A"})


@pytest.mark.parametrize("named", ["*/audio_*.tar", "A/audio_*.tar", "A/audio_0.tar"])
def test_shards_that_are_named_without_their_manifest_are_read_as_they_are(tmp_path, named):
    for folder in ("A", "B"):
        write_shards(tmp_path / folder, _0={f"{folder}.wav": b"A"})
    write(tmp_path / "A" / "tarred_audio_manifest.json", json_lines([row("A.wav", 0)]))
    expected = ["A", "B"] if named.startswith("*") else ["A"]
    assert [found.utt_id.rpartition("/")[2] for found in read(f"{tmp_path}/{named}")] == expected
