"""A small server on this machine that speaks as much of the Hub's API as reading a dataset takes.

Run it with a directory of `OWNER/NAME/REVISION/files`; the first line that it prints is its address.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit


def commit_of(repository: Path, revision: str) -> str:
    """The commit that a branch or commit is; branches are files that hold one."""
    branch = repository / "branches" / revision
    return branch.read_text().strip() if branch.is_file() else revision


class Hub(BaseHTTPRequestHandler):
    """Answers about the datasets below `root`, and remembers what it was asked."""

    root: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        form = self.rfile.read(length).decode()
        self._answer(body=True, wanted=form)

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, body: bool, wanted: str = "") -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.asked.append(f"{self.command} {path}")
        parts = path.split("/")
        if parts[:2] == ["api", "datasets"] and len(parts) >= 4:
            self._api("/".join(parts[2:4]), parts[4:], wanted)
        elif parts[:1] == ["datasets"] and parts[3:4] == ["resolve"]:
            self._file("/".join(parts[1:3]), parts[4], "/".join(parts[5:]), body)
        else:
            self._json({"error": "not here"}, 404)

    def _api(self, name: str, rest: list[str], wanted: str) -> None:
        repository = self.root / name
        what = rest[0] if rest else "revision"
        commit = commit_of(repository, rest[1] if len(rest) > 1 else "main")
        files = repository / commit
        if not repository.is_dir():
            self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        elif not files.is_dir():
            self._json({"error": "Invalid rev id"}, 404, {"X-Error-Code": "RevisionNotFound"})
        elif what == "revision":
            siblings = [{"rfilename": path} for path in _paths(files)]
            self._json({"id": name, "sha": commit, "siblings": siblings, "tags": [], "private": False,
                        "gated": False, "disabled": False, "downloads": 0, "likes": 0})  # fmt: skip
        elif what == "tree":
            self._json(_tree(files, "/".join(rest[2:]), "recursive=true" in self.path.lower()))
        elif what == "paths-info":
            self._json([_entry(files, path) for path in _paths(files) if path in wanted.replace("%2F", "/")])
        else:
            self._json({"error": "not here"}, 404)

    def _file(self, name: str, revision: str, path: str, body: bool) -> None:
        commit = commit_of(self.root / name, revision)
        file = self.root / name / commit / path
        if not file.is_file():
            self._json({"error": "no such file"}, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        data = file.read_bytes()
        start, stop = 0, len(data)
        if asked := self.headers.get("Range"):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last) + 1 if last else len(data), len(data))
        self.send_response(206 if asked else 200)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Accept-Ranges", "bytes")
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        if body:
            self.wfile.write(data[start:stop])

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _paths(files: Path) -> list[str]:
    return sorted(path.relative_to(files).as_posix() for path in files.rglob("*") if path.is_file())


def _tree(files: Path, below: str, recursive: bool) -> list[dict[str, Any]]:
    found = (files / below).rglob("*") if recursive else (files / below).glob("*")
    paths = sorted((path.relative_to(files).as_posix(), path.is_dir()) for path in found)
    return [{"type": "directory", "path": path, "oid": "0" * 40} if folder else _entry(files, path)
            for path, folder in paths]  # fmt: skip


def _entry(files: Path, path: str) -> dict[str, Any]:
    data = (files / path).read_bytes()
    return {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha256(data).hexdigest()[:40]}


@contextmanager
def serve(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve a directory on a free port of this machine: the address, and the growing list of what is asked."""
    asked: list[str] = []
    handler = type("Handler", (Hub,), {"root": root, "asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    with serve(Path(sys.argv[1])) as (address, _):
        sys.stdout.write(address + "\n")
        sys.stdout.flush()
        sys.stdin.read()
