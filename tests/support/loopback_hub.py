"""A Hugging Face Hub on 127.0.0.1, for tests that push and load models through the real `huggingface_hub` client."""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
import re
import secrets
import threading
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LFS_PATTERNS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.onnx", "*.h5", "*.msgpack", "*.npz", "*.zip", "*.gz")
LFS_THRESHOLD = 10 * 1024 * 1024
CARD_TYPES = {"license": (str, list), "language": (str, list), "tags": list, "library_name": str, "pipeline_tag": str}


@dataclass(frozen=True)
class StoredFile:
    """The content of one file, with the names that git and LFS give to it."""

    path: str
    content: bytes
    lfs: bool = False

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def git_blob(self) -> bytes:
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        return pointer.encode() if self.lfs else self.content

    @cached_property
    def blob_id(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.git_blob) + self.git_blob).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.blob_id

    def entry(self, path_key: str = "path", blob_key: str = "oid", lfs_key: str = "oid") -> dict:
        """The listing of this file; the Hub's endpoints differ in how they name things."""
        entry = {"type": "file", path_key: self.path, "size": len(self.content), blob_key: self.blob_id}
        lfs = {lfs_key: self.sha256, "size": len(self.content), "pointerSize": len(self.git_blob)}
        return {**entry, "lfs": lfs} if self.lfs else entry


@dataclass
class Repo:
    """A model repository: its files at every commit, and the LFS objects uploaded to it."""

    private: bool
    history: dict[str, dict[str, StoredFile]] = field(default_factory=dict)
    lfs_objects: dict[str, bytes] = field(default_factory=dict)

    @property
    def commits(self) -> list[str]:
        return list(self.history)

    @property
    def files(self) -> dict[str, bytes]:
        return {path: file.content for path, file in self.history[self.commits[-1]].items()}

    def record(self, files: dict[str, StoredFile], summary: str) -> str:
        """Append a commit that holds exactly `files`; return its sha."""
        tree = sorted((path, file.blob_id) for path, file in files.items())
        sha = hashlib.sha1(json.dumps([self.commits, summary, tree]).encode()).hexdigest()
        self.history[sha] = files
        return sha

    def lfs_object(self, oid: str, size: int | None = None) -> bytes:
        """The uploaded object that a client names (copies inside the Hub are named without a size)."""
        content = self.lfs_objects.get(oid)
        if content is None or size not in (None, len(content)):
            raise HubError(400, f"LFS object {oid} was not uploaded with this size")
        return content


class HubError(Exception):
    """A refusal, in the form that `huggingface_hub` turns into its own exceptions."""

    def __init__(self, status: int, message: str, code: str = "", headers: dict | None = None, **body):
        super().__init__(message)
        named = {"X-Error-Message": message.encode("unicode_escape").decode(), **(headers or {})}
        self.reply = status, {"error": message, **body}, {**named, "X-Error-Code": code} if code else named


class LoopbackHub:
    """Context manager that serves the Hub's HTTP interface for models; content lives in memory only.

    `repos` maps a repo id to its `Repo`, `requests` lists the (method, path) of everything asked so far. As on the
    Hub, a new repository starts with one commit that holds `.gitattributes`.
    """

    def __init__(self, user: str = "loopback-user", token: str = "hf_loopback_token"):
        self.user, self.token = user, token
        self.repos: dict[str, Repo] = {}
        self.requests: list[tuple[str, str]] = []
        self.upload_tickets: dict[str, tuple[Repo, str, int]] = {}
        self.lock = threading.Lock()

    def __enter__(self) -> LoopbackHub:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("_BoundHandler", (_Handler,), {"hub": self}))
        self._server.block_on_close = False
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exc_info) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self, cache_folder: str | Path, signed_in: bool = True) -> dict[str, str]:
        """The variables that point a client process (it reads them at import) to this hub and to a cache of its own."""
        folders = {"HF_HOME": str(cache_folder), "HF_HUB_CACHE": str(Path(cache_folder) / "hub")}
        switches = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        online = {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0", "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}
        token = self.token if signed_in else ""
        return {"HF_ENDPOINT": self.endpoint, "HF_TOKEN": token, **folders, **switches, **online}


