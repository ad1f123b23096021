"""Tokens to text, and greedy CTC decoding of logits with times and confidences.

The order of the steps matters: take the best token of each frame, collapse repeats, drop the blank, and only *then*
drop the other special tokens. Dropping the blank before collapsing, as transformers' `decode(skip_special_tokens=True)`
does, loses double letters: `H E L <pad> L O` is HELLO, not HELO.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from sewd_model import hub
from sewd_model.encoding import Encoding, Padding, TensorType, in_type, padded, target_length
from sewd_model.files import (
    ADDED_TOKENS_FILE,
    SPECIAL_TOKENS_FILE,
    TOKENIZER_FILE,
    TOKENIZER_FILES,
    VOCAB_FILE,
    CheckpointError,
    Location,
    read_json,
    shown,
    write_json,
)

if TYPE_CHECKING:
    import torch


_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "word_delimiter_token")


Offset = dict[str, Any]
"""`char` or `word`, and the frames `start_offset` up to, without, `end_offset`."""


@dataclass(frozen=True)
class Decoded:
    """Texts with the frames of their characters or words; of several rows, each attribute is a list of these.

    Attributes:
        text: the text.
        char_offsets: of each character, spaces included; None if not requested.
        word_offsets: of each word; None if not requested.
    """

    text: Any
    char_offsets: list[Any] | None
    word_offsets: list[Any] | None

    def __getitem__(self, name: str) -> Any:
        """Return an attribute by its name."""
        return getattr(self, name)


# -------------------------------------------------------------------------------------------------- tokenizer
@dataclass(frozen=True, kw_only=True)
class CTCTokenizer:
    """The vocabulary of a CTC head, with the defaults of transformers' Wav2Vec2CTCTokenizer.

    Attributes:
        vocab: token to id, as in `vocab.json`.
        added: tokens that are not in `vocab.json`, and their ids. Special tokens in neither get the next free ids, as
            in transformers.
        bos_token: start of sentence.
        eos_token: end of sentence.
        unk_token: replaces characters that the vocabulary lacks; part of the decoded text.
        pad_token: the CTC blank.
        word_delimiter_token: separates words.
        replace_word_delimiter_char: the delimiter in text.
        do_lower_case: the vocabulary is upper case and the text lower case.
        extra: other keys of `tokenizer_config.json`, written back unchanged. `clean_up_tokenization_spaces` is one of
            them and has no effect: it would join words that have times of their own.

    Raises:
        ValueError: the vocabulary is empty, ids are negative or not unique, or a setting has the wrong type.
    """

    vocab: Mapping[str, int]
    added: Mapping[str, int] = field(default_factory=dict)
    bos_token: str | None = "<s>"
    eos_token: str | None = "</s>"
    unk_token: str | None = "<unk>"
    pad_token: str | None = "<pad>"
    word_delimiter_token: str | None = "|"
    replace_word_delimiter_char: str = " "
    do_lower_case: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in _SPECIAL:
            if not isinstance(getattr(self, name), str | None):
                msg = f"{name} must be a string or null, not {getattr(self, name)!r}"
                raise ValueError(msg)
        if not isinstance(self.replace_word_delimiter_char, str) or not isinstance(self.do_lower_case, bool):
            msg = "replace_word_delimiter_char must be a string and do_lower_case true or false"
            raise ValueError(msg)
        names: dict[int, str] = {}
        for token, index in self.vocab.items():
            if not isinstance(index, int) or isinstance(index, bool) or index < 0:
                msg = f"the vocabulary gives {token!r} the id {index!r}, which is not an integer from 0 up"
                raise ValueError(msg)
            if index in names:
                msg = f"the vocabulary gives {names[index]!r} and {token!r} the same id {index}"
                raise ValueError(msg)
            names[index] = token
        if not names:
            msg = "the vocabulary is empty"
            raise ValueError(msg)

    @cached_property
    def ids(self) -> dict[str, int]:
        """All tokens and their ids: the vocabulary, the added tokens, and special tokens in neither."""
        ids = {**self.added, **self.vocab}
        for name in _SPECIAL:
            token = getattr(self, name)
            if token is not None and token not in ids:
                ids[token] = len(ids)
        return ids

    @cached_property
    def tokens(self) -> dict[int, str]:
        """The inverse of `ids`; for an id of two tokens, the token of the vocabulary."""
        return {
            **{index: token for token, index in self.ids.items()},
            **{i: t for t, i in self.vocab.items()},
        }

    def _id(self, token: str | None) -> int | None:
        return None if token is None else self.ids[token]

    @property
    def pad_id(self) -> int | None:
        """Id of the blank in this tokenizer; that of the model is `config.pad_token_id`."""
        return self._id(self.pad_token)

    @property
    def bos_id(self) -> int | None:
        """Id of the start of sentence."""
        return self._id(self.bos_token)

    @property
    def eos_id(self) -> int | None:
        """Id of the end of sentence."""
        return self._id(self.eos_token)

    @property
    def unk_id(self) -> int | None:
        """Id of the unknown token."""
        return self._id(self.unk_token)

    @property
    def delimiter_id(self) -> int | None:
        """Id of the word delimiter."""
        return self._id(self.word_delimiter_token)

    @property
    def drop_ids(self) -> tuple[int, ...]:
        """The ids to drop after collapsing, for `greedy_path`: start and end of sentence."""
        return tuple(index for index in (self.bos_id, self.eos_id) if index is not None)

    @property
    def pad_token_id(self) -> int | None:
        """`pad_id`, by its name in transformers."""
        return self.pad_id

    @property
    def vocab_size(self) -> int:
        """Number of tokens in `vocab.json`."""
        return len(self.vocab)

    def get_vocab(self) -> dict[str, int]:
        """Return all tokens and their ids."""
        return dict(self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def _long_tokens(self) -> re.Pattern[str]:
        """Matches tokens of several characters, longest first; for those of the vocabulary, with spaces around them."""
        long = sorted((token for token in self.ids if len(token) > 1), key=len, reverse=True)
        forms = [rf"\s*{re.escape(token)}\s*" if token in self.vocab else re.escape(token) for token in long]
        return re.compile("(" + "|".join(forms) + ")") if forms else re.compile(r"(?!)")

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text: one per character (the delimiter for a space), or per token of several characters.

        Raises:
            ValueError: a character has no id, and there is no unknown token.
        """
        ids: list[int] = []
        for position, piece in enumerate(self._long_tokens.split(text)):
            if position % 2:  # re.split returns the matches of the group, the long tokens, at odd positions
                ids.append(self.ids[piece if piece in self.ids else piece.strip()])
                continue
            plain = piece.upper() if self.do_lower_case else piece
            ids.extend(self._character_id(character) for character in plain)
        return ids

    def _character_id(self, character: str) -> int:
        token = character
        if character == " " and self.word_delimiter_token is not None:
            token = self.word_delimiter_token
        index = self.ids.get(token, None if self.unk_token is None else self.ids[self.unk_token])
        if index is None:
            msg = f"{character!r} is not in the vocabulary, and there is no unknown token"
            raise ValueError(msg)
        return index

    def _spelling(self, token: str) -> str | None:
        """Return the text of a token: empty for the blank; None for the delimiter, which callers replace."""
        if token == self.pad_token:
            return ""
        return None if token == self.word_delimiter_token else token

    @cached_property
    def _spellings(self) -> dict[int, str | None]:
        return {index: self._spelling(token) for index, token in self.tokens.items()}

    def _unknown(self, index: int) -> str | None:
        if self.unk_token is None:
            msg = f"id {index} is not in the vocabulary, and there is no unknown token"
            raise ValueError(msg)
        return self._spelling(self.unk_token)

    def spell(self, token_ids: Iterable[int], space: str) -> list[str]:
        """Return the text of each token, with `space` for the delimiter.

        Raises:
            ValueError: an id is not in the vocabulary, and there is no unknown token.
        """
        known = self._spellings
        spellings = [known[index] if index in known else self._unknown(index) for index in token_ids]
        return [space if spelling is None else spelling for spelling in spellings]

    def text(self, token_ids: Iterable[int]) -> str:
        """Return the text of tokens that are collapsed already: equal neighbours are both kept.

        Blanks are dropped, and the delimiter becomes `replace_word_delimiter_char`. Spaces at the ends are stripped;
        those inside are kept, two in a row for two delimiters.

        Raises:
            ValueError: an id is not in the vocabulary, and there is no unknown token.
        """
        text = "".join(self.spell(map(int, token_ids), self.replace_word_delimiter_char)).strip()
        return text.lower() if self.do_lower_case else text

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        *,
        group_tokens: bool = True,
        output_char_offsets: bool = False,
        output_word_offsets: bool = False,
    ) -> "str | Decoded":
        """Return the text of the best token of each frame, as transformers' tokenizer does.

        Args:
            token_ids: `(T,)` integers: a list, an array or a tensor.
            skip_special_tokens: leave out unknown tokens and starts and ends of sentences, after repeats are collapsed.
                (transformers leaves them out before, and so loses double letters.)
            group_tokens: collapse repeats.
            output_char_offsets: return the frames of each character.
            output_word_offsets: return the frames of each word.

        Returns:
            The text; with offsets, a `Decoded`.

        Raises:
            ValueError: an id is not in the vocabulary, and there is no unknown token.
        """
        ids = [int(index) for index in token_ids]
        grouped = [(token, len(list(group))) for token, group in itertools.groupby(ids)]
        runs = grouped if group_tokens else [(token, 1) for token in ids]
        skipped = {self.bos_id, self.eos_id, self.unk_id} if skip_special_tokens else set()
        chars: list[Offset] = []
        start = 0
        space = self.replace_word_delimiter_char
        for (token, length), spelling in zip(runs, self.spell((run for run, _ in runs), space), strict=True):
            if spelling and token not in skipped:
                shown_as = spelling.lower() if self.do_lower_case else spelling
                chars.append({"char": shown_as, "start_offset": start, "end_offset": start + length})
            start += length
        text = "".join(char["char"] for char in chars).strip()
        if not (output_char_offsets or output_word_offsets):
            return text
        groups = itertools.groupby(chars, key=lambda char: char["char"] == space)
        words_of = [list(group) for is_space, group in groups if not is_space]
        word_offsets: list[Offset] = [
            {
                "word": "".join(char["char"] for char in word),
                "start_offset": word[0]["start_offset"],
                "end_offset": word[-1]["end_offset"],
            }
            for word in words_of
        ]
        return Decoded(text, chars if output_char_offsets else None, word_offsets if output_word_offsets else None)

    def batch_decode(self, sequences: Iterable[Any], skip_special_tokens: bool = False, **options: bool) -> Any:
        """Return `decode` of each row of `(B, T)`: a list of texts; with offsets, one `Decoded` of lists."""
        results = [self.decode(row, skip_special_tokens, **options) for row in sequences]
        texts = [result for result in results if isinstance(result, str)]
        decoded = [result for result in results if isinstance(result, Decoded)]
        if not decoded:
            return texts
        columns = ([getattr(row, item.name) for row in decoded] for item in dataclasses.fields(Decoded))
        return Decoded(*(None if None in column else column for column in columns))

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        padding: Padding = False,
        max_length: int | None = None,
        return_tensors: TensorType = None,
    ) -> Encoding:
        """Return the ids of a text or of several, with the arguments and results of transformers' tokenizers.

        Returns:
            `input_ids` and `attention_mask`: lists of integers for one text, lists of these for several; with
            `return_tensors` always `(B, L)`. Rows are padded with the id of `pad_token`, which no loss counts.

        Raises:
            ValueError: a character has no id, and there is no unknown token; or rows of one tensor differ in length.
        """
        rows = [np.array(self.encode(row), np.int64) for row in ([text] if isinstance(text, str) else text)]
        length = target_length([len(row) for row in rows], padding, max_length)
        masks = padded([np.ones(len(row), np.int64) for row in rows], length, 0)
        columns = {"input_ids": padded(rows, length, self.pad_id or 0), "attention_mask": masks}
        if return_tensors is None:
            lists = {name: [row.tolist() for row in column] for name, column in columns.items()}
            return Encoding({name: column[0] if isinstance(text, str) else column for name, column in lists.items()})
        return Encoding({name: in_type(column, return_tensors) for name, column in columns.items()})

    @classmethod
    def from_pretrained(
        cls,
        location: Location,
        *,
        target_lang: str | None = None,
        revision: str | None = None,
        token: hub.Token = None,
        cache_dir: Location | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Read `vocab.json` and, if they exist, the other files of transformers' tokenizers.

        Args:
            location: a directory, any fsspec URI of one, or a name on the hub (`ORG/NAME`, `ORG/NAME@REVISION`).
            target_lang: the language to take from a nested, multi-lingual vocabulary; None: that of the files.
            revision: of a checkpoint on the hub, see `sewd_model.hub.directory`, and so for the next three.
            token: see `revision`.
            cache_dir: see `revision`.
            local_files_only: see `revision`.

        Raises:
            CheckpointError: `vocab.json` is missing, a file is malformed, or the language is missing or unknown.
            OSError: the store or the hub cannot be read.
        """
        location = hub.directory(
            location,
            TOKENIZER_FILES,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        vocab = read_json(location, VOCAB_FILE)
        if vocab is None:
            msg = f"there is no {VOCAB_FILE} in {shown(location)}"
            raise CheckpointError(msg)
        settings = read_json(location, TOKENIZER_FILE) or {}
        target_lang = settings.pop("target_lang", None) if target_lang is None else target_lang
        decoder = settings.pop("added_tokens_decoder", None)
        if decoder is None:
            settings.update(read_json(location, SPECIAL_TOKENS_FILE) or {})
            added = read_json(location, ADDED_TOKENS_FILE) or {}
        try:
            if decoder is not None:
                added = {_content(token): int(index) for index, token in decoder.items()}
            vocab = _choose_language(vocab, target_lang)
            names = {item.name for item in dataclasses.fields(cls)} - {"vocab", "added", "extra"}
            known = {name: _content(value) for name, value in settings.items() if name in names}
            extra = {name: value for name, value in settings.items() if name not in names | {"target_lang"}}
            added = {token: index for token, index in added.items() if token not in vocab}
            return cls(vocab=vocab, added=added, **known, extra=extra)
        except (ValueError, TypeError, AttributeError, LookupError) as error:
            msg = f"the tokenizer in {shown(location)} ({VOCAB_FILE}, {TOKENIZER_FILE}): {error}"
            raise CheckpointError(msg) from error

    def save_pretrained(self, location: Location) -> None:
        """Write `vocab.json`, `tokenizer_config.json` and, if there are added tokens, `added_tokens.json`.

        Raises:
            CheckpointError: `location` is the name of the bundled model.
            OSError: the store cannot be written.
        """
        write_json(location, VOCAB_FILE, dict(self.vocab))
        settings: dict[str, Any] = {"tokenizer_class": "Wav2Vec2CTCTokenizer", **self.extra}
        for item in dataclasses.fields(self):
            if item.name not in ("vocab", "added", "extra"):
                settings[item.name] = getattr(self, item.name)
        write_json(location, TOKENIZER_FILE, settings)
        if self.added:
            write_json(location, ADDED_TOKENS_FILE, dict(self.added))


def _content(token: object) -> Any:
    """Return the text of a token: files contain it as a string, or as an object with its stripping rules."""
    return token["content"] if isinstance(token, dict) else token


def _choose_language(vocab: dict[str, Any], target_lang: str | None) -> dict[str, int]:
    nested = any(isinstance(value, dict) for value in vocab.values())
    if not nested:
        return vocab
    if target_lang is None:
        msg = f"the vocabulary is multi-lingual; target_lang must name one of {', '.join(sorted(vocab))}"
        raise ValueError(msg)
    if not isinstance(vocab.get(target_lang), dict):
        msg = f"target_lang {target_lang!r} is not in the vocabulary; it has {', '.join(sorted(vocab))}"
        raise ValueError(msg)
    return dict(vocab[target_lang])


# ------------------------------------------------------------------------------------------------ greedy path
@dataclass(frozen=True)
class GreedyPath:
    """The tokens of a clip by greedy CTC decoding, in time order.

    Attributes:
        token_ids: `(n,)` int64.
        start_frames: `(n,)` int64, the first frame of each token's run of equal frames.
        end_frames: `(n,)` int64, one past its last frame.
        probabilities: `(n,)` float32, exp of the mean log-softmax of the token over its run.
        num_frames: frames of the clip.
    """

    token_ids: NDArray[np.int64]
    start_frames: NDArray[np.int64]
    end_frames: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    num_frames: int

    def take(self, chosen: "slice | NDArray[np.bool_]") -> "GreedyPath":
        """The path with some of the tokens, over the same frames."""
        return GreedyPath(
            token_ids=self.token_ids[chosen],
            start_frames=self.start_frames[chosen],
            end_frames=self.end_frames[chosen],
            probabilities=self.probabilities[chosen],
            num_frames=self.num_frames,
        )


def greedy_path(logits: "torch.Tensor | NDArray[np.floating[Any]]", blank: int, drop: Sequence[int] = ()) -> GreedyPath:
    """Take the best token of each frame, collapse runs, drop the blank, then drop the ids in `drop`.

    Args:
        logits: `(T, V)` of one clip, its own frames only; any floating point type, converted to float32.
        blank: id of the blank (`config.pad_token_id`).
        drop: ids to drop *after* collapsing, such as `CTCTokenizer.drop_ids`. They still separate equal tokens on both
            sides of them.

    Returns:
        The path; empty for T = 0. Of tokens with equal scores, the lowest id wins.

    Raises:
        ValueError: `logits` is not two-dimensional, has a frame whose best score is not finite, or `blank` is not one
            of its columns.
    """
    if hasattr(logits, "detach"):
        logits = logits.detach().float().cpu().numpy()
    scores = np.asarray(logits, dtype=np.float32)
    if scores.ndim != 2 or not 0 <= blank < scores.shape[1]:
        msg = f"logits must be (frames, tokens) with the blank {blank} among the tokens, not {scores.shape}"
        raise ValueError(msg)
    num_frames = scores.shape[0]
    best = scores.argmax(axis=1)  # (T,), the lowest id of equal scores
    top = scores[np.arange(num_frames), best]  # (T,)
    if not np.isfinite(top).all():
        msg = "logits have a frame without a finite best score: it is NaN or infinite"
        raise ValueError(msg)
    with np.errstate(under="ignore", over="ignore"):
        log_probability = -np.log(np.exp(scores - top[:, None]).sum(axis=1))  # the best token's own log-softmax
    return greedy_paths(best, log_probability, [num_frames], blank, drop)[0]


def greedy_paths(
    best: NDArray[np.integer[Any]],
    log_probabilities: NDArray[np.float32],
    num_frames: "Sequence[int] | NDArray[np.integer[Any]]",
    blank: int,
    drop: Sequence[int] = (),
) -> list[GreedyPath]:
    """Return the path of each of several clips, from the best token of each frame.

    Args:
        best: `(sum(num_frames),)`, the best token of each frame, clips end to end.
        log_probabilities: of the same shape, its log-softmax.
        num_frames: frames of each clip.
        blank: as for `greedy_path`.
        drop: as for `greedy_path`.
    """
    counts = np.asarray(num_frames, np.int64)
    clip_ends = counts.cumsum()
    clip_starts = clip_ends - counts
    total = len(best)
    changes = np.ones(total, bool)
    np.not_equal(best[1:], best[:-1], out=changes[1:])
    changes[clip_starts[counts > 0]] = True
    starts = np.flatnonzero(changes)  # (runs,), a run starts where the token or the clip changes
    ends = np.append(starts[1:], total).astype(np.int64)[: len(starts)]
    sums = np.add.reduceat(log_probabilities, starts) if total else np.zeros(0, np.float32)
    probabilities = np.exp(sums / (ends - starts)).astype(np.float32)

    runs = best[starts]
    keep = runs != blank
    for token in drop:
        keep &= runs != token
    starts, ends = starts[keep], ends[keep]
    tokens, probabilities = runs[keep].astype(np.int64), probabilities[keep]
    edges = np.searchsorted(starts, np.append(clip_starts, total))  # the tokens of each clip
    first_frames = clip_starts.repeat(np.diff(edges))
    starts, ends = starts - first_frames, ends - first_frames
    return [
        GreedyPath(tokens[first:last], starts[first:last], ends[first:last], probabilities[first:last], frames)
        for (first, last), frames in zip(itertools.pairwise(edges.tolist()), counts.tolist(), strict=True)
    ]


def split_at_gaps(path: GreedyPath, gap_frames: int) -> list[GreedyPath]:
    """Cut a path where at least `gap_frames` frames lie between the end of a token and the start of the next.

    Args:
        path: of one clip.
        gap_frames: at least 1.

    Returns:
        The pieces, in order, with the frames of the clip; one, the path, without such a gap.
    """
    gaps = path.start_frames[1:] - path.end_frames[:-1]
    edges = [0, *(np.flatnonzero(gaps >= gap_frames) + 1).tolist(), len(path.token_ids)]
    if len(edges) == 2:
        return [path]
    return [path.take(slice(start, stop)) for start, stop in itertools.pairwise(edges)]


# ------------------------------------------------------------------------------------------------------ words
@dataclass(frozen=True)
class Word:
    """One word of a clip.

    Attributes:
        word: its text, without spaces.
        start_s: seconds from the start of the clip to the first frame of its first token.
        end_s: seconds to the end of the last frame of its last token.
        confidence: geometric mean of its tokens' probabilities, 0 to 1.
    """

    word: str
    start_s: float
    end_s: float
    confidence: float


def words(path: GreedyPath, tokenizer: CTCTokenizer, seconds_per_frame: float) -> list[Word]:
    """Group the tokens of a path into words: maximal runs without a delimiter.

    Joined by single spaces, the words are `" ".join(tokenizer.text(path.token_ids).split())` (if the delimiter
    becomes a space, as it does by default).

    Args:
        path: of one clip.
        tokenizer: of the model that computed the path.
        seconds_per_frame: `config.hop_length / sampling_rate`.

    Raises:
        ValueError: an id is not in the vocabulary, and there is no unknown token.
    """
    pieces = tokenizer.spell(path.token_ids.tolist(), " ")
    text = "".join(pieces)
    # token_of[i] is the position in the path of the token that character i belongs to
    token_of = [position for position, piece in enumerate(pieces) for _ in piece]
    with np.errstate(divide="ignore"):
        logs = np.log(path.probabilities, dtype=np.float64).tolist()
    starts, ends = path.start_frames.tolist(), path.end_frames.tolist()
    found_words = []
    for match in re.finditer(r"\S+", text):
        first, last = token_of[match.start()], token_of[match.end() - 1]
        confidence = math.exp(math.fsum(logs[first : last + 1]) / (last + 1 - first))
        found_words.append(
            Word(
                word=match.group().lower() if tokenizer.do_lower_case else match.group(),
                start_s=starts[first] * seconds_per_frame,
                end_s=ends[last] * seconds_per_frame,
                confidence=confidence,
            )
        )
    return found_words
