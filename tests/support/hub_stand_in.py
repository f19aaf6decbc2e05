"""A stand-in of the Hugging Face hub's HTTP API, on loopback: repositories in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_secret"


class Hub:
    """Branches of repositories by name, each a dictionary of files; commits are kept by number.

    Attributes:
        repositories: "owner/name" to branch to file name to bytes. private, gated: names of those
            that want a token. asked: every request, as "METHOD path".
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private: set[str] = set()
        self.gated: set[str] = set()
        self.objects: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.url = ""

    @staticmethod
    def commit(files: dict[str, bytes]) -> str:
        text = json.dumps({name: hashlib.sha1(c).hexdigest() for name, c in sorted(files.items())})
        return hashlib.sha1(text.encode()).hexdigest()


@contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()

    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def answer(
        self, status: int, content: Any = b"", headers: dict[str, str] | None = None
    ) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str) -> None:
        self.answer(status, {"error": code}, {"X-Error-Code": code, "X-Error-Message": code})

    @property
    def known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        place = urlsplit(self.path)
        parts = [unquote(part) for part in place.path.strip("/").split("/")]
        self.hub.asked.append(f"{self.command} {place.path}")
        if parts[:2] == ["api", "models"] and len(parts) == 2:
            (owner,) = parse_qs(place.query)["author"]
            names = [n for n in self.hub.repositories if n.startswith(f"{owner}/")]
            return self.answer(200, [{"id": n} for n in names if n not in self.hub.private])
        name = "/".join(parts[:2])
        if name not in self.hub.repositories or (name in self.hub.private and not self.known):
            return self.refuse(404 if self.known else 401, "RepoNotFound")
        if name in self.hub.gated and not self.known:
            return self.refuse(403, "GatedRepo")
        branches = self.hub.repositories[name]
        commits = {self.hub.commit(files): files for files in branches.values()}
        files = branches.get(parts[3], commits.get(parts[3]))
        if files is None:
            return self.refuse(404, "RevisionNotFound")
        file = "/".join(parts[4:])
        if file not in files:
            return self.refuse(404, "EntryNotFound")
        commit, content = self.hub.commit(files), files[file]
        tag = f'"{hashlib.sha256(content).hexdigest()}"'
        return self.answer(200, content, {"X-Repo-Commit": commit, "ETag": tag})

    def do_PUT(self) -> None:
        content = self.body()
        self.hub.asked.append(f"PUT {self.path}")
        assert self.path.rpartition("/")[2] == hashlib.sha256(content).hexdigest()
        self.hub.objects[self.path.rpartition("/")[2]] = content
        self.answer(200)

    def do_POST(self) -> None:
        body = self.body()
        self.hub.asked.append(f"POST {self.path}")
        parts = [unquote(part) for part in self.path.strip("/").split("/")]
        if not self.known:
            return self.refuse(401, "Unauthorized")
        if parts == ["api", "validate-yaml"]:
            return self.answer(200, {"errors": [], "warnings": []})
        if parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if "organization" in asked else ""
            name = name or f"me/{asked['name']}"
            if name in self.hub.repositories:
                return self.answer(409, {"url": f"{self.hub.url}/{name}"})
            self.hub.repositories[name] = {"main": {}}
            if asked.get("private") or asked.get("visibility") == "private":
                self.hub.private.add(name)
            return self.answer(200, {"url": f"{self.hub.url}/{name}"})
        if parts[-4:] == ["info", "lfs", "objects", "batch"]:
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.hub.url}/put/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            return self.answer(
                200,
                {"transfer": "basic", "objects": objects},
                {"Content-Type": "application/vnd.git-lfs+json"},
            )
        branches = self.hub.repositories["/".join(parts[2:4])]
        what, revision = parts[4], parts[5]
        if what == "branch":
            branches[revision] = dict(branches["main"])
            return self.answer(200, {})
        if what == "preupload":
            files = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith(".onnx") else "regular",
                    "shouldIgnore": False,
                }
                for one in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": files})
        assert what == "commit", self.path
        for line in map(json.loads, body.decode().splitlines()):
            value = line["value"]
            if line["key"] == "file":
                branches[revision][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                branches[revision][value["path"]] = self.hub.objects[value["oid"]]
        commit = self.hub.commit(branches[revision])
        url = f"{self.hub.url}/{'/'.join(parts[2:4])}/commit/{commit}"
        return self.answer(200, {"success": True, "commitOid": commit, "commitUrl": url})
