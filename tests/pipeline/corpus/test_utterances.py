"""Opening the audio of an utterance."""

import pytest

from pipeline.corpus import utterances
from pipeline.corpus.utterances import share
from tests.support.inputs import read, write


def test_a_large_object_is_opened_and_not_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(utterances, "WHOLE_OBJECT_BYTES", 3)
    write(tmp_path / "a.wav", b"1234")
    (found,) = read(tmp_path)
    with found.open() as file:
        assert file.read(2) == b"12"


@pytest.mark.parametrize(("total", "count"), [(0, 3), (10, 3), (7, 7), (2, 5)])
def test_shares_are_nearly_equal_and_sum_to_the_total(total, count):
    shares = [share(total, index, count) for index in range(count)]
    assert sum(shares) == total
    assert max(shares) - min(shares) <= 1
