"""Opening the audio of an utterance."""

import pytest

from pipeline.corpus import utterances
from pipeline.corpus.utterances import share
from pipeline.errors import AudioError
from tests.support.inputs import read, write


def test_a_large_object_is_opened_and_not_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(utterances, "WHOLE_OBJECT_BYTES", 3)
    write(tmp_path / "a.wav", b"1234")
    (found,) = read(tmp_path)
    with found.open() as file:
        assert file.read(2) == b"12"


@pytest.mark.parametrize(
    ("uri", "code"),
    [
        *((uri, "MISSING") for uri in ("hf://datasets/a b/c/x.wav", "hf://x", "hf://", "http:///x.wav", "https://")),
        *((f"{scheme}://x/y.wav", "BAD_ROW") for scheme in ("dir", "data", "zip", "tar", "ZIP", "simplecache")),
    ],
)
def test_a_uri_that_names_nothing_is_the_error_of_its_row(uri, code):
    with pytest.raises(AudioError) as error:
        utterances.find_object(uri)
    assert error.value.code == code


@pytest.mark.parametrize(("total", "count"), [(0, 3), (10, 3), (7, 7), (2, 5)])
def test_shares_are_nearly_equal_and_sum_to_the_total(total, count):
    shares = [share(total, index, count) for index in range(count)]
    assert sum(shares) == total
    assert max(shares) - min(shares) <= 1
