"""Shards of drawn images, and a web server on this machine that serves them badly, for tests.

with ShardServer({"/a.tar": data}) as server:
    server.fault = every_other(503)
"""

import io
import re
import tarfile
import threading
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import datasets
import numpy as np
import pyarrow.parquet
from PIL import Image

Fault = Callable[["Request"], int | str | None]


def picture(number: int, size: int = 12) -> bytes:
    """A PNG with different noise for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, (size, size, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def parquet(pictures: Sequence[bytes], rows_per_group: int = 4) -> bytes:
    """A parquet file as the Hub has them: a column `image` of structs with bytes and path, and a column `label`."""
    content = {"image": [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(pictures)]}
    content["label"] = list(range(len(pictures)))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    stream = io.BytesIO()
    table = datasets.Dataset.from_dict(content, features=features).data.table
    pyarrow.parquet.write_table(table, stream, row_group_size=rows_per_group)
    return stream.getvalue()


def tar(pictures: Sequence[bytes]) -> bytes:
    """A webdataset tar: for each example NUMBER.png and NUMBER.json, and a hidden file that is none."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        files = [("._0000.png", b"none")]
        for number, data in enumerate(pictures):
            files += [(f"{number:04}.png", data), (f"{number:04}.json", b"{}")]
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


class ShardServer(ThreadingHTTPServer):
    """The files by path, and what is done to requests: `fault(request)` is a status, `drop`, `slow` or None."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.files = files
        self.fault: Fault = lambda request: None
        self.gets: list[str] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is none."""


class Request(BaseHTTPRequestHandler):
    server: ShardServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(None)

    def do_GET(self) -> None:
        self.server.gets.append(self.path)
        self.answer(self.server.fault(self))

    def answer(self, fault: int | str | None) -> None:
        data = self.server.files.get(self.path)
        if isinstance(fault, int) or data is None:
            self.send_response(fault if isinstance(fault, int) else 404)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first, last = (int(span[1]), min(int(span[2] or len(data)), len(data) - 1)) if span else (0, len(data) - 1)
        part = data[first : last + 1]
        self.send_response(206 if span else 200)
        headers = {"Accept-Ranges": "bytes", "Content-Length": len(part), "ETag": f'"{hash(data)}"'}
        if span:
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "HEAD":
            return None
        if fault == "drop":
            self.wfile.write(part[: len(part) // 2])
            self.wfile.flush()
            self.connection.shutdown(2)
            self.close_connection = True
            return None
        if fault == "slow":
            for start in range(0, len(part), max(1, len(part) // 4)):
                time.sleep(0.02)
                self.wfile.write(part[start : start + max(1, len(part) // 4)])
            return None
        self.wfile.write(part)
        return None
