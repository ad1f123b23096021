"""Reading an object forwards by ranged requests."""

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import StorageError
from pipeline.storage import forward, objects, retry
from pipeline.storage.forward import ForwardReader

URI = "memory://forward/object"
DATA = bytes(range(251)) * 400


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    fsspec.filesystem("memory").pipe_file("/forward/object", DATA)
    monkeypatch.setattr(forward, "FIRST_BYTES", 64)
    monkeypatch.setattr(forward, "BLOCK_BYTES", 1024)
    monkeypatch.setattr(forward, "SKIP_BYTES", 4096)


@pytest.fixture
def requests(monkeypatch) -> list[tuple[int, int]]:
    """The ranges that are fetched."""
    made = []

    def fetch(uri, start=None, end=None, version=None):
        made.append((start, end))
        return DATA[start:end]

    monkeypatch.setattr(objects, "fetch", fetch)
    return made


def read(file: ForwardReader, size: int) -> bytes:
    """Read `size` bytes, which may lie in several blocks."""
    data = b""
    while len(data) < size and (piece := file.read(size - len(data))):
        data += piece
    return data


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9000), st.integers(0, 3000)), max_size=12))
def test_what_is_read_is_what_is_there(steps):
    position = 0
    with ForwardReader(URI, len(DATA)) as file:
        for skipped, size in steps:
            position += skipped
            file.seek(position)
            assert read(file, size) == DATA[position : position + size]
            position += size


def test_what_is_skipped_is_not_fetched(requests):
    with ForwardReader(URI, len(DATA)) as file:
        for position in range(0, len(DATA), 10_000):
            file.seek(position)
            assert read(file, 50) == DATA[position : position + 50]
    assert requests == [(position, min(position + 64, len(DATA))) for position in range(0, len(DATA), 10_000)]


def test_what_is_read_with_small_gaps_is_fetched_once_in_growing_requests(requests):
    with ForwardReader(URI, len(DATA)) as file:
        for position in range(0, len(DATA), 60):
            file.seek(position)
            assert read(file, 50) == DATA[position : position + 50]
    starts, ends = zip(*sorted(requests), strict=True)
    assert starts == (0, *ends[:-1])
    assert ends[-1] == len(DATA)
    assert [end - start for start, end in sorted(requests)][:6] == [64, 128, 256, 512, 1024, 1024]


def test_it_does_not_go_back_further_than_the_last_block():
    with ForwardReader(URI, len(DATA)) as file:
        file.read(50)
        file.seek(0)
        assert file.read(4) == DATA[:4]
        file.seek(5000)
        file.read(1)
        file.seek(0)
        with pytest.raises(OSError, match="forwards"):
            file.read(1)


def test_storage_that_fails_is_a_storage_error(monkeypatch):
    monkeypatch.setattr(retry, "BACKOFF_S", 0)

    def fail(*_, **__):
        raise PermissionError("the key has expired")

    monkeypatch.setattr(fsspec.filesystem("memory").__class__, "cat_file", fail)
    with ForwardReader(URI, len(DATA)) as file, pytest.raises(StorageError, match="expired"):
        file.read(1)
