"""Texts as words of tokens, and the texts of recordings in files."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Final, NamedTuple

from pipeline.corpus.naming import composed, relative_path, stem, suffix
from pipeline.errors import UsageError
from pipeline.scoring.references import References, load_references
from pipeline.storage import objects, uris
from sewd_model import CTCTokenizer

_APOSTROPHES: Final = str.maketrans(dict.fromkeys("\u2018\u2019\u201b\u02bb\u02bc`\u00b4", "'"))


class TextWord(NamedTuple):
    """A word of a text.

    Attributes:
        word: as it is written.
        ids: its tokens; none, if the vocabulary has none of its characters.
        is_spelled: whether the vocabulary has all its letters and digits.
    """

    word: str
    ids: tuple[int, ...]
    is_spelled: bool


def text_words(text: str, tokenizer: CTCTokenizer) -> list[TextWord]:
    """Split a text at white space, and spell each word with the tokens of a model.

    A character is taken as it is, else in the other case, else without its accent; typographic apostrophes as `'`.
    Other characters are left out: punctuation, mostly. Numbers are not expanded: a word of digits has no
    tokens unless the vocabulary has digits.
    """
    spelled: dict[str, TextWord] = {}
    for word in text.split():
        if word not in spelled:
            spelled[word] = _spelled(word, tokenizer)
    return [spelled[word] for word in text.split()]


def _spelled(word: str, tokenizer: CTCTokenizer) -> TextWord:
    known = ""
    is_spelled = True
    for character in unicodedata.normalize("NFC", word).translate(_APOSTROPHES):
        found = _known(character, tokenizer)
        known += found
        is_spelled &= bool(found) or not character.isalnum()
    special = {tokenizer.unk_id, tokenizer.pad_id, tokenizer.delimiter_id, *tokenizer.drop_ids}
    ids = tuple(token for token in tokenizer.encode(known) if token not in special)
    return TextWord(word, ids, is_spelled)


def _known(character: str, tokenizer: CTCTokenizer) -> str:
    """The character as the vocabulary has it; empty if it does not."""
    base = unicodedata.normalize("NFKD", character)[0]
    for form in (character, character.upper(), character.lower(), base, base.upper(), base.lower()):
        if form in tokenizer.ids and form != tokenizer.word_delimiter_token:
            return form.lower() if tokenizer.do_lower_case else form
    return ""


def read_texts(uri: str, recordings: Sequence[tuple[str, str | None]]) -> References:
    """Read the texts of recordings.

    Args:
        uri: a `.txt` file, the text of the only recording; a directory of such, each named as its audio; else a file of
            references (`pipeline.scoring.references`).
        recordings: ids of recordings and of utterances, and the path of the audio where the id does not end in it.

    Raises:
        UsageError: there is no such file, it cannot be read, or a `.txt` file is given for several recordings.
        StorageError: storage could not be reached.
    """
    uri = uris.absolute(uri)
    if suffix(uri) == "txt" and not uri.endswith(".trans.txt"):
        return _only_text(uri, [name for name, _ in recordings])
    if suffix(uri) or objects.is_object(uri):
        return load_references(uri).with_names(recordings)
    files = [found.uri for found in objects.list_objects(uri) if suffix(found.uri) == "txt"]
    if not files:
        raise UsageError(f"--text: there are no .txt files in {uri}")
    names = [stem(relative_path(file, uri)) for file in files]
    index = {composed(name): position for position, name in enumerate(names)}
    texts = tuple(map(_read, files))
    return References(uri, index, texts, (None,) * len(files), (), dict(enumerate(names))).with_names(recordings)


def _only_text(uri: str, recordings: Sequence[str]) -> References:
    if len(recordings) != 1:
        raise UsageError(
            f"--text: {uri} is the text of one recording, and there are {len(recordings)}: give a directory of .txt "
            "files, named as the recordings are, or a table of texts"
        )
    return References(uri, {composed(recordings[0]): 0}, (_read(uri),), (None,), ())


def _read(uri: str) -> str:
    try:
        return objects.fetch(uri).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise UsageError(f"--text: there is no {uri}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--text: {uri} is not UTF-8") from error
