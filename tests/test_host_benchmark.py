"""The benchmark of the work around the encoder measures what it says: all of it, for chunks of real shape."""

from __future__ import annotations

import pytest

from benchmarks import host
from pipeline.schemas import RECOGNIZED_CHUNK


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_each_clip_of_a_chunk_gets_tokens_at_the_rate_of_speech():
    recognizer = host.stub_recognizer()
    table = recognizer(host.chunk_of(3, 2))
    assert table.schema.equals(RECOGNIZED_CHUNK)
    rows = table.to_pylist()[0]["rows"]
    assert [row["num_frames"] for row in rows] == [99] * 3
    assert all(row["code"] is None and 20 <= len(row["token_ids"]) <= 25 for row in rows)
    assert rows[0]["start_frames"] != rows[1]["start_frames"], "the tokens are of the clip's own frames in the batch"