class _Handler(BaseHTTPRequestHandler):
    """One connection; the methods named in `_ROUTES` answer with a JSON value or a (status, body, headers)."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: LoopbackHub

    def _serve(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.hub.lock:
            try:
                answer = self._route()
            except HubError as error:
                answer = error.reply
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                answer = 400, {"error": f"Malformed request: {error!r}"}, {}
        status, body, headers = answer if isinstance(answer, tuple) else (200, answer, {})
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        kind = "application/octet-stream" if content is body else "application/json"
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def log_message(self, format: str, *args) -> None:
        """Keep stderr quiet: `LoopbackHub.requests` is the log."""

    def _route(self):
        url = urlsplit(self.path)
        self.hub.requests.append((self.command, url.path))
        self.flags = {name for name, values in parse_qs(url.query).items() if values[0].lower() in ("1", "true")}
        authorization = self.headers.get("Authorization")
        self.signed_in = authorization is not None
        if authorization not in (None, f"Bearer {self.hub.token}"):
            raise HubError(401, "Invalid credentials in Authorization header")
        place = url.path.replace("/api/spaces/", "/api/models/spaces/", 1)  # a Space is kept as spaces/ORG/NAME
        for methods, pattern, answer in _ROUTES:
            match = re.fullmatch(pattern, place)
            if match and self.command in methods:
                return answer(self, **{name: unquote(value or "") for name, value in match.groupdict().items()})
        raise HubError(404, f"No such endpoint: {self.command} {url.path}")

    def _require_token(self) -> None:
        if not self.signed_in:
            raise HubError(401, "Invalid username or password.")

    def _readable(self, repo_id: str, revision: str = "main") -> tuple[Repo, str, dict[str, StoredFile]]:
        repo = self.hub.repos.get(repo_id)
        if repo is None or (repo.private and not self.signed_in):
            raise HubError(404 if self.signed_in else 401, "Repository not found", "RepoNotFound")
        sha = repo.commits[-1] if revision == "main" else revision
        if sha not in repo.history:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repo, sha, repo.history[sha]

    def _writable(self, repo_id: str, revision: str = "main") -> tuple[Repo, str, dict[str, StoredFile]]:
        self._require_token()
        if revision != "main" or "create_pr" in self.flags:
            raise HubError(400, "This hub takes commits on main only.")
        return self._readable(repo_id)

    def whoami(self):
        self._require_token()
        auth = {"type": "access_token", "accessToken": {"displayName": "loopback", "role": "write"}}
        return {"type": "user", "name": self.hub.user, "fullname": self.hub.user, "orgs": [], "auth": auth}

    def create_repo(self):
        self._require_token()
        asked = json.loads(self.body)
        kind = asked.get("type", "model")
        if kind not in ("model", "space") or (kind == "space" and asked.get("sdk") != "gradio"):
            raise HubError(400, "This hub holds models, and Spaces with gradio, only.")
        repo_id = f"{asked.get('organization') or self.hub.user}/{asked['name']}"
        repo_id = f"spaces/{repo_id}" if kind == "space" else repo_id
        url = f"{self.hub.endpoint}/{repo_id}"
        if repo_id in self.hub.repos:
            raise HubError(409, "You already created this model repo", url=url)
        repo = self.hub.repos[repo_id] = Repo(private=asked.get("visibility") == "private")
        rules = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS_PATTERNS)
        repo.record({".gitattributes": StoredFile(".gitattributes", rules.encode())}, "initial commit")
        return {"url": url, "name": repo_id, "id": repo_id}

    def validate_yaml(self):
        block = re.match(r"---\s*\n(.*?)^---\s*$", json.loads(self.body)["content"], re.DOTALL | re.MULTILINE)
        try:
            card = (yaml.safe_load(block[1]) if block else None) or {}
            wrong = [name for name, kind in CARD_TYPES.items() if name in card and not isinstance(card[name], kind)]
            errors = [f'"{name}" has the wrong type' for name in wrong]
            errors += [] if card.get("license") else ['"license" is required']
        except (yaml.YAMLError, AttributeError, TypeError) as error:
            errors = [f"Not a YAML mapping: {error}"]
        return 400 if errors else 200, {"errors": [{"message": text} for text in errors], "warnings": []}, {}

    def repo_info(self, repo_id: str, revision: str = "main"):
        repo, sha, files = self._readable(repo_id, revision)
        siblings = [file.entry("rfilename", "blobId", "sha256") for _, file in sorted(files.items())]
        if "blobs" not in self.flags:
            siblings = [{"rfilename": sibling["rfilename"]} for sibling in siblings]
        info = {"id": repo_id, "modelId": repo_id, "author": repo_id.split("/")[0], "sha": sha, "siblings": siblings}
        return {**info, "private": repo.private, "gated": False, "disabled": False, "tags": []}

    def tree(self, repo_id: str, revision: str, path: str):
        _, _, files = self._readable(repo_id, revision)
        prefix = f"{path.rstrip('/')}/" if path else ""
        below = [name[len(prefix) :].split("/") for name in files if name.startswith(prefix)]
        if path and not below:
            raise HubError(404, f"{path} does not exist on {revision}", "EntryNotFound")
        depth = max(map(len, below), default=0) if "recursive" in self.flags else 1
        listed = {prefix + "/".join(parts[:end]) for parts in below for end in range(1, min(depth, len(parts)) + 1)}
        return [_entry(files, name) for name in sorted(listed)]

    def paths_info(self, repo_id: str, revision: str):
        _, _, files = self._readable(repo_id, revision)
        entries = [_entry(files, path) for path in parse_qs(self.body.decode()).get("paths", [])]
        return [entry for entry in entries if entry]

    def preupload(self, repo_id: str, revision: str):
        _, sha, files = self._writable(repo_id, revision)
        answers = []
        for path, size in ((asked["path"], asked["size"]) for asked in json.loads(self.body)["files"]):
            lfs = size > LFS_THRESHOLD or any(fnmatch.fnmatch(path, pattern) for pattern in LFS_PATTERNS)
            known = {"oid": files[path].etag} if path in files else {}
            answers.append({"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False, **known})
        return {"files": answers, "commitOid": sha}

    def lfs_batch(self, repo_id: str):
        repo, _, _ = self._writable(repo_id)
        objects = [{"oid": asked["oid"], "size": asked["size"]} for asked in json.loads(self.body)["objects"]]
        for item in (item for item in objects if item["oid"] not in repo.lfs_objects):
            ticket = secrets.token_hex(16)
            self.hub.upload_tickets[ticket] = repo, item["oid"], item["size"]
            verify = {"href": f"{self.hub.endpoint}/{repo_id}.git/info/lfs/verify"}
            item["actions"] = {"upload": {"href": f"{self.hub.endpoint}/lfs-upload/{ticket}"}, "verify": verify}
        return {"transfer": "basic", "objects": objects}

    def lfs_upload(self, ticket: str):
        """Take one LFS object; the client sends no token here, the ticket stands for it as in a signed URL."""
        if ticket not in self.hub.upload_tickets:
            raise HubError(403, "No such upload")
        repo, oid, size = self.hub.upload_tickets[ticket]
        if len(self.body) != size or hashlib.sha256(self.body).hexdigest() != oid:
            raise HubError(400, f"The uploaded content is not the {size} bytes with sha256 {oid}")
        repo.lfs_objects[oid] = self.body
        return {}

    def lfs_verify(self, repo_id: str):
        repo, _, _ = self._writable(repo_id)
        repo.lfs_object(**json.loads(self.body))
        return {}

    def commit(self, repo_id: str, revision: str):
        repo, head, files = self._writable(repo_id, revision)
        header, *operations = map(json.loads, self.body.splitlines())
        if not head.startswith(header["value"].get("parentCommit", "")):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(files)
        for operation in operations:
            kind, value = operation["key"], operation["value"]
            path = value["path"]
            if {"", ".", "..", ".git"} & set(path.rstrip("/").split("/")):
                raise HubError(400, f"Invalid path: {path}")
            if kind == "file":
                files[path] = StoredFile(path, base64.b64decode(value["content"], validate=True))
            elif kind == "lfsFile":
                files[path] = StoredFile(path, repo.lfs_object(value["oid"], value.get("size")), lfs=True)
            elif kind in ("deletedFile", "deletedFolder"):
                folder = f"{path.rstrip('/')}/"
                gone = [name for name in files if (name == path if kind == "deletedFile" else name.startswith(folder))]
                if not gone:
                    raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
                files = {name: file for name, file in files.items() if name not in gone}
            else:
                raise HubError(400, f"Unknown operation: {kind}")
        sha = repo.record(files, header["value"]["summary"])
        return {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.endpoint}/{repo_id}/commit/{sha}"}

    def resolve(self, repo_id: str, revision: str, path: str):
        _, sha, files = self._readable(repo_id, revision)
        if path not in files:
            raise HubError(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": sha})
        file, size, etag = files[path], len(files[path].content), f'"{files[path].etag}"'
        headers = {"X-Repo-Commit": sha, "ETag": etag, "Accept-Ranges": "bytes"}
        headers.update({"X-Linked-Etag": etag, "X-Linked-Size": str(size)} if file.lfs else {})
        asked = re.fullmatch(r"bytes=(?:(\d+)-(\d*)|-(\d+))", self.headers.get("Range", ""))
        if self.command == "HEAD" or not asked:
            return 200, file.content, headers
        start = int(asked[1]) if asked[1] else max(size - int(asked[3]), 0)
        stop = min(int(asked[2]) + 1, size) if asked[2] else size
        if start >= stop:
            return 416, b"", {**headers, "Content-Range": f"bytes */{size}"}
        return 206, file.content[start:stop], {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{size}"}


def _entry(files: dict[str, StoredFile], path: str) -> dict | None:
    """The listing of a file or a folder; None where there is neither."""
    if path in files:
        return files[path].entry()
    inside = sorted((name, file.blob_id) for name, file in files.items() if name.startswith(f"{path}/"))
    oid = hashlib.sha1(json.dumps(inside).encode()).hexdigest()
    return {"type": "directory", "path": path, "size": 0, "oid": oid} if inside else None


_REPO, _REVISION = r"(?P<repo_id>(?:spaces/)?[^/]+(?:/[^/]+)?)", r"(?P<revision>[^/]+)"
_ROUTES = [
    (("GET",), "/api/whoami-v2", _Handler.whoami),
    (("POST",), "/api/repos/create", _Handler.create_repo),
    (("POST",), "/api/validate-yaml", _Handler.validate_yaml),
    (("GET",), f"/api/models/{_REPO}", _Handler.repo_info),
    (("GET",), f"/api/models/{_REPO}/revision/{_REVISION}", _Handler.repo_info),
    (("GET",), f"/api/models/{_REPO}/tree/{_REVISION}(?:/(?P<path>.+))?", _Handler.tree),
    (("POST",), f"/api/models/{_REPO}/paths-info/{_REVISION}", _Handler.paths_info),
    (("POST",), f"/api/models/{_REPO}/preupload/{_REVISION}", _Handler.preupload),
    (("POST",), f"/api/models/{_REPO}/commit/{_REVISION}", _Handler.commit),
    (("POST",), rf"/{_REPO}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    (("POST",), rf"/{_REPO}\.git/info/lfs/verify", _Handler.lfs_verify),
    (("PUT",), "/lfs-upload/(?P<ticket>[0-9a-f]+)", _Handler.lfs_upload),
    (("GET", "HEAD"), f"/{_REPO}/resolve/{_REVISION}/(?P<path>.+)", _Handler.resolve),
]
