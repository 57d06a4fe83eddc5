"""A small Hugging Face Hub on loopback: what its client needs to download files and to upload a repository."""

import base64
import hashlib
import json
import re
import threading
import zlib
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "c" * 40
RESOLVE = re.compile(r"/(?:(spaces|datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class Hosted:
    """One file.

    Args:
        content: Its bytes.
        served: What is sent instead, under the announced hash of `content`.
        status: Answer with this instead of the file.
        code: With this error code in the header.
        cuts: How many answers break off half way.
        linked: Redirect to a storage path, as for large files; otherwise the file is sent at once.
        named: The etag is a name and not a hash.
    """

    content: bytes
    served: bytes | None = None
    status: int = 200
    code: str = ""
    cuts: int = 0
    linked: bool = True
    named: bool = False

    @property
    def etag(self) -> str:
        return "a" * 40 if self.named else hashlib.sha256(self.content).hexdigest()


@dataclass
class Commit:
    """What was uploaded."""

    repo: str
    message: str
    files: dict[str, bytes] = field(default_factory=dict)


class HubServer:
    """The server; `files` by (repo, path), `asked` the requests (method, path, headers) in their order."""

    def __init__(self, port: int = 0) -> None:
        self.files: dict[tuple[str, str], Hosted] = {}
        self.stored: dict[str, bytes] = {}
        self.commits: list[Commit] = []
        self.repos: dict[str, bool] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.token: str | None = None
        self.upload_status = 200
        hub = self

        class Handler(_Handler):
            server_of = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        # The same server under another name stands for the storage, which must never see a login.
        self.storage = f"http://localhost:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(self, repo: str, path: str, content: bytes, **options) -> Hosted:
        self.files[repo, path] = Hosted(content, **options)
        return self.files[repo, path]

    def ranges(self) -> list[str]:
        """Return the ranges that were asked of the storage, empty where a whole file was."""
        return [headers.get("range", "") for method, path, headers in self.requests if method == "GET"]


class _Handler(BaseHTTPRequestHandler):
    server_of: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments) -> None:
        pass

    def do_HEAD(self) -> None:
        self._resolve(send=False)

    def do_GET(self) -> None:
        self._note()
        if self.path.startswith("/storage/"):
            _, _, repo, path = unquote(self.path).split("/", 3)
            self._send_file(self.server_of.files[repo.replace("--", "/"), path])
        else:
            self._resolve(send=True, noted=True)

    def do_PUT(self) -> None:
        self._note()
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server_of.upload_status != 200:
            self._answer(self.server_of.upload_status, {"error": "no"})
            return
        self.server_of.stored[hashlib.sha256(body).hexdigest()] = body
        self._answer(200, {})

    def do_POST(self) -> None:
        self._note()
        body = self.rfile.read(int(self.headers["Content-Length"]))
        hub, path = self.server_of, urlsplit(self.path).path
        if self.headers.get("Content-Encoding") == "gzip":
            body = zlib.decompress(body, 31)
        if hub.token is not None and self.headers.get("Authorization") != f"Bearer {hub.token}":
            self._answer(401, {"error": "Invalid credentials"})
        elif path == "/api/repos/create":
            request = json.loads(body)
            name = f"{request.get('organization') or 'owner'}/{request['name']}"
            hub.repos[name] = bool(request.get("private"))
            self._answer(200, {"url": f"{hub.url}/{name}", "name": name})
        elif path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif "/preupload/" in path:
            modes = [
                {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular"}
                for file in json.loads(body)["files"]
            ]
            self._answer(200, {"files": [{**mode, "shouldIgnore": False} for mode in modes]})
        elif path.endswith("/info/lfs/objects/batch"):
            self._answer(
                200, {"transfer": "basic", "objects": [self._upload(item) for item in json.loads(body)["objects"]]}
            )
        elif "/commit/" in path:
            self._commit(path, body)
        else:
            self._answer(404, {"error": f"nothing at {path}"})

    def _upload(self, item: dict) -> dict:
        known = {"oid": item["oid"], "size": item["size"]}
        if item["oid"] in self.server_of.stored:
            return known
        return {**known, "actions": {"upload": {"href": f"{self.server_of.url}/lfs/{item['oid']}", "header": {}}}}

    def _commit(self, path: str, body: bytes) -> None:
        hub = self.server_of
        repo = re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/.+", path)[1]
        commit = Commit(repo, "")
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                commit.message = value["summary"]
            elif item["key"] == "file":
                commit.files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                commit.files[value["path"]] = hub.stored[value["oid"]]
        hub.commits.append(commit)
        for name, content in commit.files.items():
            hub.add(repo, name, content)
        address = f"{hub.url}/{repo}/commit/{COMMIT}"
        self._answer(200, {"success": True, "commitOid": COMMIT, "commitUrl": address, "hookOutput": ""})

    def _resolve(self, *, send: bool, noted: bool = False) -> None:
        if not noted:
            self._note()
        match = RESOLVE.fullmatch(unquote(urlsplit(self.path).path))
        hosted = self.server_of.files.get((match[2], match[4])) if match else None
        if hosted is None:
            known = match is not None and any(repo == match[2] for repo, _ in self.server_of.files)
            self._answer(404, None, code="EntryNotFound" if known else "RepoNotFound")
            return
        if hosted.status != 200:
            self._answer(hosted.status, None, code=hosted.code)
            return
        headers = {
            "X-Repo-Commit": COMMIT,
            "X-Linked-Etag": f'"{hosted.etag}"',
            "X-Linked-Size": str(len(hosted.content)),
        }
        if hosted.linked:
            place = f"{self.server_of.storage}/storage/{match[2].replace('/', '--')}/{match[4]}"
            self._answer(302, None, headers={**headers, "Location": place})
        elif send:
            self._send_file(hosted, headers)
        else:
            self._answer(200, None, headers=headers, length=len(hosted.content))

    def _send_file(self, hosted: Hosted, headers: dict[str, str] | None = None) -> None:
        content = hosted.content if hosted.served is None else hosted.served
        start = 0
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(match[1])
        body = content[start:]
        self.send_response(206 if start else 200)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if hosted.cuts > 0:
            hosted.cuts -= 1
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return
        self.wfile.write(body)

    def _answer(
        self,
        status: int,
        content: dict | None,
        *,
        code: str = "",
        headers: dict | None = None,
        length: int | None = None,
    ) -> None:
        body = b"" if content is None else json.dumps(content).encode()
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _note(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server_of.requests.append((self.command, self.path, headers))
