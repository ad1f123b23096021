import random
import shutil
import subprocess
from collections import Counter

import jiwer
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.schemas import SCORE_FIELDS
from pipeline.scoring.counts import count_rows, score_columns
from pipeline.scoring.normalize import normalize
from pipeline.scoring.references import References
from pipeline.scoring.rules import COUNT_COLUMNS, SCORE_COLUMNS, Scoring, score
from tests.support import runs

TEXT = st.lists(st.sampled_from(["a", "A", "b.", "ab", "c"]), max_size=5).map(" ".join)
CORPUS = st.lists(st.tuples(TEXT, TEXT), max_size=40)


def file_of(texts):
    """References of u0, u1, ...; the file does not name those whose text is None."""
    named = [(f"u{i}", text) for i, text in enumerate(texts) if text is not None]
    index = {utt_id: row for row, (utt_id, _) in enumerate(named)}
    return References("file", index, tuple(text for _, text in named), (None,) * len(named), ())


def rows_of(texts, **columns):
    ids = pa.array([f"u{i}" for i in range(len(texts))], pa.string())
    return pa.table({"utt_id": ids, "text": pa.array(texts, pa.string()), **columns})


def edits(reference, text):
    words = jiwer.process_words(reference, text)
    chars = jiwer.process_characters(reference, text)
    return tuple(o.substitutions + o.deletions + o.insertions for o in (words, chars))


# Alternatives


@hypothesis_settings(max_examples=50)
@given(data=st.data(), number=st.integers(1, 4), count=st.integers(0, 8))
def test_each_row_gets_the_best_reference_of_several_files_and_the_first_of_equal_ones(data, number, count):
    texts = data.draw(st.lists(TEXT, min_size=count, max_size=count))
    given_texts = st.lists(st.none() | TEXT, min_size=count, max_size=count)
    alternatives = [data.draw(given_texts) for _ in range(number)]
    scoring = Scoring("basic", references=("file",) * number)
    found = score(rows_of(texts), scoring, "basic", [file_of(a) for a in alternatives])
    assert list(found) == list(SCORE_COLUMNS)
    assert [column.type for column in found.values()] == [field.type for field in SCORE_FIELDS]
    for row, text in enumerate(texts):
        references = [normalize(a[row], "basic") for a in alternatives if a[row] is not None]
        best = min(references, key=lambda reference: edits(reference, normalize(text, "basic")), default=None)
        expected = score_columns([text], [best], "basic")
        assert {name: column[row].as_py() for name, column in found.items()} == {
            name: column[0].as_py() for name, column in expected.items()
        }


def test_word_errors_decide_before_characters():
    files = [file_of(["a bcdefgh"]), file_of(["a x y"])]
    found = score(rows_of(["a b"]), Scoring("none", ("1", "2")), None, files)
    assert found["normalized_reference"].to_pylist() == ["a bcdefgh"]
    closer = score(rows_of(["a b"]), Scoring("none", ("1", "2")), None, [files[0], file_of(["a c"])])
    assert closer["normalized_reference"].to_pylist() == ["a c"]


def test_rows_without_a_reference_in_the_files_have_no_counts_even_if_the_run_has_one():
    rows = rows_of(["a", "b"], reference=pa.array(["a", "b"]))
    found = score(rows, Scoring("basic", ("x",)), "basic", [file_of([None, "c"])])
    assert found["hits"].to_pylist() == [None, 0]
    assert found["normalized_text"].to_pylist() == [None, "b"]


def test_compounds_are_tolerated_against_every_alternative():
    files = [file_of(["ice cream now", None]), file_of(["icecream", None])]
    found = score(rows_of(["icecream now", "x"]), Scoring("basic", ("1", "2"), compounds=True), "basic", files)
    assert found["hits"].to_pylist() == [3, None]
    assert found["normalized_text"].to_pylist() == ["ice cream now", None]


# Stored counts


