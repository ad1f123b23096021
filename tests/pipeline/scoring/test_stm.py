"""STM files as NIST describes them."""

from __future__ import annotations

import pytest

from pipeline.errors import UsageError
from pipeline.scoring.references import load_references
from pipeline.scoring.stm import ReferenceSegment, parse_stm

FILE = """;; CATEGORY "0" "" ""
;; LABEL "F0" "Female" "Female Talkers"
call 2 ben 3.90 6.00 <o,f0,male> good { morning / mornin' / @ }

call 1 anna 0.00 4.20 <o,f0,female> well  hello
call 1 inter_segment_gap 4.2 9 <o,,unknown>
call 1 excluded_region 9 12 <o,f0,> ignore_time_segment_in_scoring
other A carl 1 2 { @ / uh } a { b / { c / d } }
"""


def test_lines_become_segments_in_the_order_of_time():
    assert parse_stm(FILE) == {
        "call": (
            ReferenceSegment("well  hello".replace("  ", " "), 0.0, 4.2, 0, "anna"),
            ReferenceSegment("good morning", 3.9, 6.0, 1, "ben"),
            ReferenceSegment("", 4.2, 9.0, 0, None),
            ReferenceSegment(None, 9.0, 12.0, 0, None),
        ),
        "other": (ReferenceSegment("a b", 1.0, 2.0, 0, "carl"),),
    }


@pytest.mark.parametrize(("names", "channels"), [("12", [0, 1]), ("01", [0, 1]), ("AB", [0, 1]), ("ab", [0, 1])])
def test_channels_are_numbers_or_letters(names, channels):
    lines = "\n".join(f"r {name} s {index} {index + 1} x" for index, name in enumerate(names))
    assert [segment.channel for segment in parse_stm(lines)["r"]] == channels


@pytest.mark.parametrize(
    "line",
    [
        *("call 1 anna 0", "call 1 anna 0 x words", "call 1 anna 2 1 w", "call 1 anna -1 1 w", "call ? anna 0 1 w"),
        *("call 1 anna 0 inf w", "call 1 anna nan 1 w", "call 99 anna 0 1 w", "call ch1 anna 0 1 w"),
    ],
)
def test_other_lines_are_refused_with_their_number(tmp_path, line):
    (tmp_path / "x.stm").write_text(f";; comment\n{line}\n")
    with pytest.raises(UsageError, match=r"line 2 is not one of an STM file"):
        load_references(str(tmp_path / "x.stm"))


def test_a_file_without_lines_is_refused(tmp_path):
    (tmp_path / "x.stm").write_text(";; comment\n")
    with pytest.raises(UsageError, match="holds no references"):
        load_references(str(tmp_path / "x.stm"))
