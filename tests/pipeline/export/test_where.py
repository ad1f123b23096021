"""Conditions: what they take, and what is refused in a line."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.export.where import parse
from tests.support.runs import transcripts

ROWS = transcripts(
    [
        {"text": "it's a", "speaker": "a", "confidence": 0.25, "channel": 1, "duration_s": 1.0},
        {"text": "100% b", "speaker": None, "confidence": 0.75, "channel": None, "duration_s": 30.0},
        {"text": "", "speaker": "b", "confidence": None, "channel": 0, "duration_s": 2.0, "reference": "x"},
    ]
)


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("confidence > 0.5", [1]),
        ("confidence <= 0.25 or speaker = 'b'", [0, 2]),
        ("not confidence > 0.5", [0]),
        ("speaker not in ('a')", [2]),
        ("speaker in ('a', null)", [0]),
        ("speaker is null", [1]),
        ("speaker IS NOT NULL and channel between 0 and 0", [2]),
        ("text = 'it''s a'", [0]),
        ("text like '%b' and text not like 'b%'", [1]),
        ("speaker ilike 'B'", [2]),
        ("length(text) = 0 and hits / ref_words = 0", [2]),
        ("-duration_s * 2 < -3 and duration_s + 1 <> 31", [2]),
        ("1 / (channel - 1) > 0", [0]),
        ("chunk > 99999999999999999999", []),
        ("true", [0, 1, 2]),
    ],
)
def test_a_condition_takes_rows_as_sql_does(text, taken):
    holds = parse(text).holds(ROWS).to_pylist()
    assert [index for index, value in enumerate(holds) if value] == taken


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a condition"),
        ("confidence >", "is not a condition after character"),
        ("'", "is not a condition"),
        ("confidence", "is not true or false"),
        ("confidence > 'x'", "values of different types"),
        ("wer > 1", "no column 'wer': there are utt_id, uri, .*, keyword, keyword.score"),
        ("keyword.label.x = 1", "no column"),
        ("words is null", "no column 'words'"),
        ("confidence > 0; drop table transcripts", "is not read"),
        ("(select 1) = 1", "is not read"),
        ("text in (select text from transcripts)", "is not read"),
        ("read_csv('/etc/passwd') = 1", "is not read"),
        ("exists(select 1)", "is not read"),
        ("text like text", "is not read"),
        ("confidence is true", "is not read"),
        ("length(text, 'utf8') > 1", "is not read"),
        ("text = '\ud800'", "is not UTF-8"),
        ("x" * 10_001, "at most 10,000"),
        ("(" * 4990 + "true" + ")" * 4990, "nested too deeply"),
        ("not " * 2400 + "true", "nested too deeply"),
    ],
)
def test_anything_else_is_refused_in_a_line(text, message):
    with pytest.raises(UsageError, match=message) as refused:
        parse(text, ("keyword",))
    assert "\n" not in str(refused.value)


@given(st.text(max_size=40) | st.text("()'\"=<>!.,;-+*/%and ornt10 ", max_size=40))
def test_any_text_is_a_condition_or_refused(text):
    try:
        condition = parse(text)
    except UsageError:
        return
    assert condition.holds(ROWS).type == pa.bool_()
