"""Parts: their ids, their size, and the table they are stored in."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus import parts as parts_module
from pipeline.corpus.parts import (
    MAX_PART_ITEMS,
    PLAN,
    Duplicate,
    Item,
    Part,
    cut_to_parts,
    manifest_content,
    plan_table,
)
from pipeline.corpus.plan import plan
from tests.support.corpora import LARGE
from tests.support.inputs import write_files


@pytest.mark.parametrize(
    ("part", "part_id"),
    [
        (Part("manifest", 10, "s3://b/m.jsonl", start=0, end=99, content="abc"), "2772c9a26ddb3a0671b0"),
        (Part("tar", 10, "/c/a.tar", "a", "10-5"), "4866ee0e662b88fdb4cf"),
        (Part("parquet", 10, "/c/a.parquet", "a", "10-5", start=1, end=3, limit=7), "e4899e99f6f13b168557"),
        (
            Part(
                "files",
                10,
                items=(
                    Item("a", "/c/a.wav", 10, "10-1", None),
                    Item("b", "/c/b.wav", 3, "3-1", "/c/b.txt"),
                ),
            ),
            "e5b961fa16ba9d5e3c74",
        ),
        (Part("parquet", 100, "s3://bucket/t.parquet", "t", "100-abc"), "269018d00f26a00144e6"),
        (Part("tar", 100, "s3://bucket/s.tar", "s", "100-abc", rows=3, limit=3), "40bb49f6126a5abb9282"),
        (
            Part(
                "files",
                30,
                items=(
                    Item("a", "s3://bucket/c/a.wav", 10, "10-abc", None),
                    Item("d/ü x", "s3://bucket/c/d/ü x.wav", 20, "20-def", "s3://bucket/c/d/ü x.txt"),
                ),
            ),
            "6f0c03dc55f290186e00",
        ),
    ],
    ids=["manifest", "tar", "parquet", "files", "unread parquet", "limited tar", "non-ASCII files"],
)
def test_ids_of_parts_are_those_of_version_0_1_0(part, part_id):
    """Stored plans are resumed by these ids."""
    assert part.part_id == part_id


@settings(deadline=None)
@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 100))
def test_parts_cover_their_items_and_are_closed_at_their_size(sizes, part_bytes):
    groups = list(cut_to_parts(enumerate(sizes), lambda item: item[1], part_bytes))
    assert [index for group in groups for index, _ in group] == list(range(len(sizes)))
    for group in groups:
        assert sum(size for _, size in group[:-1]) < part_bytes


def test_a_part_has_a_maximum_of_items():
    sizes = [0] * (MAX_PART_ITEMS + 1)
    assert [len(group) for group in cut_to_parts(sizes, int, LARGE)] == [MAX_PART_ITEMS, 1]


def test_a_plan_of_one_part_has_the_schema(tmp_path):
    assert plan([str(write_files(tmp_path, "a.wav"))], 1).schema.equals(PLAN, check_metadata=True)


def test_the_id_of_a_part_of_a_manifest_is_that_of_its_rows():
    rows = [b'{"audio_filepath": "a.wav"}\n', b' {"audio_filepath": "b.wav"} \r\n']
    part = Part("manifest", 1, "s3://bucket/m.jsonl", start=5, end=63, rows=2, content=manifest_content(rows))
    assert part.part_id == "386652723461c5da5f79"  # as in version 0.1.0


def test_parts_read_back_from_the_plan_are_those_that_were_planned():
    planned = [
        Part("tar", 10, "/c/a.tar", "a", "10-5", rows=3, limit=3),
        Part("manifest", 10, "/c/m.jsonl", start=5, end=99, rows=2, content="abc", duplicates=(Duplicate(1, "/c/x"),)),
        Part("files", 13, items=(Item("a", "/c/a.wav", 10, "10-1", None), Item("b", "/c/b.wav", 3, "3-1", "/c/b.txt"))),
    ]
    table = plan_table(planned)
    assert table["ordinal"].to_pylist() == [0, 1, 2]
    assert table["uri"].to_pylist() == ["/c/a.tar", "/c/m.jsonl", None]
    assert [Part.from_row(row) for row in table.to_pylist()] == planned


def test_a_plan_in_several_batches_is_numbered_through(monkeypatch):
    monkeypatch.setattr(parts_module, "_TABLE_BATCH_ITEMS", 3)
    planned = [Part("tar", 1, f"/c/{index}.tar", str(index)) for index in range(10)]
    table = plan_table(planned)
    assert table["ordinal"].to_pylist() == list(range(10))
    assert [Part.from_row(row) for row in table.to_pylist()] == planned


def test_a_part_without_its_limit_has_the_id_of_the_unlimited_part():
    unlimited, limited = (Part("tar", 10, "/c/a.tar", "a", "10-5", limit=limit) for limit in (None, 3))
    assert limited.part_id != unlimited.part_id
    assert limited.unlimited_id == unlimited.unlimited_id == unlimited.part_id