@given(corpus=CORPUS, cut=st.integers(0, 40))
def test_stored_counts_equal_a_new_scoring(corpus, cut):
    table = runs.transcripts([{"text": text, "reference": reference} for reference, text in corpus])
    table = pa.concat_tables([table.slice(0, cut), table.slice(cut)])
    stored, again = score(table, Scoring("basic"), "basic", []), score(table, Scoring("basic"), "none", [])
    assert {name: column.to_pylist() for name, column in stored.items()} == {
        name: column.to_pylist() for name, column in again.items()
    }


def replaced(table, name, values):
    index = table.schema.get_field_index(name)
    return table.set_column(index, name, pa.array(values, pa.int32()))


@pytest.mark.parametrize("name", COUNT_COLUMNS)
def test_damaged_stored_counts_are_refused(name):
    table = runs.transcripts([{"text": "a b", "reference": "a c"}, {"text": "a"}])
    half = replaced(table, name, [None, None])
    with pytest.raises(ValueError, match="not filled in the same rows"):
        score(half, Scoring("basic"), "basic", [])
    if "insertions" not in name:
        with pytest.raises(ValueError, match="contradict each other"):
            score(replaced(table, name, [7, None]), Scoring("basic"), "basic", [])
    assert score(half, Scoring("basic"), None, [])["hits"].to_pylist() == [1, None]


def test_counts_missing_in_different_rows_are_refused():
    table = runs.transcripts([{"text": "a", "reference": "a"}, {"text": "b"}])
    with pytest.raises(ValueError, match="not filled in the same rows"):
        score(replaced(table, "hits", [None, 1]), Scoring("basic"), "basic", [])


@pytest.mark.parametrize(
    ("scoring", "stored", "name"),
    [
        (Scoring("basic"), True, "basic"),
        (Scoring("none"), False, "none"),
        (Scoring("basic", ("x", "y")), False, "basic-refs-9ab9de25"),
        (Scoring("basic", compounds=True), False, "basic-compounds"),
        (Scoring("none", ("x",), compounds=True), False, "none-compounds-refs-2d711642"),
    ],
)
def test_rules_read_only_the_columns_that_they_name(scoring, stored, name):
    assert scoring.matches_stored("basic") is stored
    assert not scoring.matches_stored(None)
    assert scoring.name == name
    table = runs.transcripts([{"text": "a b", "reference": "a c"}])
    files = [file_of([None])] * len(scoring.references)
    for texts in (False, True):
        sources = scoring.source_columns("basic", texts=texts)
        found = score(table.select(list(sources)), scoring, "basic", files)
        assert set(COUNT_COLUMNS if stored and not texts else SCORE_COLUMNS) == set(found)


def test_an_unknown_normalizer_is_refused():
    with pytest.raises(UsageError, match="basic, none"):
        Scoring("nope")


# Other scorers of the same texts


def corpus_of(seed, utterances=150):
    rows = runs.random_rows(utterances, seed, speakers=6, wrong=0.4)
    return [(row["speaker"], row["reference"], row["text"]) for row in rows]


