"""The registry of input layouts."""

import pytest

from pipeline.corpus.registry import LAYOUTS, layout_of

URIS = [
    ("a.wav", "files"),
    ("s3://bucket/d.x/A.FLAC", "files"),
    ("a.tar", "tar"),
    ("a.TAR.GZ", "tar"),
    ("a.tgz", "tar"),
    ("a.parquet", "parquet"),
    ("a.jsonl", "manifest"),
    ("a.json", "manifest"),
    ("a.txt", None),
    ("a.tar/b", None),
    ("wav", None),
]


@pytest.mark.parametrize(("uri", "kind"), URIS)
def test_the_layout_of_an_object_is_found_by_its_uri(uri, kind):
    layout = layout_of(uri)
    assert (layout.kind if layout else None) == kind


@pytest.mark.parametrize("uri", [uri for uri, _ in URIS])
def test_at_most_one_layout_claims_an_object(uri):
    assert sum(layout.claims(uri) for layout in LAYOUTS.values()) <= 1


def test_the_stored_names_of_the_layouts_are_kept():
    assert set(LAYOUTS) == {"files", "manifest", "table", "tar", "parquet", "tar_rows"}
