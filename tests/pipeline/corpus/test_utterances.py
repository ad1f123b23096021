"""Opening the audio of an utterance."""

from pipeline.corpus import utterances
from tests.support.inputs import read, write


def test_a_large_object_is_opened_and_not_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(utterances, "WHOLE_OBJECT_BYTES", 3)
    write(tmp_path / "a.wav", b"1234")
    (found,) = read(tmp_path)
    with found.open() as file:
        assert file.read(2) == b"12"
