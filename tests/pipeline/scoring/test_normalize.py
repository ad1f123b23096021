import importlib.metadata
import re
import sys
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.scoring.normalize import DEFAULT_NORMALIZER, NORMALIZERS, label, normalize, resolve
from pipeline.scoring.substitutions import read_pairs, replaced

MANY_SCRIPTS = st.text(st.characters(codec="utf-8"), max_size=40)
APOSTROPHES = ["'", "\u2018", "\u2019", "\u201b", "\u02bb", "\u02bc", "`", "\u00b4", "\uff07"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        (" \t\n", ""),
        ("MISTER QUILTER'S MANNER", "mister quilter's manner"),
        ("  Two\tlines\nand\u00a0no-break\u3000ideographic ", "two lines and no break ideographic"),
        ("rock 'n' roll", "rock n roll"),
        ("rock'n'roll", "rock'n'roll"),
        ("the dogs' ''quoted'' 'tis a''b", "the dogs quoted tis a b"),
        ("'90s 5'10", "90s 5'10"),
        ("well-known either/or dash\u2014dash, end.", "well known either or dash dash end"),
        ("snake_case", "snake case"),
        ("3.14 1,000 U.S. 50% AT&T $5", "3 14 1 000 u s 50 at t 5"),
        ("ﬁne Ｆｕｌｌ m² №", "fine full m2 no"),  # compatibility forms
        ("Caf\u0065\u0301 = Caf\u00e9", "café café"),
        ("Größe, Maße", "größe maße"),  # not ss
        ("ΟΔΟΣ.ΑΒ ΟΔΟΣ", "οδος αβ οδος"),  # final sigma, by the word as scored
        ("İSTANBUL ISTANBUL i\u0307stanbul", "istanbul istanbul istanbul"),
        ("ışık", "ışık"),
        ("नमस्ते, दुनिया।", "नमस्ते दुनिया"),
        ("สวัสดี!", "สวัสดี"),
        ("Tiếng Việt", "tiếng việt"),
        ("H\u0331", "\u1e96"),  # composes in lower case only
        ("一二三。四", "一二三 四"),
        ("co\u00adop\ufeff \u200eleft\u200f می\u200cخواهم", "coop left میخواهم"),
        ("ភាសា\u200bខ្មែរ", "ភាសា ខ្មែរ"),  # ZWSP parts words
        ("I \u2764\ufe0f you 1\ufe0f\u20e3", "i you 1"),
        ("a \u00a8 b \u0301c", "a b c"),  # marks on nothing
        ("a\x00b\ue000c", "a b c"),
    ],
)
def test_basic_on_known_texts(text, expected):
    assert normalize(text, "basic") == expected


@pytest.mark.parametrize("apostrophe", APOSTROPHES)
def test_basic_makes_every_apostrophe_the_same(apostrophe):
    assert normalize(f"Don{apostrophe}t {apostrophe}quote{apostrophe}", "basic") == "don't quote"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("  A-b,\u2019\tC\r\n\u00a0d.  ", "A-b,\u2019 C d."),
        ("e\u0301 ﬁ \u200b", "e\u0301 ﬁ \u200b"),
    ],
)
def test_none_changes_only_white_space(text, expected):
    assert normalize(text, "none") == expected


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@given(text=MANY_SCRIPTS)
@example("i\u0307\u0307\u0301")
@example("\u0149")
@example("e\u200d\u0301")
def test_normalizing_is_idempotent(normalizer, text):
    once = normalize(text, normalizer)
    assert normalize(once, normalizer) == once


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@given(text=MANY_SCRIPTS)
def test_words_are_separated_by_single_spaces(normalizer, text):
    normalized = normalize(text, normalizer)
    assert normalized == " ".join(normalized.split())


@given(text=st.text(st.characters(max_codepoint=0x24F), max_size=40))
def test_basic_leaves_letters_marks_numbers_and_inner_apostrophes(text):
    normalized = normalize(text, "basic")
    assert all(c in " '" or unicodedata.category(c)[0] in "LMN" for c in normalized)
    assert not any(word.startswith("'") or word.endswith("'") for word in normalized.split())


def test_basic_is_idempotent_on_every_character_between_letters():
    bad = []
    for character in map(chr, range(sys.maxunicode + 1)):
        if unicodedata.category(character) in {"Cn", "Co", "Cs"}:  # all one case, and seven in eight
            continue
        once = normalize(f"I{character}A", "basic")
        if normalize(once, "basic") != once:
            bad.append(hex(ord(character)))
    assert bad == []


@given(text=MANY_SCRIPTS)
def test_basic_ignores_case_of_plain_letters(text):
    # Where one letter's upper case is another letter's too (ß and SS, ı and I), case is not reversible.
    reversible = "".join(c for c in text if len(c.upper()) == 1 and c.upper().lower() == c)
    assert normalize(reversible.upper(), "basic") == normalize(reversible, "basic").replace("ſ", "s")


