"""The tokenizer and the greedy path, compared with a brute force and, where they agree, with transformers."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import Wav2Vec2CTCTokenizer

from sewd_model import CheckpointError, CTCTokenizer, greedy_path, split_at_gaps, words
from sewd_model.ctc import greedy_paths
from sewd_model.packed.gpu_recognition import best_tokens

TOKENS = ["<pad>", "<s>", "</s>", "<unk>", "|", "E", "H", "L", "O", "T", "'"]
VOCAB = {token: index for index, token in enumerate(TOKENS)}
PAD, BOS, EOS, UNK, SPACE = range(5)
# The vocabulary of a widely used fine-tuning recipe: no <s> and </s>, and other spellings of the special tokens.
RECIPE = {"a": 1, "b": 2, "'": 3, "|": 0, "[UNK]": 4, "[PAD]": 5}


@pytest.fixture(scope="module")
def tokenizer():
    return CTCTokenizer(vocab=VOCAB)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocab") / "vocab.json"
    path.write_text(json.dumps(VOCAB))
    return Wav2Vec2CTCTokenizer(str(path))


def ids(*tokens):
    return [VOCAB[token] for token in tokens]


def logits_for(best, size=11, seed=0):
    """Return random logits whose best tokens are `best`."""
    scores = np.random.default_rng(seed).normal(size=(len(best), size)).astype(np.float32)
    for frame, token in enumerate(best):
        scores[frame, token] = scores[frame].max() + 0.5
    return scores


# ------------------------------------------------------------------------------------------------------ greedy path
@pytest.mark.parametrize(
    ("frames", "text"),
    [
        ("H H E E L L <pad> L L O O", "HELLO"),
        ("<pad> T <pad> O O <pad> <pad> O <pad>", "TOO"),
        ("T O O", "TO"),
        ("L <s> L", "LL"),
        ("L </s> <pad> <s> L", "LL"),
        ("T O | <pad> | H E", "TO  HE"),
        ("| T O |", "TO"),
        ("T <unk> O", "T<unk>O"),
        ("<pad> <pad>", ""),
        ("<s> </s>", ""),
        ("", ""),
    ],
)
def test_greedy_path_gives_the_text_of_frames(tokenizer, frames, text):
    path = greedy_path(logits_for(ids(*frames.split())), PAD, tokenizer.drop_ids)
    assert tokenizer.text(path.token_ids) == text
    assert path.num_frames == len(frames.split())


def test_the_blank_is_dropped_after_collapsing_unlike_in_transformers(tokenizer, reference):
    frames = ids("H", "E", "L", "<pad>", "L", "O")
    assert reference.decode(frames, skip_special_tokens=True) == "HELO"
    assert reference.decode(frames) == "HELLO"
    assert tokenizer.text(greedy_path(logits_for(frames), PAD).token_ids) == "HELLO"


def brute_force(scores, blank, drop):
    """Decode a clip frame by frame, in plain Python and float64."""
    actual = []
    frames = [int(np.flatnonzero(row == row.max())[0]) for row in scores]
    position = 0
    for token, run in itertools.groupby(frames):
        length = len(list(run))
        part = scores[position : position + length].astype(np.float64)
        logs = [row[token] - math.log(sum(math.exp(v - row.max()) for v in row)) - row.max() for row in part]
        if token != blank and token not in drop:
            actual.append((token, position, position + length, math.exp(sum(logs) / length)))
        position += length
    return actual


# Few different scores, so that ties are common.
SCORES = st.integers(0, 14).flatmap(
    lambda frames: st.lists(
        st.lists(st.sampled_from([-3.0, 0.0, 0.5, 4.0]), min_size=4, max_size=4),
        min_size=frames,
        max_size=frames,
    )
)


@settings(deadline=None, max_examples=300)
@given(scores=SCORES, blank=st.integers(0, 3), drop=st.lists(st.integers(0, 3), max_size=2))
@example(scores=[], blank=0, drop=[])
@example(scores=[[1.0, 1.0, 1.0, 1.0]], blank=3, drop=[])
def test_greedy_path_equals_a_brute_force(scores, blank, drop):
    array = np.array(scores, np.float32).reshape(-1, 4)
    path = greedy_path(array, blank, drop)
    expected = brute_force(array, blank, drop)
    assert path.token_ids.tolist() == [token for token, *_ in expected]
    assert path.start_frames.tolist() == [start for _, start, *_ in expected]
    assert path.end_frames.tolist() == [end for *_, end, _ in expected]
    np.testing.assert_allclose(path.probabilities, [p for *_, p in expected], rtol=1e-5)
    assert path.num_frames == len(scores)
    assert [a.dtype.name for a in (path.token_ids, path.start_frames, path.end_frames)] == ["int64"] * 3
    assert path.probabilities.dtype == np.float32
    assert (path.probabilities <= 1).all()


@settings(deadline=None, max_examples=200)
@given(clips=st.lists(SCORES, max_size=5), blank=st.integers(0, 3), drop=st.lists(st.integers(0, 3), max_size=2))
@example(clips=[[], [[1.0, 0.0, 0.0, 0.0]], [], [[1.0, 0.0, 0.0, 0.0]]], blank=3, drop=[])
def test_the_paths_of_clips_end_to_end_on_a_device_are_those_of_each_clip_alone(clips, blank, drop):
    arrays = [np.array(scores, np.float32).reshape(-1, 4) for scores in clips]
    logits = torch.from_numpy(np.concatenate([*arrays, np.zeros((0, 4), "f4")]))
    best, log_probabilities = best_tokens(logits, 1)[..., 0].numpy()
    paths = greedy_paths(best.astype(np.int64), log_probabilities, list(map(len, arrays)), blank, drop)
    for path, array in zip(paths, arrays, strict=True):
        expected = greedy_path(array, blank, drop)
        for name in ("token_ids", "start_frames", "end_frames", "num_frames"):
            np.testing.assert_array_equal(getattr(path, name), getattr(expected, name))
        np.testing.assert_allclose(path.probabilities, expected.probabilities, atol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_frame_with_a_logit_that_is_not_finite_has_no_probability(value):
    logits = torch.tensor([[1.0, 1.0, 0.0], [3.0, value, 0.0], [0.0, 0.0, 2.0]])
    best, log_probabilities = best_tokens(logits, 1)[..., 0]
    assert log_probabilities.isfinite().tolist() == [True, False, True]
    assert (best[0], best[2]) == (0, 2), "of equal scores, the lowest id"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_logits_of_any_float_type_are_converted_to_float32(dtype):
    tensor = torch.from_numpy(logits_for(ids("H", "E", "L", "L"))).to(dtype).requires_grad_()
    actual, expected = greedy_path(tensor, PAD), greedy_path(tensor.detach().float().numpy(), PAD)
    assert actual.token_ids.tolist() == expected.token_ids.tolist()
    assert actual.probabilities.tolist() == expected.probabilities.tolist()


def test_huge_logits_do_not_overflow():
    scores = np.array([[1e4, -1e4, 0.0], [3e38, -3e38, 0.0], [-np.inf, 5.0, -np.inf]], np.float32)
    path = greedy_path(scores, 2)
    assert path.token_ids.tolist() == [0, 1]
    assert path.probabilities.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("scores", "blank"),
    [(np.zeros(4), 0), (np.zeros((2, 3, 4)), 0), (np.zeros((2, 4)), 4), (np.zeros((2, 4)), -1)],
)
def test_logits_of_the_wrong_shape_are_refused(scores, blank):
    with pytest.raises(ValueError, match="frames, tokens"):
        greedy_path(scores, blank)


@pytest.mark.parametrize("row", [[0.0, np.nan], [np.inf, 0.0], [-np.inf, -np.inf]], ids=str)
def test_frame_without_a_finite_best_score_is_refused(row):
    with pytest.raises(ValueError, match="finite best score"):
        greedy_path(np.array([[0.0, 1.0], row]), 0)


# ----------------------------------------------------------------------------------------------- against transformers
FRAMES = st.lists(st.sampled_from([index for index in VOCAB.values() if index not in (BOS, EOS)]), max_size=30)


@settings(deadline=None, max_examples=200)
@given(frames=FRAMES)
@example(frames=ids("T", "O", "|", "<pad>", "|", "H", "E"))
def test_text_equals_transformers_if_there_is_no_sentence_mark(tokenizer, reference, frames):
    path = greedy_path(logits_for(frames), PAD, tokenizer.drop_ids)
    assert tokenizer.text(path.token_ids) == reference.decode(frames)


TEXT = st.text(st.sampled_from("EHLOT' |xé"), max_size=12)


@settings(deadline=None, max_examples=200)
@given(text=TEXT | st.lists(TEXT | st.sampled_from(["<unk>", "<s>", " <pad> "]), max_size=4).map("".join))
def test_encoding_equals_transformers(tokenizer, reference, text):
    assert tokenizer.encode(text) == reference(text).input_ids


@settings(deadline=None, max_examples=100)
@given(text=st.text(st.sampled_from("ehlot' "), max_size=12))
def test_lower_case_text_on_an_upper_case_vocabulary(tmp_path_factory, text):
    tokenizer = CTCTokenizer(vocab=VOCAB, do_lower_case=True)
    spelled = tokenizer.encode(text)
    assert UNK not in spelled
    assert tokenizer.text(spelled) == text.strip()


def test_lower_casing_equals_transformers(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps(VOCAB))
    reference = Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"), do_lower_case=True)
    tokenizer = CTCTokenizer(vocab=VOCAB, do_lower_case=True)
    for text in ("hello to", "HELLO", "tooß", "to<unk>he"):
        assert tokenizer.encode(text) == reference(text).input_ids
    frames = ids("H", "E", "<pad>", "|", "<unk>", "T")
    assert tokenizer.text(greedy_path(logits_for(frames), PAD).token_ids) == reference.decode(frames) == "he <unk>t"


@settings(deadline=None, max_examples=100)
@given(text=st.lists(st.text(st.sampled_from("EHLOT'"), min_size=1, max_size=6), max_size=5).map(" ".join))
def test_decoding_reverses_encoding(text):
    tokenizer = CTCTokenizer(vocab=VOCAB)
    assert tokenizer.text(tokenizer.encode(text)) == text


def test_longest_token_is_taken_as_in_transformers(tmp_path):
    vocab = {**VOCAB, "ab": 11, "abc": 12, "a": 13, "b": 14, "c": 15}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    reference = Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"))
    tokenizer = CTCTokenizer(vocab=vocab)
    for text in ("abc", "ab c", "aab abcc", "ba b"):
        assert tokenizer.encode(text) == reference(text).input_ids
    assert tokenizer.encode("abc") == [12]


def test_other_delimiters_equal_transformers(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps({**VOCAB, "_": 11}))
    options = {"word_delimiter_token": "_", "replace_word_delimiter_char": "-"}
    reference = Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"), **options)
    tokenizer = CTCTokenizer(vocab={**VOCAB, "_": 11}, **options)
    assert tokenizer.encode("TO HE|L") == reference("TO HE|L").input_ids
    frames = [9, 8, 11, 6, 5, 4, 7]
    assert tokenizer.text(frames) == reference.decode(frames) == "TO-HE|L"


# ------------------------------------------------------------------------------------------------------------- words
@settings(deadline=None, max_examples=200)
@given(frames=FRAMES, lower=st.booleans())
def test_words_joined_by_spaces_are_the_text(frames, lower):
    tokenizer = CTCTokenizer(vocab=VOCAB, do_lower_case=lower)
    path = greedy_path(logits_for(frames), PAD, tokenizer.drop_ids)
    actual = words(path, tokenizer, 0.02)
    assert " ".join(word.word for word in actual) == " ".join(tokenizer.text(path.token_ids).split())
    for word, following in itertools.pairwise(actual):
        assert word.end_s <= following.start_s
    for word in actual:
        assert 0 <= word.start_s < word.end_s <= path.num_frames * 0.02 + 1e-9
        assert 0 < word.confidence <= 1


def test_word_times_and_confidence():
    tokenizer = CTCTokenizer(vocab=VOCAB)
    #          0      1    2    3        4    5    6    7    8
    frames = ids("<pad>", "T", "T", "<pad>", "O", "|", "|", "H", "E")
    path = greedy_path(logits_for(frames), PAD)
    to, he = words(path, tokenizer, 0.5)
    assert (to.word, to.start_s, to.end_s) == ("TO", 0.5, 2.5)
    assert (he.word, he.start_s, he.end_s) == ("HE", 3.5, 4.5)
    letters = dict(zip(path.token_ids.tolist(), path.probabilities.tolist(), strict=True))
    expected = math.sqrt(letters[VOCAB["T"]] * letters[VOCAB["O"]])
    assert to.confidence == pytest.approx(expected, rel=1e-6)
    assert to.confidence != pytest.approx(he.confidence, rel=1e-3)


def test_token_with_a_space_inside_makes_two_words():
    tokenizer = CTCTokenizer(vocab={"<pad>": 0, "|": 1, "a": 2, "b c": 3, " ": 4, "<unk>": 5})
    path = greedy_path(logits_for([2, 3, 4, 2], size=6), 0)
    assert [word.word for word in words(path, tokenizer, 1.0)] == tokenizer.text(path.token_ids).split()


# ------------------------------------------------------------------------------------------------------------- files
def write(directory, **files):
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    return directory


def test_missing_settings_take_the_defaults(tmp_path):
    tokenizer = CTCTokenizer.from_pretrained(write(tmp_path, vocab=VOCAB))
    assert tokenizer == CTCTokenizer(vocab=VOCAB)
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    assert (tokenizer.unk_id, tokenizer.delimiter_id) == (3, 4)
    assert tokenizer.drop_ids == (1, 2)


def saved_by_transformers(tmp_path, vocab, **options):
    path = tmp_path / "source.json"
    path.write_text(json.dumps(vocab))
    reference = Wav2Vec2CTCTokenizer(str(path), **options)
    reference.save_pretrained(tmp_path / "saved")
    return reference, tmp_path / "saved"


@pytest.mark.parametrize(
    ("vocab", "options"),
    [
        (VOCAB, {}),
        (VOCAB, {"do_lower_case": True, "replace_word_delimiter_char": "_"}),
        (RECIPE, {"unk_token": "[UNK]", "pad_token": "[PAD]"}),
        ({token: index for token, index in VOCAB.items() if index < 9}, {"bos_token": "<B>"}),
    ],
    ids=["full", "options", "recipe", "marks not in the vocabulary"],
)
def test_files_of_transformers_give_its_ids(tmp_path, vocab, options):
    reference, directory = saved_by_transformers(tmp_path, vocab, **options)
    tokenizer = CTCTokenizer.from_pretrained(directory)
    assert dict(tokenizer.ids) == reference.get_vocab()
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (
        reference.pad_token_id,
        reference.bos_token_id,
        reference.eos_token_id,
    )
    everything = list(range(len(reference.get_vocab()) + 2))  # the last two ids are beyond the vocabulary: unknown
    assert tokenizer.text(everything) == reference.decode(everything, group_tokens=False)
    again = directory / "again"
    tokenizer.save_pretrained(again)
    assert CTCTokenizer.from_pretrained(again).ids == tokenizer.ids
    assert Wav2Vec2CTCTokenizer.from_pretrained(again).get_vocab() == reference.get_vocab()


def test_special_tokens_map_of_older_checkpoints_is_read(tmp_path):
    special = {"pad_token": "[PAD]", "unk_token": {"content": "[UNK]", "lstrip": False}, "bos_token": None}
    tokenizer = CTCTokenizer.from_pretrained(write(tmp_path, vocab=RECIPE, special_tokens_map=special))
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id) == (5, 4, None, 6)
    assert tokenizer.drop_ids == (6,)


@pytest.mark.parametrize("where", ["directory", "memory"])
def test_files_round_trip(tmp_path, where):
    tokenizer = CTCTokenizer(
        vocab=RECIPE,
        added={"<s>": 6, "</s>": 7},
        unk_token="[UNK]",
        pad_token="[PAD]",
        replace_word_delimiter_char="_",
        do_lower_case=True,
        extra={"model_max_length": 5},
    )
    location = tmp_path if where == "directory" else "memory://tokenizers/round-trip"
    tokenizer.save_pretrained(location)
    again = CTCTokenizer.from_pretrained(location)
    assert again.extra.pop("tokenizer_class") == "Wav2Vec2CTCTokenizer"
    assert again == tokenizer


def test_nested_vocabulary_needs_a_language(tmp_path):
    nested = {"eng": VOCAB, "fra": RECIPE}
    write(tmp_path, vocab=nested)
    with pytest.raises(CheckpointError, match=r"target_lang must name one of eng, fra"):
        CTCTokenizer.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"'deu' is not in the vocabulary"):
        CTCTokenizer.from_pretrained(tmp_path, target_lang="deu")
    assert CTCTokenizer.from_pretrained(tmp_path, target_lang="eng").vocab == VOCAB
    write(tmp_path, tokenizer_config={"target_lang": "fra", "pad_token": "[PAD]"})
    assert CTCTokenizer.from_pretrained(tmp_path).vocab == RECIPE


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no vocab.json"),
        ({"vocab": {}}, "empty"),
        ({"vocab": {"a": 0, "b": 0}}, "'a' and 'b' the same id 0"),
        ({"vocab": {"a": "0"}}, "'a' the id '0'"),
        ({"vocab": {"a": -1}}, "'a' the id -1"),
        ({"vocab": [1]}, "vocab.json"),
        ({"vocab": VOCAB, "tokenizer_config": {"pad_token": 3}}, "pad_token"),
        ({"vocab": VOCAB, "tokenizer_config": {"do_lower_case": "no"}}, "do_lower_case"),
        ({"vocab": VOCAB, "tokenizer_config": [1]}, "tokenizer_config.json"),
        ({"vocab": VOCAB, "tokenizer_config": {"added_tokens_decoder": {"x": {"content": "<s>"}}}}, "tokenizer"),
    ],
)
def test_malformed_files_are_refused(tmp_path, files, message):
    with pytest.raises(CheckpointError, match=message):
        CTCTokenizer.from_pretrained(write(tmp_path, **files))


def test_character_without_an_id_is_refused_without_an_unknown_token():
    tokenizer = CTCTokenizer(vocab={"<pad>": 0, "a": 1}, unk_token=None)
    with pytest.raises(ValueError, match="'z' is not in the vocabulary"):
        tokenizer.encode("az")
    with pytest.raises(ValueError, match="id 99 is not in the vocabulary"):
        tokenizer.text([99])


# -------------------------------------------------------------------------------------------------- gaps
@given(st.lists(st.sampled_from([0, 0, 0, 4, 5, 6, 7]), max_size=40), st.integers(1, 6))
def test_a_path_is_cut_at_long_gaps_and_nowhere_else(frames, gap):
    path = greedy_path(logits_for(frames, size=10), 0)
    pieces = split_at_gaps(path, gap)
    expected, last = [[]], None
    for frame, token in enumerate(frames):  # a brute force over the frames
        if not token:
            continue
        if last is not None and frame - last > gap:
            expected.append([])
        if frame == 0 or frames[frame - 1] != token:
            expected[-1].append((token, frame))
        last = frame
    found = [list(zip(piece.token_ids.tolist(), piece.start_frames.tolist(), strict=True)) for piece in pieces]
    assert found == expected
    assert all(piece.num_frames == len(frames) for piece in pieces)
