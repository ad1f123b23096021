"""Parts: their ids, their size, and the table they are stored in."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus.parts import MAX_PART_ITEMS, PLAN, Item, Part, cut_to_parts
from pipeline.corpus.plan import plan
from tests.support.inputs import LARGE, write_files


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
    ],
    ids=["manifest", "tar", "parquet", "files"],
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
