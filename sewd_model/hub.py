"""Checkpoints on the Hugging Face Hub by the names that people use: `ORG/NAME`, `ORG/NAME@REVISION`, `hf://ORG/NAME`.

huggingface_hub downloads, with its cache, token, offline mode and endpoint: `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`,
`HF_HUB_OFFLINE` and `HF_ENDPOINT` mean what they mean elsewhere. As there, what is in the cache is used where the hub
cannot be reached. This module adds four things:

* A revision is looked up once; the commit that it names then holds for every file.
* Only files that are needed are downloaded, the weights last: the checkpoint of another architecture costs its
  `config.json`.
* Offline, a file counts as absent only if the cache knows that the commit lacks it. A cache that is not complete never
  gives other results.
* No request waits without limit, and an error is one line, of one of the two kinds of `sewd_model.files`.
"""

import itertools
import logging
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote

from sewd_model.architecture import check_architecture
from sewd_model.files import (
    BUNDLED,
    CONFIG_FILE,
    MAX_JSON_BYTES,
    WEIGHT_FILES,
    CheckpointError,
    Location,
    read_json,
    shown,
    too_large,
)

HUB: Final = "hf://"
Token = str | bool | None  # as huggingface_hub has it: None: the user's own, if there is one; False: none

_MAIN = "main"
# A `/` after the revision would begin a path below it, which is storage; those that the hub makes itself have some.
_REFERENCE = r"refs/convert/\w+|refs/pr/\d+"
_NAME = re.compile(rf"(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>{_REFERENCE}|[^\s/]+))?", re.ASCII)
_QUERY = re.compile(r"\?[\w.-]+=\S*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NO_ORGS = ("models", "datasets", "spaces", "buckets", "kernels")  # `hf://datasets/ORG/NAME/...` is storage
_SIGN_IN = "set HF_TOKEN, or run `hf auth login`"


@dataclass(frozen=True)
class HubName:
    """A checkpoint on the hub.

    Attributes:
        repo: `ORG/NAME`.
        revision: branch, tag or commit hash; None: the branch `main`.
        tried: the directory that does not exist, where the name could have been that of a directory.
    """

    repo: str
    revision: str | None = None
    tried: str | None = None

    @property
    def uri(self) -> str:
        """The name as `hf://ORG/NAME[@REVISION]`, which means the same in every directory and on every machine."""
        if not self.revision:
            return f"{HUB}{self.repo}"
        safe = "/" if re.fullmatch(_REFERENCE, self.revision) else ""
        return f"{HUB}{self.repo}@{quote(self.revision, safe)}"

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit hash, which never means anything else."""
        return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None


def hub_name(location: Location) -> HubName | None:
    """Return the checkpoint on the hub that a location names; None if it is a directory or the URI of one.

    A directory or file of that name wins, and a path object is always a path.
    """
    if not isinstance(location, str):
        return None
    if location.startswith(HUB):
        text, tried = location.removeprefix(HUB).removeprefix("models/"), None
    elif os.path.lexists(location):
        return None
    else:
        text, tried = location, str(Path(location).absolute())
    match = _NAME.fullmatch(text)
    if match is None or text.partition("/")[0] in _NO_ORGS:
        return None
    revision = unquote(match["revision"] or _MAIN)
    return HubName(match["repo"], None if revision == _MAIN else revision, tried)


def directory(
    location: Location,
    wanted: Collection[str],
    *,
    weights: bool = False,
    revision: str | None = None,
    token: Token = None,
    cache_dir: Location | None = None,
    local_files_only: bool = False,
) -> Location:
    """Return where the files of a checkpoint can be read: the location itself, or its directory in the hub's cache.

    Args:
        location: a directory, any fsspec URI of one, `bundled`, or a name on the hub.
        wanted: files to download, if they exist, beside `config.json`.
        weights: download the weights too.
        revision: branch, tag or commit hash on the hub; a directory or URI has none, and ignores it.
        token: for the hub; None: that of the environment or of `hf auth login`; False: none.
        cache_dir: the hub's cache; None: the user's.
        local_files_only: use the cache alone, as with `HF_HUB_OFFLINE=1`.

    Raises:
        CheckpointError: there is no such checkpoint, it is of another architecture, or access is refused.
        OSError: the hub cannot be reached.
        ValueError: the location has another revision than `revision`.
    """
    name = hub_name(location)
    if name is None:
        is_path = isinstance(location, str) and location != BUNDLED and "://" not in location
        if is_path and not os.path.lexists(location):
            msg = f"there is no directory {Path(location).absolute()} (a checkpoint on the hub is named ORG/NAME)"
            raise CheckpointError(msg)
        return location
    if revision is not None:
        if name.revision not in (None, revision):
            msg = f"{location} has another revision than {revision!r}: give one of them"
            raise ValueError(msg)
        name = HubName(name.repo, revision, name.tried)
    files = fetch(name, wanted, weights=weights, token=token, cache_dir=cache_dir, local_files_only=local_files_only)
    return str(files[0].parent)


def fetch(
    name: HubName,
    wanted: Collection[str],
    *,
    weights: bool = False,
    every_copy: bool = False,
    token: Token = None,
    cache_dir: Location | None = None,
    local_files_only: bool = False,
) -> list[Path]:
    """Download files of a checkpoint into the hub's cache, those that it lacks.

    With `every_copy`, the weights of every format, not only those that are loaded.

    Returns:
        `config.json`, then those of `wanted` that exist, then the files of the weights (see
        `sewd_model.checkpoint` for which are preferred). All are in one directory, whose name is the commit hash.

    Raises:
        CheckpointError, OSError: see `directory`.
    """
    hub = _Hub(name, token, None if cache_dir is None else os.fspath(cache_dir), local_files_only)
    config = hub.file(CONFIG_FILE)
    if config is None:
        msg = f"{hub.where} has no {CONFIG_FILE}: it holds no checkpoint that transformers could load"
        raise CheckpointError(msg)
    folder = config.parent
    hub.commit = folder.name
    found = [config, *filter(None, map(hub.file, (item for item in wanted if item != CONFIG_FILE)))]
    if not weights:
        return found
    check_architecture(read_json(folder, CONFIG_FILE) or {}, shown(folder))
    copies = filter(None, (_weights(hub, folder, whole) for whole in WEIGHT_FILES))
    for copy in copies if every_copy else itertools.islice(copies, 1):
        found += copy
    return found


def _weights(hub: "_Hub", folder: Path, whole: str) -> list[Path]:
    """Return the weights in one format: the file `whole`, or its index and what that names; empty if there are none."""
    if (path := hub.file(whole)) is not None:
        return [path]
    if (index := hub.file(f"{whole}.index.json")) is None:
        return []
    shards = (read_json(folder, index.name) or {}).get("weight_map")
    names = sorted({str(shard) for shard in shards.values()}) if isinstance(shards, dict) else []
    # A name that is a path is refused where the index is read.
    return [index, *filter(None, (hub.file(shard) for shard in names if Path(shard).name == shard))]


class _Hub:
    """The files of one checkpoint, by way of the hub's cache."""

    def __init__(self, name: HubName, token: Token, cache_dir: str | None, local_files_only: bool) -> None:
        from huggingface_hub import constants  # noqa: PLC0415 - takes a quarter of a second, and only the hub needs it

        self._name, self._token, self._cache = name, token, cache_dir
        self._endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
        self._offline = local_files_only or constants.is_offline_mode()
        self._failure: BaseException | None = None  # why the hub is not asked any more
        self.commit = name.revision if name.is_pinned else None

    @property
    def where(self) -> str:
        """The checkpoint, for messages."""
        at = f"@{self._name.revision}" if self._name.revision else ""
        return f"{self._name.repo}{at} on {shown(self._endpoint)}"

    def file(self, name: str) -> Path | None:
        """Return the path of a file in the cache; None if the commit has no such file.

        Raises:
            CheckpointError, OSError: see `directory`.
        """
        from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 - as above
        from huggingface_hub.errors import HFValidationError  # noqa: PLC0415

        try:
            if self.commit is not None:
                known = try_to_load_from_cache(self._name.repo, name, self._cache, self.commit)
                if known is not None:
                    return Path(known) if isinstance(known, str) else None
            return self._from_cache(name) if self._offline or self._failure else self._download(name)
        except HFValidationError as error:
            msg = f"{self._tried}{self._name.uri} is no name of the hub: {_line(error)}"
            raise CheckpointError(msg) from error

    def _download(self, name: str) -> Path | None:
        import httpx2  # noqa: PLC0415 - the client of huggingface_hub
        from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url  # noqa: PLC0415
        from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError, RevisionNotFoundError  # noqa: PLC0415

        revision = self.commit or self._name.revision
        url = hf_hub_url(self._name.repo, name, revision=revision, endpoint=self._endpoint)
        try:
            # The download alone would make its first request again for minutes if the hub does not answer.
            found = get_hf_file_metadata(
                url, self._token, timeout=constants.HF_HUB_ETAG_TIMEOUT, endpoint=self._endpoint
            )
            if name.endswith(".json") and (found.size or 0) > MAX_JSON_BYTES:
                raise CheckpointError(too_large(name, self.where, found.size or 0))
        except RemoteEntryNotFoundError:
            pass  # the download notes in the cache that there is no such file
        except RevisionNotFoundError as error:
            msg = f"{self._tried}{shown(self._endpoint)} has no revision {self._name.revision} of {self._name.repo}"
            raise CheckpointError(msg) from error
        except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:
            self._failure = error
            return self._from_cache(name)
        try:
            return Path(self._hub_download(name, revision))
        except RemoteEntryNotFoundError:
            return None
        except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:
            msg = f"{name} of {self.where} could not be downloaded: {_reason(error)}"
            raise ConnectionError(msg) from error

    def _from_cache(self, name: str) -> Path | None:
        """Return the file, or None if the commit has none, by the cache alone."""
        from huggingface_hub import get_cached_repo_tree  # noqa: PLC0415
        from huggingface_hub.errors import CachedRepoTreeNotFoundError, LocalEntryNotFoundError  # noqa: PLC0415

        revision = self.commit or self._name.revision
        try:
            return Path(self._hub_download(name, revision, local_files_only=True))
        except LocalEntryNotFoundError:
            pass
        if self.commit is not None:
            try:
                listed = get_cached_repo_tree(self._name.repo, revision=self.commit, cache_dir=self._cache)
            except CachedRepoTreeNotFoundError:
                listed = None
            if listed is not None and name not in (file.path for file in listed):
                return None
        raise self._error(name)

    def _hub_download(self, name: str, revision: str | None, **options: Any) -> str:
        from huggingface_hub import hf_hub_download  # noqa: PLC0415

        for module in ("file_download", "utils._http"):  # those that log addresses; a filter is added once
            logging.getLogger(f"huggingface_hub.{module}").addFilter(_without_signatures)
        path: str = hf_hub_download(
            self._name.repo,
            name,
            revision=revision,
            token=self._token,
            cache_dir=self._cache,
            endpoint=self._endpoint,
            **options,
        )
        return path

    @property
    def _tried(self) -> str:
        return f"there is no directory {self._name.tried}, and " if self._name.tried else ""

    def _error(self, file: str) -> Exception:
        """Return the error for a file that is neither in the cache nor to be had from the hub."""
        from huggingface_hub import constants  # noqa: PLC0415
        from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled  # noqa: PLC0415

        failure, repo, endpoint = self._failure, self._name.repo, shown(self._endpoint)
        cache = self._cache or constants.HF_HUB_CACHE
        status = getattr(getattr(failure, "response", None), "status_code", None)
        if failure is None or isinstance(failure, OfflineModeIsEnabled):
            why = "the hub is not asked (HF_HUB_OFFLINE or local_files_only)"
            lacks = f"{cache} has no {file} of {self.where}: download it once with `hf download {repo}`"
            return CheckpointError(f"{self._tried}{why}, and {lacks}")
        if isinstance(failure, GatedRepoError):
            page = f"accept its conditions on {endpoint}/{repo}"
            return CheckpointError(f"{self._tried}{repo} is gated ({status}): {page}, and {_SIGN_IN}")
        if status in (401, 403):
            why = f"{endpoint} answered {status} for {repo}: the name is wrong, or the model is private and the token"
            return CheckpointError(f"{self._tried}{why} is missing or may not read it ({_SIGN_IN})")
        if status == 404:
            return CheckpointError(
                f"{self._tried}{endpoint} has no model {repo} (404): check the name; for a private model {_SIGN_IN}"
            )
        reason = f"answered {status}" if status else f"cannot be reached: {_reason(failure)}"
        return ConnectionError(f"{self._tried}{endpoint} {reason}, and {cache} has no {file} of {repo}")


def _reason(error: BaseException) -> str:
    """Return the kind of an error, and its status: the text may have the address of a signed download."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return f"status {status}"
    if str(error).startswith("Consistency check failed"):
        return "fewer bytes came than announced"
    return getattr(error, "strerror", None) or type(error).__name__


def _without_signatures(record: logging.LogRecord) -> bool:
    """Cut the queries off the addresses in a record of huggingface_hub: a signed one gives access to private files."""
    record.msg = _QUERY.sub("", str(record.msg))
    if isinstance(record.args, tuple):
        record.args = tuple(_QUERY.sub("", arg) if isinstance(arg, str) else arg for arg in record.args)
    return True


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
