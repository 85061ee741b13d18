"""A stand-in for the Hugging Face hub: the part of its API that huggingface_hub calls to write and read repositories.

Repositories are in memory. Every file is sent inside the commit, as the hub asks for small ones.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_owner"
API = re.compile(r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)(?:/(?P<verb>\w+)(?:/(?P<rest>.+))?)?")
FILE = re.compile(r"(?P<kind>/datasets)?/(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


@dataclass
class Repository:
    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"0" * 40: {}})
    branches: dict[str, str] = field(default_factory=lambda: {"main": "0" * 40})

    def commit_of(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.commits else None)


@dataclass
class Hub:
    """The repositories by kind and name, and the requests that were answered."""

    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    url: str = ""

    def files(self, name: str, *, kind: str = "models", branch: str = "main") -> dict[str, bytes]:
        repository = self.repositories[kind, name]
        return repository.commits[repository.branches[branch]]


class Answers(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *arguments: object) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")

    def answer(self, status: int, content: object = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    @property
    def is_owner(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def repository(self, kind: str, name: str) -> Repository | None:
        """The repository, if whoever asks may see it; otherwise the request is answered."""
        found = self.hub.repositories.get((kind, name))
        if found is None or (found.private and not self.is_owner):
            self.answer(404 if self.is_owner else 401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            return None
        return found

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if match := FILE.fullmatch(path):
            self.send_file(match["kind"], match["name"], match["revision"], match["path"])
        elif match := API.fullmatch(path):
            self.send_facts(match["kind"], match["name"], match["verb"], match["rest"])
        else:
            self.answer(404, {"error": "the stand-in does not know this address"})

    do_HEAD = do_GET

    def send_file(self, prefix: str | None, name: str, revision: str, path: str) -> None:
        repository = self.repository("datasets" if prefix else "models", name)
        if repository is None:
            return
        commit = repository.commit_of(revision)
        if commit is None or path not in repository.commits[commit]:
            self.answer(404, {"error": "no such file"}, X_Error_Code="EntryNotFound")
            return
        content = repository.commits[commit][path]
        self.answer(200, content, ETag=f'"{hashlib.sha256(content).hexdigest()}"', X_Repo_Commit=commit)

    def send_facts(self, kind: str, name: str, verb: str | None, rest: str | None) -> None:
        repository = self.repository(kind, name)
        if repository is None:
            return
        commit = repository.commit_of(rest.partition("/")[0] if rest else "main")
        if commit is None:
            self.answer(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
            return
        files = repository.commits[commit]
        if verb == "tree":
            digests = {path: hashlib.sha1(content).hexdigest() for path, content in files.items()}
            rows = [{"type": "file", "path": p, "size": len(files[p]), "oid": digests[p]} for p in sorted(files)]
            self.answer(200, rows)
            return
        siblings = [{"rfilename": path} for path in sorted(files)]
        self.answer(200, {"id": name, "sha": commit, "siblings": siblings, "private": repository.private, "tags": []})

    def do_POST(self) -> None:
        path, content = unquote(urlsplit(self.path).path), self.body()
        if not self.is_owner:
            self.answer(401, {"error": "Invalid credentials"})
        elif path == "/api/repos/create":
            self.create(json.loads(content))
        elif path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif match := API.fullmatch(path):
            self.write(match, content)
        else:
            self.answer(404, {"error": "the stand-in does not know this address"})

    def create(self, wanted: dict[str, object]) -> None:
        name = "/".join(str(wanted[key]) for key in ("organization", "name") if wanted.get(key))
        key = (f"{wanted.get('type') or 'model'}s", name)
        url = f"{self.hub.url}/{'datasets/' if key[0] == 'datasets' else ''}{name}"
        if name.startswith("forbidden/"):
            self.answer(403, {"error": "you do not belong to forbidden"})
        elif key in self.hub.repositories:
            self.answer(409, {"error": "You already created this model repo", "url": url})
        else:
            self.hub.repositories[key] = Repository(
                private=bool(wanted.get("private")) or wanted.get("visibility") == "private"
            )
            self.answer(200, {"url": url, "id": name, "name": name})

    def write(self, match: re.Match[str], content: bytes) -> None:
        repository = self.hub.repositories[match["kind"], match["name"]]
        if match["verb"] == "branch":
            if match["rest"] in repository.branches:
                self.answer(409, {"error": "Reference already exists"})
                return
            repository.branches[match["rest"]] = repository.branches["main"]
            self.answer(200, {})
        elif match["verb"] == "preupload":
            paths = [row["path"] for row in json.loads(content)["files"]]
            self.answer(200, {"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]})
        elif match["verb"] == "commit":
            rows = [json.loads(line)["value"] for line in content.splitlines() if b'"file"' in line[:20]]
            files = dict(repository.commits[repository.branches[match["rest"]]])
            files |= {row["path"]: base64.b64decode(row["content"]) for row in rows}
            sha = hashlib.sha1(content + match["rest"].encode()).hexdigest()
            repository.commits[sha], repository.branches[match["rest"]] = files, sha
            self.answer(200, {"commitUrl": f"{self.hub.url}/{match['name']}/commit/{sha}", "commitOid": sha})


@contextlib.contextmanager
def running_hub() -> Iterator[Hub]:
    """Run the stand-in on a free port."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("AnswersOfHub", (Answers,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
