"""The same utterances in every layout and on every store: the same ids, references and audio."""

import pytest

from pipeline.storage import objects, uris
from tests.support import hub, s3
from tests.support.corpora import parts_of
from tests.support.inputs import read
from tests.support.layouts import Said, inputs_of, objects_of, word

UTTERANCES = {
    "u/a": Said("hello world", "ann", b"RIFF-a"),
    "u/b": Said('she said "no", twice', "bob", b"RIFF-b"),
    "caf\u00e9": Said("", "ann", b"RIFF-c"),
    "with space": Said("tab and\u2028line", None, b"RIFF-d"),
}
OBJECTS = objects_of(UTTERANCES)
INPUTS = inputs_of(OBJECTS)


@pytest.fixture(scope="module", params=["local", "rclone", "moto", "hub"])
def corpus(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    server = {"rclone": lambda: s3.rclone_server(folder), "moto": s3.moto_server}.get(request.param)
    if request.param == "hub":
        _filled(str(folder))
        with hub.hub_server(folder) as base:
            yield base
    elif server is None:
        yield _filled(str(folder))
    else:
        with server():
            yield _filled(s3.make_bucket("corpus"))


def _filled(base):
    for name, data in OBJECTS.items():
        objects.put(uris.join(base, name), data)
    return base


@pytest.mark.parametrize("name", INPUTS)
def test_every_layout_has_the_same_utterances(corpus, name):
    found = {u.utt_id: (u.meta.text, u.meta.speaker, u.open()) for u in read(uris.join(corpus, name))}
    expected = {word(utt_id) if name == "kaldi" else utt_id: row[:3] for utt_id, row in UTTERANCES.items()}
    assert found == expected
    assert sum(part.rows or 0 for part in parts_of(uris.join(corpus, name), limit=3)) == 3
