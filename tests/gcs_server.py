"""The part of Google Cloud Storage's JSON API that reads objects, over a folder.

https://cloud.google.com/storage/docs/json_api: ``objects.get`` with the metadata of an object or, with ``alt=media``,
its bytes or a range of them, and ``objects.list``. gcsfs asks it when ``STORAGE_EMULATOR_HOST`` has its address.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit


def _described(bucket: str, name: str, path: Path) -> dict[str, str]:
    return {"kind": "storage#object", "bucket": bucket, "name": name, "size": str(path.stat().st_size)}


@contextlib.contextmanager
def serve(folder: Path, *, bucket: str) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Serve the files of a folder as the objects of a bucket.

    Yields:
        The server's address, and the list of (object, Range) to which each request for bytes is added.
    """
    asked: list[tuple[str, str]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(url.query).items()}
            match = re.fullmatch(rf"(?:/download)?/storage/v1/b/{bucket}/o(?:/(.+))?", url.path)
            if match is None:
                self._answer(404, _error(404, "The specified bucket does not exist."))
            elif match[1] is None:
                self._answer(200, json.dumps({"kind": "storage#objects", "items": self._listed(query)}).encode())
            elif not (path := folder / unquote(match[1])).is_file():
                self._answer(404, _error(404, f"No such object: {bucket}/{unquote(match[1])}"))
            elif query.get("alt") == "media":
                asked.append((unquote(match[1]), self.headers.get("Range", "")))
                self._send_bytes(path.read_bytes())
            else:
                self._answer(200, json.dumps(_described(bucket, unquote(match[1]), path)).encode())

        def _listed(self, query: dict[str, str]) -> list[dict[str, str]]:
            files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
            prefix = query.get("prefix", "")
            return [_described(bucket, name, path) for name, path in files.items() if name.startswith(prefix)]

        def _send_bytes(self, content: bytes) -> None:
            match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if match is None:
                self._answer(200, content)
                return
            first, last = int(match[1]), min(int(match[2] or len(content)), len(content) - 1)
            if first >= len(content):
                self._answer(416, _error(416, "The requested range cannot be satisfied."))
            else:
                self._answer(206, content[first : last + 1], {"Content-Range": f"bytes {first}-{last}/{len(content)}"})

        def _answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _error(code: int, message: str) -> bytes:
    return json.dumps({"error": {"code": code, "message": message}}).encode()
