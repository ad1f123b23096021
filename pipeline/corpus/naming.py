"""Paths of audio: extensions, hidden files, the URI that a relative path means, and the utt_id made of a path.

An utterance without an id of its own is called by the path of its audio relative to the INPUT, without extension: the
same for the same audio in a directory, a shard or a manifest.
"""

from __future__ import annotations

import posixpath
import unicodedata
from pathlib import PurePosixPath

_AUDIO_SUFFIXES = """
    wav wave bwf rf64 w64 wv flac aif aiff aifc afc au snd caf sph nist wv1 wv2 voc avr paf pvf ircam svx 8svx iff
    mp3 mp2 mp1 mpa mpga m2a m1a aac adts latm loas ac3 eac3 ec3 dts thd mlp
    ogg oga ogv ogx opus spx webm weba mka mkv mk3d
    m4a m4b m4p m4r m4v mp4 mov qt 3gp 3gpp 3ga 3g2 3gpp2 f4a f4v flv asf wma wmv avi mpg mpeg vob ts mts m2ts
    amr awb gsm g722 ape tta tak mpc ra rm dsf oma aa3 qcp
"""
# Not `htk`: most such files hold features beside the audio. A manifest may name those that hold a waveform.
AUDIO_SUFFIXES = frozenset(_AUDIO_SUFFIXES.split())


def suffix(path: str) -> str:
    """The extension of `path` in lower case, without its dot; empty if there is none."""
    return posixpath.splitext(path)[1].lower().removeprefix(".")


def stem(path: str) -> str:
    """`path` without its last extension. A dot that begins a name does not begin an extension."""
    return posixpath.splitext(path)[0]


def composed(name: str) -> str:
    """`name` in NFC. File systems and editors differ in whether they write `é` as one character or as two."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def spellings(name: str) -> list[str]:
    """The other Unicode forms of `name` in which it may be stored."""
    if name.isascii():
        return []
    return [form for kind in ("NFC", "NFD") if (form := unicodedata.normalize(kind, name)) != name]


def is_hidden(path: str) -> bool:
    """Whether a component of the relative `path` begins with a dot, as files of editors, systems and caches do.

    Names that begin with `_` are not hidden: ids of videos may begin so.
    """
    return any(name.startswith(".") and name not in (".", "..") for name in path.split("/"))


def relative_path(uri: str, root: str) -> str:
    """The path of `uri` below the directory `root`; `uri` itself if it is not below it."""
    return uri.removeprefix(root.rstrip("/") + "/")


def resolve(path: str, base: str) -> str:
    """The URI that `path` means in a manifest or table stored in the directory `base`."""
    path = path.removeprefix("file://")
    if "://" in path or posixpath.isabs(path):
        return path
    if "://" not in base:
        return str(PurePosixPath(base, path))  # the file system resolves any `..`, since it knows the links
    # In the key of an object store a dot has no meaning.
    scheme, _, directory = base.partition("://")
    return f"{scheme}://{posixpath.normpath(posixpath.join(directory, path))}"


def relative_id(path: str, base: str) -> str:
    """The utt_id of audio that has no id, as a source in the directory `base` names it by `path`.

    The path relative to `base`, without extension, in whichever way `path` is written; the URI, without extension,
    if the audio is in another store, where no relative path leads.
    """
    if not posixpath.isabs(path) and "://" not in path and ".." not in path:
        return stem(posixpath.normpath(path))
    uri = resolve(path, base)
    (store, key), (base_store, base_key) = _split_store(uri), _split_store(base)
    return stem(posixpath.relpath(key, base_key) if store == base_store else uri)


def _split_store(uri: str) -> tuple[str, str]:
    """("s3://bucket", "/key") of a URI; ("", path) of a local path."""
    scheme, separator, rest = uri.rpartition("://")
    if not separator:
        return "", uri
    bucket, _, key = rest.partition("/")
    return f"{scheme}://{bucket}", f"/{key}"
