"""A server of the Hugging Face Hub's routes on loopback.

For one data set, those that `pipeline.storage.hub` asks for; for models, those that downloads ask for.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import parse_qs, unquote, urlsplit

from huggingface_hub import constants

from tests.support.s3 import web_server

REPOSITORY = "owner/corpus"
SIGNATURE = "CanarySignature"  # of the addresses of weights
_ROUTE = re.compile(
    rf"/api/datasets/{REPOSITORY}(?:/(?P<verb>revision|tree|paths-info)/(?P<revision>[^/]+)(?:/(?P<path>.*))?)?$"
)
_FILE = re.compile(rf"/datasets/{REPOSITORY}/resolve/(?P<revision>[^/]+)/(?P<path>.*)$")
_MODEL = re.compile(r"/api/models/(?P<repo>[\w.-]+/[\w.-]+)/(?P<verb>revision|tree)/(?P<revision>[^/]+)$")
_MODEL_FILE = re.compile(r"/(?P<repo>[\w.-]+/[\w.-]+)/resolve/(?P<revision>[^/]+)/(?P<path>.*)$")


class Hub(BaseHTTPRequestHandler):
    """Serves the directory `server.folder` as the revision `main` of the data set `REPOSITORY`, and `server.models`.

    It appends each request to `server.requests`, and answers as many with 503 as `server.failures` says. With
    `server.token`, a request without this token is answered with 401. Weights of models are behind a redirect to
    another host, which must not see the token. Before an answer of a model it waits for `server.slow_s`, and of a
    file whose name is in `server.cut` it sends half, whatever range is asked for.
    """

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        url = urlsplit(self.path)
        if not self._is_served():
            return
        if (model := _MODEL_FILE.match(url.path)) and not url.path.startswith("/datasets/"):
            self._model_file(model["repo"], unquote(model["revision"]), unquote(model["path"]))
        elif model := _MODEL.match(url.path):
            self._model(model["repo"], model["verb"], unquote(model["revision"]))
        elif url.path == "/api/models":
            self._json([])
        elif url.path.startswith("/models-cdn/"):
            if "Authorization" in self.headers:
                self.server.leaks.append(self.path)
            self._bytes(Path(unquote(url.path.removeprefix("/models-cdn/"))))  # whatever the signature
        elif url.path.startswith("/cdn/"):  # where the Hub redirects to
            self._bytes(self.server.folder / unquote(url.path.removeprefix("/cdn/")))
        elif found := _FILE.match(url.path):
            if self._known(found["revision"]) and self._exists(unquote(found["path"])):
                self._answer(302, b"", Location=f"/cdn/{found['path']}")
        elif (found := _ROUTE.match(url.path)) and self._known(found["revision"] or "main"):
            if found["verb"] == "tree":
                self._tree(unquote(found["path"] or ""), parse_qs(url.query).get("recursive") == ["true"])
            else:
                self._json(
                    {"id": REPOSITORY, "sha": "0" * 40, "private": False, "tags": [], "downloads": 0, "likes": 0}
                )
        elif not found:
            self._refuse(404, "RepoNotFound")

    do_HEAD = do_GET

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        if not self._is_served():
            return
        found = _ROUTE.match(urlsplit(self.path).path)
        if found is None:
            self._refuse(404, "RepoNotFound")
        elif self._known(found["revision"]):
            paths = [path for path in parse_qs(body)["paths"] if (self.server.folder / path).exists()]
            self._json([self._entry(self.server.folder / path) for path in paths])

    def _commit(self, repo, revision):
        """The commit and the folder of a revision; None once the request is refused."""
        time.sleep(self.server.slow_s)
        revisions = self.server.models.get(repo)
        if revisions is None:
            # The Hub says 401 to those who have not signed in, and 404 to the others.
            self._refuse(404 if self.headers.get("Authorization") else 401, "RepoNotFound")
        elif revision not in revisions:
            self._refuse(404, "RevisionNotFound")
        return (revisions or {}).get(revision)

    def _model(self, repo, verb, revision):
        """What the client asks for before it downloads a whole commit."""
        if (found := self._commit(repo, revision)) is None:
            return
        commit, folder = found
        entries = [
            {"type": "file", "path": item.name, "oid": "0" * 40, "size": item.stat().st_size}
            for item in sorted(folder.iterdir())
        ]
        self._json(entries if verb == "tree" else {"id": repo, "sha": commit, "private": False, "tags": []})

    def _model_file(self, repo, revision, path):
        if (found := self._commit(repo, revision)) is None:
            return
        commit, folder = found
        file = folder / path
        if not file.is_file():
            self._refuse(404, "EntryNotFound", **{"X-Repo-Commit": commit})
            return
        digest = f'"{hashlib.sha256(file.read_bytes()).hexdigest()}"'
        headers = {"X-Repo-Commit": commit, "ETag": digest}
        if file.suffix in (".safetensors", ".bin"):
            place = f"http://localhost:{self.server.server_port}/models-cdn/{file}?Signature={SIGNATURE}"
            linked = {"X-Linked-Etag": digest, "X-Linked-Size": str(file.stat().st_size)}
            self._answer(302, b"", Location=place, **headers, **linked)
        else:
            self._bytes(file, **headers)

    def _is_served(self):
        self.server.requests.append(f"{self.command} {unquote(self.path)}")
        if self.server.failures:
            self.server.failures -= 1
            self._refuse(503, "")
            return False
        authorization = f"Bearer {self.server.token}" if self.server.token else self.headers.get("Authorization")
        behind = ("/cdn/", "/models-cdn/")
        if self.headers.get("Authorization") != authorization and not self.path.startswith(behind):
            self._refuse(401, "RepoNotFound")
            return False
        return True

    def _known(self, revision):
        if revision != "main":
            self._refuse(404, "RevisionNotFound")
        return revision == "main"

    def _exists(self, path):
        found = (self.server.folder / path).is_file()
        if not found:
            self._refuse(404, "EntryNotFound")
        return found

    def _tree(self, path, recursive):
        root = self.server.folder / path
        if not root.is_dir():
            self._refuse(404, "EntryNotFound")
            return
        self._json([self._entry(item) for item in sorted(root.rglob("*") if recursive else root.iterdir())])

    def _entry(self, item):
        path = item.relative_to(self.server.folder).as_posix()
        if item.is_dir():
            return {"type": "directory", "path": path, "oid": "0" * 40, "size": 0}
        data = item.read_bytes()
        return {"type": "file", "path": path, "oid": hashlib.sha1(data).hexdigest(), "size": len(data)}

    def _bytes(self, item, **headers):
        data = item.read_bytes()
        if item.name in self.server.cut and self.command == "GET":
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            self._answer(200, data, **headers)
            return
        start, end = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
        self._answer(206, data[start : end + 1], **{"Content-Range": f"bytes {start}-{end}/{len(data)}"})

    def _json(self, value):
        self._answer(200, json.dumps(value).encode(), **{"Content-Type": "application/json"})

    def _refuse(self, status, code, **headers):
        self._answer(status, b"{}", **({"X-Error-Code": code} if code else {}), **headers)

    def _answer(self, status, body, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def hub_server(folder: Path, token: str = "") -> Iterator[str]:
    """Serve the files of `folder` as a data set. Yields its URI; this process uses the server as the Hub."""
    with _served(folder, token) as server:
        hub_server.current = server
        yield f"hf://datasets/{REPOSITORY}"


class Models:
    """A hub of models, which this process and its children use; `server` has what `Hub` reads."""

    def __init__(self, server: Any, cache: Path) -> None:
        self.server, self.cache = server, cache

    def publish(self, repo: str, folder: Path, *revisions: str) -> str:
        """Make a commit of the files of `folder`, for these branches or tags (without any, `main`); return its hash."""
        revisions_of = self.server.models.setdefault(repo, {})
        commit = hashlib.sha1(f"{repo} {folder} {len(revisions_of)}".encode()).hexdigest()
        for name in (commit, *(revisions or ("main",))):
            revisions_of[name] = (commit, folder)
        return commit

    def requests(self) -> list[str]:
        """The requests since the last call."""
        made = list(self.server.requests)
        self.server.requests.clear()
        return made


@contextlib.contextmanager
def model_hub(cache: Path, token: str = "") -> Iterator[Models]:
    """A hub without models, with an empty cache at `cache`."""
    with (
        _served(cache, token) as server,
        mock.patch.dict(os.environ, {"HF_HUB_CACHE": str(cache), "HF_HUB_ETAG_TIMEOUT": "1"}),
        mock.patch.object(constants, "HF_HUB_CACHE", str(cache)),
        mock.patch.object(constants, "HF_HUB_ETAG_TIMEOUT", 1),
    ):
        yield Models(server, cache)


@contextlib.contextmanager
def _served(folder: Path, token: str) -> Iterator[Any]:
    with web_server(Hub) as server:
        server.folder, server.token, server.failures = folder, token, 0
        server.models, server.leaks, server.slow_s, server.cut = {}, [], 0.0, ()
        environment = {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "NO_PROXY": "127.0.0.1",
            "HF_TOKEN": token,
            "HF_HUB_OFFLINE": "0",
        }
        # Other tests, which must not reach the Hub, may have loaded the client in this process already.
        online = mock.patch.object(constants, "HF_HUB_OFFLINE", False)
        with mock.patch.dict(os.environ, environment), online:
            yield server
