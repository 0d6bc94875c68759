"""A small Hugging Face Hub on this machine, for tests. It answers the requests of huggingface_hub and datasets.

    with Hub() as hub:
        sha = hub.commit("datasets/me/name", {"train.parquet": data})  # or uploaded to, as user `me` with WRITE_TOKEN

Anyone may read. Writing answers 401 for an unknown token, 403 for READ_TOKEN and for repositories of others. Every
request for a repository called `broken` answers 500. A commit is a snapshot of all files, asked for by its sha, a
short sha, or `main`. The client must run with HF_ENDPOINT=hub.endpoint and HF_HUB_DISABLE_XET=1 from its start.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

USER, WRITE_TOKEN, READ_TOKEN = "me", "hf_may_write", "hf_may_only_read"
REPO = r"(?P<repo>[^/]+/[^/]+)"


class Refused(Exception):
    """The answer to a failed request: the status, and the code by which clients distinguish 404 errors."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


class Hub(ThreadingHTTPServer):
    """The server with its `commits` of `models/USER/NAME` and `datasets/USER/NAME`, and the `requests` so far."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.commits: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.private: dict[str, bool] = {}
        self.objects: dict[str, bytes] = {}  # large files by sha256, uploaded before their commit
        self.requests: list[str] = []
        self.fault: Callable[[], int | None] = lambda: None  # the status to answer with, 0 for no answer at all

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def commit(self, repo: str, files: dict[str, bytes]) -> str:
        """Adds `files` to the newest files of a repository, which is made if needed; returns the commit's sha."""
        commits = self.commits.setdefault(repo, [])
        tree = {**(commits[-1][1] if commits else {}), **files}
        sha = hashlib.sha1(f"{repo} {len(commits)} {sorted(tree)}".encode()).hexdigest()
        commits.append((sha, tree))
        return sha

    def find(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]]:
        """The sha and the files of a revision."""
        if repo not in self.commits:
            raise Refused(404, f"{repo} not found", "RepoNotFound")
        for sha, tree in reversed(self.commits[repo]):
            if revision == "main" or (len(revision) >= 7 and sha.startswith(revision)):
                return sha, tree
        raise Refused(404, f"revision {revision} not found", "RevisionNotFound")


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self) -> None:
        url = urlsplit(self.path)
        path, self.query = unquote(url.path), parse_qs(url.query)
        self.server.requests.append(f"{self.command} {path}")
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        assert "chunked" not in self.headers.get("Transfer-Encoding", "")
        try:
            if (status := self.server.fault()) is not None:
                if not status:
                    self.close_connection = True
                    return None
                raise Refused(status, "planted")
            if path.split("/resolve/")[0].endswith("/broken") or "/broken/" in path or b'"broken"' in self.body:
                raise Refused(500, "Internal error, we are working hard to fix this")
            for methods, pattern, route in ROUTES:
                found = re.fullmatch(pattern, path)
                if found and self.command in methods:
                    return route(self, **found.groupdict(default=""))
            raise Refused(404, f"no {self.command} {path}", "EntryNotFound")
        except Refused as error:
            headers = {"X-Error-Code": error.code, "X-Error-Message": str(error)}
            self.send({"error": str(error)}, status=error.status, headers={k: v for k, v in headers.items() if v})

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def send(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def check_writer(self, owner: str) -> None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in (WRITE_TOKEN, READ_TOKEN):
            raise Refused(401, "Invalid username or password.")
        if token == READ_TOKEN or owner != USER:
            raise Refused(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')

    def create(self) -> None:
        asked = json.loads(self.body)
        owner = asked.get("organization") or USER
        self.check_writer(owner)
        repo = f"{asked.get('type') or 'model'}s/{owner}/{asked['name']}"
        address = {"url": f"{self.server.endpoint}/{repo.removeprefix('models/')}"}
        if repo in self.server.commits:
            return self.send(address, status=409)
        self.server.commit(repo, {".gitattributes": b"*.safetensors filter=lfs\n"})
        self.server.private[repo] = bool(asked.get("private") or asked.get("visibility") == "private")
        self.send(address)

    def validate_card(self) -> None:
        self.send({"errors": [], "warnings": []})

    def preupload(self, kind: str, repo: str, revision: str) -> None:
        self.check_writer(repo.split("/")[0])
        files = json.loads(self.body)["files"]
        modes = {file["path"]: "lfs" if file["path"].endswith(".safetensors") else "regular" for file in files}
        self.send({"files": [{"path": p, "uploadMode": mode, "shouldIgnore": False} for p, mode in modes.items()]})

    def batch(self, kind: str, repo: str) -> None:
        self.check_writer(repo.split("/")[0])
        href = f"{self.server.endpoint}/objects/"
        objects = [{**o, "actions": {"upload": {"href": href + o["oid"]}}} for o in json.loads(self.body)["objects"]]
        self.send({"transfer": "basic", "objects": objects})

    def put(self, oid: str) -> None:
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.server.objects[oid] = self.body
        self.send(b"")

    def add_commit(self, kind: str, repo: str, revision: str) -> None:
        self.check_writer(repo.split("/")[0])
        files = {}
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
        sha = self.server.commit(f"{kind}/{repo}", files)
        url = f"{self.server.endpoint}/{repo}/commit/{sha}"
        self.send({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    def info(self, kind: str, repo: str, revision: str) -> None:
        sha, tree = self.server.find(f"{kind}/{repo}", revision or "main")
        siblings = [{"rfilename": path} for path in tree]
        self.send({"_id": "0", "id": repo, "sha": sha, "private": False, "tags": [], "siblings": siblings})

    def tree(self, kind: str, repo: str, revision: str, folder: str) -> None:
        _, tree = self.server.find(f"{kind}/{repo}", revision)
        inside = [path for path in tree if path.startswith(f"{folder}/" if folder else "")]
        if folder and not inside:
            raise Refused(404, f"{folder} not found", "EntryNotFound")
        start, recursive = len(folder) + 1 if folder else 0, self.query.get("recursive", [""])[0].lower() == "true"
        files = [path for path in inside if recursive or "/" not in path[start:]]
        parts = {path[: start + path[start:].index("/")] for path in inside if "/" in path[start:]}
        folders = [{"type": "directory", "path": part, "oid": "0", "size": 0} for part in sorted(parts)]
        self.send([*folders, *(_entry(path, tree[path]) for path in files)])

    def paths_info(self, kind: str, repo: str, revision: str) -> None:
        _, tree = self.server.find(f"{kind}/{repo}", revision)
        form = self.headers.get("Content-Type", "").startswith("application/x-www-form-urlencoded")
        asked = parse_qs(self.body.decode()) if form else json.loads(self.body)
        self.send([_entry(path, tree[path]) for path in asked.get("paths", []) if path in tree])

    def resolve(self, kind: str, repo: str, revision: str, path: str) -> None:
        sha, tree = self.server.find(f"{kind.strip('/') or 'models'}/{repo}", revision)
        if path not in tree:
            raise Refused(404, f"{path} not found", "EntryNotFound")
        data = tree[path]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{hashlib.sha256(data).hexdigest()}"', "Accept-Ranges": "bytes"}
        headers["X-Linked-Size"] = str(len(data))
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not span:
            return self.send(data, headers=headers)
        first, last = int(span[1]), min(int(span[2] or len(data)), len(data) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        self.send(data[first : last + 1], status=206, headers=headers)


def _entry(path: str, data: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}


API, DATASETS, REVISION = f"/api/(?P<kind>models|datasets)/{REPO}", "/(?P<kind>datasets/)?", "(?P<revision>[^/]+)"
ROUTES: tuple[tuple[tuple[str, ...], str, Any], ...] = (
    (("POST",), "/api/repos/create", _Handler.create),
    (("POST",), "/api/validate-yaml", _Handler.validate_card),
    (("POST",), f"{API}/preupload/{REVISION}", _Handler.preupload),
    (("POST",), f"{DATASETS}{REPO}\\.git/info/lfs/objects/batch", _Handler.batch),
    (("PUT",), "/objects/(?P<oid>[0-9a-f]+)", _Handler.put),
    (("POST",), f"{API}/commit/{REVISION}", _Handler.add_commit),
    (("GET",), f"{API}(/revision/{REVISION})?", _Handler.info),
    (("GET",), f"{API}/tree/{REVISION}(/(?P<folder>.+))?", _Handler.tree),
    (("POST",), f"{API}/paths-info/{REVISION}", _Handler.paths_info),
    (("GET", "HEAD"), f"{DATASETS}{REPO}/resolve/{REVISION}/(?P<path>.+)", _Handler.resolve),
)