def counted(corpus):
    """(reference words, S, D, I) of each utterance."""
    columns = count_rows([reference for _, reference, _ in corpus], [text for _, _, text in corpus])
    names = ("ref_words", "substitutions", "deletions", "insertions")
    return list(zip(*(columns[name].to_pylist() for name in names), strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_the_kinds_of_errors_are_those_of_jiwer(seed):
    corpus = corpus_of(seed)
    output = jiwer.process_words([r for _, r, _ in corpus], [t for _, _, t in corpus])
    totals = [sum(column) for column in zip(*counted(corpus), strict=True)]
    assert totals[1:] == [output.substitutions, output.deletions, output.insertions]
    assert totals[0] == output.hits + output.substitutions + output.deletions


@hypothesis_settings(max_examples=200)
@given(reference=TEXT, text=TEXT)
def test_errors_of_any_strings_are_those_of_kaldialign(reference, text):
    kaldialign = pytest.importorskip("kaldialign", reason="needs kaldialign")
    ((_, *kinds),) = counted([("", reference, text)])
    assert sum(kinds) == kaldialign.edit_distance(reference.split(), text.split())["total"]
    columns = count_rows([reference], [text])
    chars = [columns["char_" + name][0].as_py() for name in ("substitutions", "deletions", "insertions")]
    assert sum(chars) == kaldialign.edit_distance(list(reference), list(text))["total"]


@pytest.mark.parametrize("seed", range(3))
def test_totals_of_a_corpus_are_those_of_kaldialign(seed):
    kaldialign = pytest.importorskip("kaldialign", reason="needs kaldialign")
    corpus = corpus_of(seed)
    totals = [kaldialign.edit_distance(r.split(), t.split())["total"] for _, r, t in corpus]
    assert [sum(kinds) for _, *kinds in counted(corpus)] == totals
    assert sum(totals) > 50


def sclite(folder, corpus):
    """By speaker: (reference words, S, D, I), counted by NIST's scorer."""
    command = shutil.which("sctk")
    if command is None:
        pytest.skip("needs NIST's scorer: apt-get install sctk")
    for name, column in (("ref", 1), ("hyp", 2)):
        lines = (f"{row[column]} ({row[0]}-{index})\n" for index, row in enumerate(corpus))
        (folder / f"{name}.trn").write_text("".join(lines))
    files = ["-r", folder / "ref.trn", "trn", "-h", folder / "hyp.trn", "trn"]
    options = ["-i", "rm", "-s", "-o", "rsum", "stdout"]
    output = subprocess.run([command, "sclite", *files, *options], check=True, capture_output=True, text=True).stdout
    speakers = {speaker for speaker, _, _ in corpus}
    found = {}
    for line in output.splitlines():
        cells = line.replace("|", " ").split()
        if cells and cells[0] in speakers:
            _, words, _, substitutions, deletions, insertions = map(int, cells[1:7])
            found[cells[0]] = (words, substitutions, deletions, insertions)
    assert set(found) == speakers
    return found


def by_speaker(corpus):
    sums: dict[str, Counter] = {}
    for (speaker, _, _), counts in zip(corpus, counted(corpus), strict=True):
        sums.setdefault(speaker, Counter()).update(dict(enumerate(counts)))
    return {speaker: tuple(counts[i] for i in range(4)) for speaker, counts in sums.items()}


@pytest.mark.parametrize("seed", range(2))
def test_sums_by_speaker_are_close_to_those_of_sclite(tmp_path, seed):
    """Sclite weights a substitution 4, the others 3, so it may count up to a third more errors than the minimum."""
    corpus = corpus_of(seed)
    counts, sclite_counts = by_speaker(corpus), sclite(tmp_path, corpus)
    for speaker, (words, *kinds) in counts.items():
        assert sclite_counts[speaker][0] == words
        assert sum(kinds) <= sum(sclite_counts[speaker][1:]) <= sum(kinds) * 4 / 3
        assert kinds[1] - kinds[2] == sclite_counts[speaker][2] - sclite_counts[speaker][3]


def test_sums_by_speaker_are_those_of_sclite_if_the_alignment_is_unique(tmp_path):
    """Each word occurs once in an utterance, and each utterance has one kind of error: its alignment is unique."""
    rng = random.Random(0)
    corpus = []
    for index in range(120):
        kind = "sdi"[index % 3]
        words = [f"w{word}" for word in rng.sample(range(100), rng.randint(1, 12))]
        heard = []
        for word in words:
            wrong = rng.random() < 0.2
            heard += [] if wrong and kind == "d" else [f"x{len(heard)}" if wrong and kind == "s" else word]
            heard += [f"y{len(heard)}"] if wrong and kind == "i" else []
        corpus.append((f"spk{index % 5}", " ".join(words), " ".join(heard)))
    counts = by_speaker(corpus)
    assert sclite(tmp_path, corpus) == counts
    assert min(min(counts) for counts in counts.values()) > 0
