"""A bucket in memory behind the part of Cloud Storage's JSON protocol that its clients here speak.

    python tests/train/bucket_server.py PORT BUCKET

The public emulators for Python leave out conditions on an object's generation, with which
writers keep out of one another's way; they are what this one is for. Every write makes a
new generation; `ifGenerationMatch` (0: must not exist) is checked under one lock with it.
"""

import base64
import dataclasses
import hashlib
import json
import re
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import google_crc32c


@dataclasses.dataclass(frozen=True)
class Stored:
    """One object."""

    name: str
    data: bytes
    generation: int


class Refused(Exception):
    """An answer other than success."""


class Bucket:
    """Objects by name; every change and its condition are one action."""

    def __init__(self) -> None:
        self._objects: dict[str, Stored] = {}
        self._lock, self._generation = threading.Lock(), 1000
        self._uploads: dict[str, tuple[str, bytearray, dict[str, str]]] = {}

    def get(self, name: str, query: dict[str, str]) -> Stored:
        with self._lock:
            self._check(name, query)
            if name not in self._objects:
                raise Refused(HTTPStatus.NOT_FOUND)
            return self._objects[name]

    def put(self, name: str, data: bytes, query: dict[str, str]) -> Stored:
        with self._lock:
            self._check(name, query)
            self._generation += 1
            self._objects[name] = Stored(name, data, self._generation)
            return self._objects[name]

    def remove(self, name: str, query: dict[str, str]) -> None:
        with self._lock:
            self._check(name, query)
            if self._objects.pop(name, None) is None:
                raise Refused(HTTPStatus.NOT_FOUND)

    def begin(self, name: str, query: dict[str, str]) -> str:
        """The number of an upload in pieces."""
        with self._lock:
            number = str(len(self._uploads))
            self._uploads[number] = name, bytearray(), query
            return number

    def go_on(self, number: str, piece: bytes, last: bool) -> Stored | int:
        """Takes a piece; how much is there, or with the last one the object."""
        name, data, query = self._uploads[number]
        data += piece
        return self.put(name, bytes(data), query) if last else len(data)

    def listed(self, query: dict[str, str]) -> tuple[list[Stored], list[str]]:
        """(objects, folders) below a prefix, the latter where there is a delimiter."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        first, end = query.get("startOffset", ""), query.get("endOffset")
        with self._lock:
            found = [x for name, x in sorted(self._objects.items()) if name.startswith(prefix)]
        found = [x for x in found if x.name >= first and (not end or x.name < end)]
        if not delimiter:
            return found, []
        deeper = {x.name: x.name[len(prefix) :].partition(delimiter) for x in found}
        folders = {prefix + head + mark for head, mark, _ in deeper.values() if mark}
        return [x for x in found if not deeper[x.name][1]], sorted(folders)

    def _check(self, name: str, query: dict[str, str]) -> None:
        """Refuses what the object's generation does not allow; 0 is that of none."""
        there = self._objects[name].generation if name in self._objects else 0
        if int(query.get("ifGenerationMatch", there)) != there:
            raise Refused(HTTPStatus.PRECONDITION_FAILED)
        if there and int(query.get("ifGenerationNotMatch", -1)) == there:
            raise Refused(HTTPStatus.NOT_MODIFIED)


def hashes(data: bytes) -> tuple[str, str]:
    """(CRC-32C, MD5) as the protocol writes them."""
    sums = google_crc32c.Checksum(data).digest(), hashlib.md5(data).digest()
    return tuple(base64.b64encode(x).decode() for x in sums)


def parts_of(body: bytes, kind: str) -> list[bytes]:
    """The contents of a multipart body."""
    boundary = re.search('boundary="?([^";]+)', kind)[1].encode()
    pieces = body.split(b"--" + boundary)[1:-1]
    return [re.sub(rb"\r?\n\Z", b"", re.split(rb"\r?\n\r?\n", x, maxsplit=1)[1]) for x in pieces]


