"""A Hub on 127.0.0.1: enough of its interface to push a model and to pull it, with tokens, private repositories,
branches and tags; and to break off connections at will."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import yaml
from huggingface_hub import constants, hf_api
from huggingface_hub.utils import _http
from transformers.utils import hub as transformers_hub

TOKENS = {"hf_x": "write", "hf_reader": "read"}  # of the user "user"; "org" is someone else's
_LICENCES = {"apache-2.0", "mit", "cc-by-4.0", "cc-by-sa-4.0", "other"}
_PIPELINES = {"text-generation", "text-classification"}


@dataclass
class Repository:
    """Its commits, each a dict from path to content, and what names them."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        digest = hashlib.sha1(f"{len(self.messages)} {message}".encode())
        for path, content in sorted(files.items()):
            digest.update(path.encode() + content)
        self.messages.append(message)
        self.branches[branch] = sha = digest.hexdigest()
        self.commits[sha] = files
        return sha

    def resolve(self, name: str):
        """The commit of a branch, a tag or a commit; `None` if there is none."""
        return self.branches.get(name) or self.tags.get(name) or (name if name in self.commits else None)


class HubStandIn:
    """
    Args (to be set at any time):
        breaks: Whether the connection of a request breaks off, from its command and path; a download breaks off in
            its middle.
    """

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.endpoint = ""
        self.breaks = lambda command, path: False

    def revision(self, repository: str, name: str = "main") -> str:
        return self.repositories[repository].resolve(name)

    def files(self, repository: str, name: str = "main") -> dict[str, bytes]:
        """What is there at a branch, a tag or a commit."""
        return self.repositories[repository].commits[self.revision(repository, name)]

    def commit(self, name: str, branch: str, lines: list[dict]) -> dict:
        repository = self.repositories[name]
        files, message = dict(repository.commits[repository.branches[branch]]), ""
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        sha = repository.commit(branch, files, message)
        return {"success": True, "commitOid": sha, "commitUrl": f"{self.endpoint}/{name}/commit/{sha}"}


