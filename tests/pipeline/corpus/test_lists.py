"""INPUTs in NeMo's notation of lists."""

import pytest

from pipeline.config import make_config
from pipeline.corpus.lists import expanded
from pipeline.errors import UsageError


@pytest.mark.parametrize(
    ("uri", "names"),
    [
        ("d/audio__OP_0..2_CL_.tar", ["d/audio_0.tar", "d/audio_1.tar", "d/audio_2.tar"]),
        ("s3://b/m_{8..10}.json", ["s3://b/m_8.json", "s3://b/m_9.json", "s3://b/m_10.json"]),
        ("m_{08..10}.json", ["m_08.json", "m_09.json", "m_10.json"]),
        ("b{1..2}/m_{0..1}.json", ["b1/m_0.json", "b1/m_1.json", "b2/m_0.json", "b2/m_1.json"]),
        ("a.json,b.jsonl", ["a.json", "b.jsonl"]),
        ("[[a.json],[b.json]]", ["a.json", "b.json"]),
        ("[a.json, b.json]", ["a.json", "b.json"]),
        ("[[m_{0..1}.json,c.json]]", ["m_0.json", "m_1.json", "c.json"]),
        ("one,two.wav", ["one,two.wav"]),
        ("a[0-9].json", ["a[0-9].json"]),
        ("[ab]*.wav", ["[ab]*.wav"]),
        ("plain.json", ["plain.json"]),
    ],
)
def test_lists_of_nemo_are_their_names(uri, names):
    assert expanded(uri) == names


def test_a_file_of_that_name_is_itself(tmp_path):
    path = tmp_path / "a.json,b.json"
    path.write_text("{}")
    assert expanded(str(path)) == [str(path)]


def test_a_list_may_be_longer_than_the_name_of_a_file():
    names = [f"/data/tarred/manifest_{number:05}.json" for number in range(400)]
    assert expanded(",".join(names)) == names


@pytest.mark.parametrize("uri", ["a_{5..2}.tar", "a_{0..999999999999}.tar"])
def test_an_absurd_range_is_refused(uri):
    with pytest.raises(UsageError, match="a range is two numbers"):
        expanded(uri)


def test_a_run_has_the_inputs_of_a_list():
    config = make_config(inputs=("/x/m_{0..1}.json", "/x/a.json,/y/b.json"), output="/out")
    assert config.inputs == ("/x/m_0.json", "/x/m_1.json", "/x/a.json", "/y/b.json")
