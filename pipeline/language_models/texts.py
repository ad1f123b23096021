"""The sentences that a language model is built from."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterable, Iterator

from pipeline.errors import UsageError
from pipeline.storage import objects


def sentences(uris: Iterable[str], normalize: Callable[[str], str]) -> Iterator[str]:
    """Yield the lines of text files, normalised, file after file.

    Args:
        uris: of the files, UTF-8; those that end in `.gz` are compressed.
        normalize: of a line.

    Raises:
        UsageError: there is no such file, or it is no text.
        StorageError: it could not be read.
    """
    for uri in uris:
        try:
            with objects.open_read(uri) as file:
                plain = gzip.GzipFile(fileobj=file) if uri.endswith(".gz") else file
                for line in io.TextIOWrapper(plain, encoding="utf-8-sig"):
                    yield normalize(line)
        except FileNotFoundError as error:
            raise UsageError(f"text: there is no file {uri}") from error
        except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UsageError(f"text: {uri} is no text in UTF-8: {error}") from error