def test_the_default_is_a_normalizer():
    assert DEFAULT_NORMALIZER in NORMALIZERS
    assert normalize("A, b") == normalize("A, b", DEFAULT_NORMALIZER)


@pytest.mark.parametrize("refused", [resolve, lambda name: normalize("a", name)])
def test_unknown_normalizer_is_a_usage_error_that_names_the_choices(refused):
    with pytest.raises(UsageError, match=r"'whisper'.*basic, none, english, rules:FILE"):
        refused("whisper")


WHISPER_WORDS = [
    *(
        "it's",
        "won't",
        "can't",
        "gonna",
        "i'd've",
        "uh",
        "um",
        "mr",
        "twenty",
        "five",
        "hundred",
        "and",
        "double",
        "oh",
    ),
    *(
        "point",
        "half",
        "a",
        "dollars",
        "%",
        "$",
        "1,000",
        "3.14",
        "20th",
        "colour",
        "[noise]",
        "(laughs)",
        "-",
        "minus",
    ),
    *("plus", "é", "U.S.", "\t"),
]


@given(st.lists(st.sampled_from(WHISPER_WORDS), max_size=8))
def test_english_is_whisper_s(words):
    english = pytest.importorskip("whisper_normalizer.english").EnglishTextNormalizer()
    assert normalize(" ".join(words), "english") == " ".join(english(" ".join(words)).split())


def test_english_on_what_people_write():
    pytest.importorskip("whisper_normalizer")
    said = "Uh, I won\u2019t pay Mr. Lee twenty-five dollars and fifty cents for that colour [laughs]."
    assert normalize(said, "english") == "i will not pay mister lee $25.50 for that color"
    version = importlib.metadata.version("whisper-normalizer")
    assert resolve("english") == resolve(f"english@{version}") == label(resolve("english")) == f"english@{version}"
    with pytest.raises(UsageError, match=r"english@0\.0\.1 needs that version"):
        normalize("a", "english@0.0.1")


def rules(tmp_path, text):
    pytest.importorskip("re2")
    (tmp_path / "my.tsv").write_text(text, encoding="utf-8")
    return f"rules:{tmp_path / 'my.tsv'}"


def test_rules_are_applied_in_order_and_travel_with_their_name(tmp_path):
    lines = [
        *("\ufeff# fillers", "", r"(?i)\b(um|uh)\b", "(?i)colour(s?)\tcolor\\1\r"),
        *("colors\thues", "(\\pL+)n't\t\\1 not"),
    ]
    stored = resolve(rules(tmp_path, "\n".join(lines)))
    (tmp_path / "my.tsv").unlink()
    assert normalize("Um, the colours don\u2019t e\u0301 Uh!", stored) == "the hues do not é"
    assert resolve(stored) == stored
    assert re.fullmatch(r"rules\.[0-9a-f]{12}", label(stored))
    assert label(stored) != label(stored.replace("hues", "tints"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(?=a)b\tc", r"my\.tsv, line 1: invalid perl operator"),
        ("a\n(b\tc", r"line 2: missing \)"),
        ("(a)\t\\2", r"line 1: the replacement .* names no group"),
        ("a\t\\", r"line 1: the replacement .* ends in a backslash"),
        ("# nothing\n", "has no rule"),
        ("(a{900}){900}", "line 1: invalid repetition size"),
    ],
)
def test_a_rule_that_cannot_be_used_is_a_line(tmp_path, text, message):
    with pytest.raises(UsageError, match=message):
        resolve(rules(tmp_path, text))
    with pytest.raises(UsageError, match="there is no file"):
        resolve(f"rules:{tmp_path}/other")


@pytest.mark.parametrize("letters", ["ß", "日本", "\U0001f600", "e\u0301"])
def test_replacements_may_have_any_letter(tmp_path, letters):
    pytest.importorskip("re2")
    (tmp_path / "rules.txt").write_text(f"s(s)\t{letters}\\1{letters}\n", "utf-8")
    assert replaced(read_pairs(str(tmp_path / "rules.txt")))("masse") == f"ma{letters}s{letters}e"


def test_rules_take_time_that_is_linear_and_room_that_is_bounded(tmp_path):
    hard = resolve(rules(tmp_path, "(a+)+$\tx\n(a|aa)*b\tx\n"))
    assert normalize("a" * 50_000 + "!", hard) == "a" * 50_000
    doubling = resolve(rules(tmp_path, "(.)\t\\1\\1\n" * 40))
    with pytest.raises(UsageError, match=r"rule 1[0-9] makes a text grow"):
        normalize("abc", doubling)
