"""Glob patterns on local disks, two S3 servers, Google's and Azure's."""

from __future__ import annotations

import pytest

from pipeline.errors import StorageError
from pipeline.storage import globs, objects


def names(objects, base):
    return [item.uri.removeprefix(f"{base}/") for item in objects]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.wav", ["0.wav"]),
        ("?.wav", ["0.wav"]),
        ("[0-9].wav", ["0.wav"]),
        ("*", ["0.wav", "a/1.wav", "a/b/2.wav", "a/b/3.txt", "c/b/4.wav"]),
        ("a*", ["a/1.wav", "a/b/2.wav", "a/b/3.txt"]),
        ("*/b", ["a/b/2.wav", "a/b/3.txt", "c/b/4.wav"]),
        ("*/b/*.wav", ["a/b/2.wav", "c/b/4.wav"]),
        ("**/*.wav", ["0.wav", "a/1.wav", "a/b/2.wav", "c/b/4.wav"]),
        ("a/**", ["a/1.wav", "a/b/2.wav", "a/b/3.txt"]),
        ("**/b", ["a/b/2.wav", "a/b/3.txt", "c/b/4.wav"]),
        ("**/b/*.txt", ["a/b/3.txt"]),
        ("*.mp3", []),
        ("nowhere/*.wav", []),
        ("nowhere/**/*.wav", []),
    ],
)
def test_a_pattern_matches_objects_and_everything_below_matching_directories(base, pattern, expected):
    for name in ("0.wav", "a/1.wav", "a/b/2.wav", "a/b/3.txt", "c/b/4.wav"):
        objects.put(f"{base}/{name}", b"x")
    assert names(globs.expand_glob(f"{base}/{pattern}").matched, base) == expected


def test_the_other_objects_of_listed_directories_are_returned_apart(base):
    for name in ("0.txt", "a/1.wav", "a/1.txt", "b/2.txt", "b/c/3.txt", "d.x/4.txt"):
        objects.put(f"{base}/{name}", b"x")
    matched, beside = globs.expand_glob(f"{base}/[ab]/*.wav")
    assert (names(matched, base), names(beside, base)) == (["a/1.wav"], ["a/1.txt", "b/2.txt"])


def test_a_missing_directory_has_no_matches(base):
    assert globs.expand_glob(f"{base}/none/*.wav") == ([], [])


def test_a_directory_that_may_not_be_listed_is_a_storage_error(tmp_path, waits, monkeypatch):
    objects.put(f"{tmp_path}/open/a.wav", b"x")
    objects.put(f"{tmp_path}/shut/b.wav", b"x")

    def refuse(fs, path):
        if path.endswith("shut"):
            raise PermissionError(13, "Permission denied")
        return list_children(fs, path)

    list_children = globs.list_children
    monkeypatch.setattr(globs, "list_children", refuse)
    with pytest.raises(StorageError, match="PermissionError"):
        globs.expand_glob(f"{tmp_path}/*/*.wav")