def metadata_errors(content: str) -> list[str]:
    """What the Hub would say against the metadata of a card; the fields that are known here."""
    block = re.match(r"---\n(.*?\n)---\n", content, re.DOTALL)
    if block is None:
        return []
    try:
        data = yaml.safe_load(block.group(1)) or {}
    except yaml.YAMLError as error:
        return [f"not YAML: {error}"]
    if not isinstance(data, dict):
        return ["not a mapping"]
    errors = []

    def require(good: bool, text: str):
        if not good:
            errors.append(text)

    names = [data[key] for key in ("library_name", "pipeline_tag", "license", "base_model_relation") if key in data]
    require(all(isinstance(name, str) for name in names), "a name is no text")
    tags = data.get("tags", [])
    require(isinstance(tags, list) and all(isinstance(tag, str) for tag in tags), '"tags" must be a list of texts')
    require(data.get("license", "mit") in _LICENCES, f'"license" {data.get("license")!r} is not one of the Hub\'s')
    require(data.get("license") != "other" or "license_name" in data, '"license: other" needs a "license_name"')
    require(data.get("pipeline_tag", "text-generation") in _PIPELINES, '"pipeline_tag" is unknown')
    bases = data.get("base_model", [])
    for base in bases if isinstance(bases, list) else [bases]:
        require(isinstance(base, str) and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base),
                f'"base_model" {base!r} is no repository')  # fmt: skip
    for entry in data.get("model-index", []):
        require(isinstance(entry.get("name"), str), '"model-index[].name" is missing')
        for result in entry.get("results") or errors.append('"model-index[].results" is empty') or []:
            require(isinstance(result.get("task", {}).get("type"), str), '"model-index[].results[].task" has no type')
            dataset = result.get("dataset", {})
            for key in ("name", "type"):
                require(isinstance(dataset.get(key), str), f'"model-index[].results[].dataset.{key}" is missing')
            for metric in result.get("metrics") or errors.append('"metrics" is empty') or []:
                require(isinstance(metric.get("type"), str), '"metrics[].type" is missing')
                require(isinstance(metric.get("value"), (int, float, str)), '"metrics[].value" must be a number')
    return errors


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # an answer is two writes: 40 ms each time otherwise

    def do_GET(self):
        hub, path = self.server.hub, unquote(self.path.split("?")[0])
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub.requests.append(f"{self.command} {path}")
        self.broken = hub.breaks(self.command, path)
        download = self.command == "GET" and "/resolve/" in path
        if self.broken and not download:
            self.close_connection = True
            return
        self._answer(hub, path, body)

    do_HEAD = do_POST = do_PUT = do_GET

    @property
    def role(self):
        """What the token of a request may do; `None` without one, "wrong" for one that is not known."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        return TOKENS.get(token, "wrong") if token else None

    def _answer(self, hub, path, body):
        if path == "/api/whoami-v2":
            if self.role in (None, "wrong"):
                return self._refuse(401, "Invalid username or password.")
            return self._json({"name": "user", "type": "user", "auth": {"accessToken": {"role": self.role}}})
        if self.role == "wrong":
            return self._refuse(401, "Invalid credentials in Authorization header")
        if match := re.fullmatch(r"/upload/(\w+)", path):
            hub.large[match.group(1)] = body
            return self._json({})
        if path == "/api/validate-yaml":
            errors = metadata_errors(json.loads(body)["content"])
            answer = {"errors": [{"message": text} for text in errors], "warnings": []}
            return self._json(answer, 400 if errors else 200)
        if path == "/api/repos/create":
            return self._create(hub, json.loads(body))
        for pattern, answer in self._OF_REPOSITORIES.items():
            if match := re.fullmatch(pattern, path):
                name, *rest = match.groups()
                repository = hub.repositories.get(name)
                if repository is None or repository.private and self.role is None:
                    return self._refuse(404, "Repository not found", "RepoNotFound")
                if self.command in ("POST", "PUT") and (self.role != "write" or name.startswith("org/")):
                    return self._refuse(403, "Forbidden: you must use a write token to upload to a repository.")
                return answer(self, hub, name, repository, body, *rest)
        return self._json({})

    def _create(self, hub, asked):
        name = f"{asked.get('organization') or 'user'}/{asked['name']}"
        if self.role != "write" or name.startswith("org/"):
            return self._refuse(403, "You don't have the rights to create a model under this namespace")
        if name in hub.repositories:
            return self._json({"error": "You already created this model repo", "url": f"{hub.endpoint}/{name}"}, 409)
        hub.repositories[name] = Repository(private=asked.get("visibility") == "private" or bool(asked.get("private")))
        hub.repositories[name].commit("main", {".gitattributes": b"*.safetensors lfs\n"}, "initial commit")
        return self._json({"url": f"{hub.endpoint}/{name}", "name": name})

    def _file(self, hub, name, repository, body, revision, path):
        sha = repository.resolve(revision)
        if sha is None:
            return self._refuse(404, "Invalid rev id", "RevisionNotFound")
        commit = {"X-Repo-Commit": sha}
        if path not in repository.commits[sha]:
            return self._refuse(404, "Entry not found", "EntryNotFound", commit)
        content = repository.commits[sha][path]
        self._send(200, content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', **commit})

    def _large_files(self, hub, name, repository, body):
        """Where to put the large files that are not there yet."""
        objects = []
        for item in json.loads(body)["objects"]:
            way = {"upload": {"href": f"{hub.endpoint}/upload/{item['oid']}", "header": {}}}
            known = {} if item["oid"] in hub.large else {"actions": way}
            objects.append({**item, "authenticated": True, **known})
        self._json({"transfer": "basic", "objects": objects})

    def _preupload(self, hub, name, repository, body, branch):
        files, there = json.loads(body)["files"], repository.commits[repository.branches[branch]]
        self._json({"files": [
            {"path": file["path"], "shouldIgnore": False, "oid": _git_oid(there.get(file["path"])),
             "uploadMode": "lfs" if file["path"].endswith((".safetensors", ".bin")) else "regular"}
            for file in files
        ]})  # fmt: skip

    def _commit(self, hub, name, repository, body, branch):
        self._json(hub.commit(name, branch, [json.loads(line) for line in body.splitlines()]))

    def _refs(self, hub, name, repository, body):
        def listed(kind, refs):
            return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": sha} for name, sha in refs.items()]

        self._json({"branches": listed("heads", repository.branches), "tags": listed("tags", repository.tags),
                    "converts": []})  # fmt: skip

    def _branch(self, hub, name, repository, body, branch):
        if branch in repository.branches:
            return self._refuse(409, "Reference already exists")
        repository.branches[branch] = repository.branches["main"]
        self._json({})

    def _tag(self, hub, name, repository, body, revision):
        repository.tags[json.loads(body)["tag"]] = repository.resolve(revision)
        self._json({})

    def _auth_check(self, hub, name, repository, body, write):
        if write and (self.role != "write" or name.startswith("org/")):
            return self._refuse(403, "Forbidden")
        self._json({})

    def _tree(self, hub, name, repository, body, revision):
        sha = repository.resolve(revision)
        if sha is None:
            return self._refuse(404, "Invalid rev id", "RevisionNotFound")
        self._json([
            {"type": "file", "path": path, "size": len(content), "oid": _git_oid(content)}
            for path, content in sorted(repository.commits[sha].items())
        ])  # fmt: skip

    def _info(self, hub, name, repository, body, revision):
        sha = repository.resolve(revision or "main")
        if sha is None:
            return self._refuse(404, "Invalid rev id", "RevisionNotFound")
        siblings = [{"rfilename": path} for path in sorted(repository.commits[sha])]
        self._json({"id": name, "modelId": name, "sha": sha, "private": repository.private, "siblings": siblings})

    _OF_REPOSITORIES = {
        r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)": _file,
        r"/(.+)\.git/info/lfs/objects/batch": _large_files,
        r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)": _preupload,
        r"/api/models/([^/]+/[^/]+)/commit/([^/]+)": _commit,
        r"/api/models/([^/]+/[^/]+)/refs": _refs,
        r"/api/models/([^/]+/[^/]+)/branch/([^/]+)": _branch,
        r"/api/models/([^/]+/[^/]+)/tag/([^/]+)": _tag,
        r"/api/models/([^/]+/[^/]+)/auth-check(/write)?": _auth_check,
        r"/api/models/([^/]+/[^/]+)/tree/([^/]+)(?:/.*)?": _tree,
        r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?": _info,
    }

    def _refuse(self, status, message, code=None, headers=()):
        headers = {**dict(headers), "X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self._json({"error": message}, status, headers)

    def _json(self, value, status=200, headers=()):
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json", **dict(headers)})

    def _send(self, status, content, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if self.broken else content)
        if self.broken:
            self.close_connection = True

    def log_message(self, *_):
        pass


def _git_oid(content):
    """Of a file that is in git itself."""
    return content if content is None else hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def hub_stand_in():
    """Serves a [`HubStandIn`] while the block runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.hub = HubStandIn()
    server.hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server.hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def log_in(hub: HubStandIn, patch, folder, token="hf_x"):
    """Points the client of this process at `hub`, with a cache in `folder`; `patch` is pytest's monkeypatch.

    The client reads its environment when it is imported, and the tests import it without a network.
    """
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setattr(constants, "ENDPOINT", hub.endpoint)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
    patch.setattr(constants, "HF_TOKEN_PATH", str(folder / "no-token"))
    patch.setattr(hf_api.api, "endpoint", hub.endpoint)
    patch.setattr(transformers_hub, "_hf_api", None, raising=False)  # which has kept the address of another test's
    patch.setattr(_http.time, "sleep", lambda seconds: None)  # between its attempts
    if token is None:
        patch.delenv("HF_TOKEN", raising=False)
    else:
        patch.setenv("HF_TOKEN", token)
