"""Opening the audio of an utterance."""

import pytest

from pipeline.corpus import utterances
from pipeline.corpus.utterances import ObjectCache, share
from pipeline.errors import AudioError
from tests.support.inputs import read, write


def test_a_large_object_is_opened_and_not_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(utterances, "WHOLE_OBJECT_BYTES", 3)
    write(tmp_path / "a.wav", b"1234")
    (found,) = read(tmp_path)
    with found.open() as file:
        assert file.read(2) == b"12"


def test_the_cache_keeps_the_last_object_only_and_no_failure(tmp_path):
    for name in "ab":
        write(tmp_path / name, name)
    cache = ObjectCache()
    assert cache.open(f"{tmp_path}/a") == b"a"
    write(tmp_path / "a", "changed")
    assert cache.open(f"{tmp_path}/a") == b"a"
    with pytest.raises(AudioError, match="no such object"):
        cache.open(f"{tmp_path}/none")
    assert cache.open(f"{tmp_path}/b") == b"b"
    assert cache.open(f"{tmp_path}/a") == b"changed"


@pytest.mark.parametrize(("total", "count"), [(0, 3), (10, 3), (7, 7), (2, 5)])
def test_shares_are_nearly_equal_and_sum_to_the_total(total, count):
    shares = [share(total, index, count) for index in range(count)]
    assert sum(shares) == total
    assert max(shares) - min(shares) <= 1