class Handler(BaseHTTPRequestHandler):
    """One request. Subclasses say which bucket, and its name."""

    bucket: Bucket
    name: str
    protocol_version = "HTTP/1.1"

    def handle_one(self) -> None:
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        place = re.fullmatch(
            r"(?:/upload|/download)?/storage/v1/b/([^/]+)(/o(?:/(.*))?)?", url.path
        )
        try:
            if place is None:
                raise Refused(HTTPStatus.NOT_IMPLEMENTED)
            if place[1] != self.name:
                raise Refused(HTTPStatus.NOT_FOUND)
            if place[2] is None:
                self.answer({"kind": "storage#bucket", "name": self.name})
            elif place[3] is None:
                self.on_all(query, body)
            else:
                self.on_one(unquote(place[3]), query, url.path)
        except Refused as refused:
            self.answer({"error": {"code": refused.args[0], "message": ""}}, refused.args[0])

    do_GET = do_POST = do_PUT = do_DELETE = handle_one

    def on_all(self, query: dict[str, str], body: bytes) -> None:
        """Lists objects, or takes a new one."""
        if self.command == "GET":
            objects, folders = self.bucket.listed(query)
            self.answer({"items": [self.shown(x) for x in objects], "prefixes": folders})
            return
        name = query.get("name")
        if "upload_id" in query:
            self.on_piece(query["upload_id"], body)
            return
        if query.get("uploadType") == "resumable":
            number = self.bucket.begin(name or json.loads(body)["name"], query)
            there = f"http://{self.headers['Host']}{urlsplit(self.path).path}?upload_id={number}"
            self.answer(b"", headers={"Location": there})
            return
        if query.get("uploadType") == "multipart":
            page, body = parts_of(body, self.headers["Content-Type"])
            name = json.loads(page)["name"]
        elif query.get("uploadType") != "media":
            raise Refused(HTTPStatus.NOT_IMPLEMENTED)
        self.answer(self.shown(self.bucket.put(name, body, query)))

    def on_piece(self, number: str, body: bytes) -> None:
        """Takes a piece of an upload; the last one says how long it all is."""
        last = not self.headers.get("Content-Range", "").endswith("/*")
        got = self.bucket.go_on(number, body, last)
        if isinstance(got, Stored):
            self.answer(self.shown(got))
        else:
            held = {"Range": f"bytes=0-{got - 1}"} if got else {}
            self.answer(b"", HTTPStatus.PERMANENT_REDIRECT, held)

    def on_one(self, name: str, query: dict[str, str], path: str) -> None:
        """Reads, describes, moves, copies or removes an object."""
        if self.command == "DELETE":
            self.bucket.remove(name, query)
            self.answer(b"", HTTPStatus.NO_CONTENT)
        elif self.command == "GET" and (query.get("alt") == "media" or "/download/" in path):
            self.send_data(self.bucket.get(name, query))
        elif self.command == "GET":
            self.answer(self.shown(self.bucket.get(name, query)))
        elif moved := re.fullmatch("(.*)/moveTo/o/(.*)", name):
            data = self.bucket.get(moved[1], {}).data
            stored = self.bucket.put(moved[2], data, query)
            self.bucket.remove(moved[1], {})
            self.answer(self.shown(stored))
        else:
            raise Refused(HTTPStatus.NOT_IMPLEMENTED)

    def shown(self, stored: Stored) -> dict:
        """An object's page."""
        crc, md5 = hashes(stored.data)
        return {
            "kind": "storage#object",
            "bucket": self.name,
            "name": stored.name,
            "size": str(len(stored.data)),
            "generation": str(stored.generation),
            "metageneration": "1",
            "crc32c": crc,
            "md5Hash": md5,
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "updated": "2026-01-01T00:00:00.000Z",
        }

    def send_data(self, stored: Stored) -> None:
        """An object's bytes, or those that Range asks for."""
        crc, md5 = hashes(stored.data)
        headers = {
            "X-Goog-Generation": str(stored.generation),
            "X-Goog-Hash": f"crc32c={crc},md5={md5}",
        }
        size, asked = len(stored.data), self.headers.get("Range")
        if not asked:
            self.answer(stored.data, headers=headers)
            return
        first, last = re.fullmatch(r"bytes=(\d*)-(\d*)", asked).groups()
        begin = int(first) if first else max(0, size - int(last))
        end = min(size, int(last) + 1) if first and last else size
        if begin >= size:
            raise Refused(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
        self.answer(stored.data[begin:end], HTTPStatus.PARTIAL_CONTENT, headers)

    def answer(
        self, content: dict | bytes, status: int = HTTPStatus.OK, headers: dict | None = None
    ) -> None:
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        empty = status in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)
        self.send_response(status)
        for key, value in {"Content-Type": kind, **(headers or {})}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(0 if empty else len(data)))
        self.end_headers()
        if not empty:
            self.wfile.write(data)


class Server(ThreadingHTTPServer):
    """A checkpoint's files come all at once."""

    request_queue_size = 128


def serve(port: int, name: str) -> None:
    """Serves an empty bucket on this machine until it is killed."""
    handler = type("Handler", (Handler,), {"bucket": Bucket(), "name": name})
    Server(("localhost", port), handler).serve_forever()


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2])
