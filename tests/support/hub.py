"""A server of the Hugging Face Hub's routes for data sets on loopback: what `pipeline.storage.hub` asks for."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from unittest import mock
from urllib.parse import parse_qs, unquote, urlsplit

from huggingface_hub import constants

from tests.support.s3 import web_server

REPOSITORY = "owner/corpus"
_ROUTE = re.compile(
    rf"/api/datasets/{REPOSITORY}(?:/(?P<verb>revision|tree|paths-info)/(?P<revision>[^/]+)(?:/(?P<path>.*))?)?$"
)
_FILE = re.compile(rf"/datasets/{REPOSITORY}/resolve/(?P<revision>[^/]+)/(?P<path>.*)$")


class Hub(BaseHTTPRequestHandler):
    """Serves the directory `server.folder` as the revision `main` of the data set `REPOSITORY`.

    It appends each request to `server.requests`, and answers as many with 503 as `server.failures` says. With
    `server.token`, a request without this token is answered with 401.
    """

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        url = urlsplit(self.path)
        if not self._is_served():
            return
        if url.path.startswith("/cdn/"):  # where the Hub redirects to
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

    def _is_served(self):
        self.server.requests.append(f"{self.command} {unquote(self.path)}")
        if self.server.failures:
            self.server.failures -= 1
            self._refuse(503, "")
            return False
        authorization = f"Bearer {self.server.token}" if self.server.token else self.headers.get("Authorization")
        if self.headers.get("Authorization") != authorization and not self.path.startswith("/cdn/"):
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

    def _bytes(self, item):
        data = item.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            self._answer(200, data)
            return
        start, end = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
        self._answer(206, data[start : end + 1], **{"Content-Range": f"bytes {start}-{end}/{len(data)}"})

    def _json(self, value):
        self._answer(200, json.dumps(value).encode(), **{"Content-Type": "application/json"})

    def _refuse(self, status, code):
        self._answer(status, b"{}", **({"X-Error-Code": code} if code else {}))

    def _answer(self, status, body, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def hub_server(folder: Path, token: str = "") -> Iterator[str]:
    """Serve the files of `folder` as a data set. Yields its URI; this process uses the server as the Hub."""
    with web_server(Hub) as server:
        server.folder, server.token, server.failures = folder, token, 0
        environment = {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "NO_PROXY": "127.0.0.1",
            "HF_TOKEN": token,
            "HF_HUB_OFFLINE": "0",
        }
        # Other tests, which must not reach the Hub, may have loaded the client in this process already.
        online = mock.patch.object(constants, "HF_HUB_OFFLINE", False)
        with mock.patch.dict(os.environ, environment), online:
            hub_server.current = server
            yield f"hf://datasets/{REPOSITORY}"
