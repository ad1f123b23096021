"""Data sets on the Hugging Face Hub, `hf://datasets/OWNER/NAME[@REVISION]/path`, to read.

`HfFileSystem` keeps listings for the life of the process, retries by itself, and asks for a file's entry before each
range. Here nothing is cached but that a repository exists, and `pipeline.storage.retry` is the layer that retries.
"""

from __future__ import annotations

from typing import Any

from huggingface_hub import HfApi, HfFileSystem, get_session, hf_hub_url
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]  # public by its docs

_HubFileSystem: Any = HfFileSystem
TIMEOUT_S = 30.0  # to connect, and between two pieces of an answer


class HubFileSystem(_HubFileSystem):  # type: ignore[misc]  # what it returns has no types here
    """`HfFileSystem` without caches of listings, and without retries."""

    def resolve_path(self, path: str, *args: Any, **options: Any) -> Any:
        """Return the repository that `path` names, and the path in it.

        Raises:
            FileNotFoundError: no repository can have its name.
        """
        try:
            return super().resolve_path(path, *args, **options)
        except (ValueError, NotImplementedError) as error:
            raise FileNotFoundError(f"hf://{path}: {error}") from error

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Describe the file or directory at `path`, as it is now.

        Raises:
            FileNotFoundError: there is none, or no such repository that the token may read.
        """
        place: Any = self.resolve_path(path)
        name = place.unresolve()
        if not hasattr(place, "repo_id"):  # a bucket
            return dict(super().info(path, refresh=True))
        if not place.path_in_repo:
            return {"name": name, "size": 0, "type": "directory"}
        api = HfApi(endpoint=self.endpoint, token=self.token)
        found: Any = api.get_paths_info(
            place.repo_id, [place.path_in_repo], revision=place.revision, repo_type=place.repo_type
        )
        if not found:
            raise FileNotFoundError(f"{path} is not in the repository")
        if (blob_id := getattr(found[0], "blob_id", None)) is None:
            return {"name": name, "size": 0, "type": "directory"}
        return {"name": name, "size": found[0].size, "type": "file", "blob_id": blob_id}

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """List a directory, as it is now."""
        return list(super().ls(path, detail=detail, refresh=True))

    def find(self, path: str, detail: bool = False, **_: Any) -> Any:
        """List everything below a directory, as it is now."""
        return super().find(path, detail=detail, refresh=True)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """Read the file at `path`, or its half-open range `start`..`end`, in one request."""
        place: Any = self.resolve_path(path)
        if not hasattr(place, "repo_id"):
            return bytes(super().cat_file(path, start, end))
        url = hf_hub_url(
            place.repo_id,
            place.path_in_repo,
            repo_type=place.repo_type,
            revision=place.revision,
            endpoint=self.endpoint,
        )
        headers = build_hf_headers(token=self.token)
        if start is not None or end is not None:
            headers["Range"] = f"bytes={start or 0}-{'' if end is None else end - 1}"
        answer = get_session().get(url, headers=headers, timeout=TIMEOUT_S, follow_redirects=True)
        hf_raise_for_status(answer)
        return bytes(answer.content)
