"""A Hub on 127.0.0.1: enough of its interface to push a model and to pull it."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class HubStandIn:
    """Repositories in memory: `files[repository][path]` is the content at the last commit."""

    def __init__(self):
        self.files: dict[str, dict[str, bytes]] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.endpoint = ""

    def revision(self, repository: str) -> str:
        digest = hashlib.sha1()
        for path, content in sorted(self.files[repository].items()):
            digest.update(path.encode() + content)
        return digest.hexdigest()

    def commit(self, repository: str, lines: list[dict]) -> dict:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.files[repository][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.files[repository][value["path"]] = self.large[value["oid"]]
        sha = self.revision(repository)
        return {"success": True, "commitOid": sha, "commitUrl": f"{self.endpoint}/{repository}/commit/{sha}"}

    def info(self, repository: str) -> dict:
        siblings = [{"rfilename": path} for path in sorted(self.files[repository])]
        return {"id": repository, "modelId": repository, "sha": self.revision(repository), "siblings": siblings}

    def tree(self, repository: str) -> list[dict]:
        return [
            {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for path, content in sorted(self.files[repository].items())
        ]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self):
        hub, path = self.server.hub, self.path.split("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub.requests.append(f"{self.command} {path}")
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            return self._file(*match.groups())
        if match := re.fullmatch(r"/upload/(\w+)", path):
            hub.large[match.group(1)] = body
            return self._json({})
        if match := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            wanted = json.loads(body)["objects"]
            upload = [{"upload": {"href": f"{hub.endpoint}/upload/{item['oid']}", "header": {}}} for item in wanted]
            return self._json({
                "transfer": "basic",
                "objects": [{**item, "authenticated": True, "actions": way} for item, way in zip(wanted, upload)],
            })  # fmt: skip
        if path == "/api/repos/create":
            asked = json.loads(body)
            repository = "/".join(part for part in (asked.get("organization"), asked["name"]) if part)
            hub.files.setdefault(repository, {})
            return self._json({"url": f"{hub.endpoint}/{repository}", "name": repository})
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(\w+)(?:/.+)?)?", path):
            repository, action = match.groups()
            if repository not in hub.files:
                return self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            if action == "preupload":
                asked = json.loads(body)["files"]
                mode = {True: "lfs", False: "regular"}
                return self._json({"files": [
                    {"path": f["path"], "uploadMode": mode[f["path"].endswith(".safetensors")], "shouldIgnore": False}
                    for f in asked
                ]})  # fmt: skip
            if action == "commit":
                return self._json(hub.commit(repository, [json.loads(line) for line in body.splitlines()]))
            return self._json(hub.tree(repository) if action == "tree" else hub.info(repository))
        return self._json({})

    def _file(self, repository, name):
        hub = self.server.hub
        if repository not in hub.files:
            return self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        commit = {"X-Repo-Commit": hub.revision(repository)}
        if name not in hub.files[repository]:
            return self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound", **commit})
        content = hub.files[repository][name]
        self._send(200, content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', **commit})

    def _json(self, value, status=200, headers=()):
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json", **dict(headers)})

    def _send(self, status, content, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@contextmanager
def hub_stand_in():
    """Serves a [`HubStandIn`] while the block runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.hub = HubStandIn()
    server.hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
