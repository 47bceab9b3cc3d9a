"""A W&B server on 127.0.0.1 that keeps what it is sent: the few endpoints that a run, its files and `wandb sync` need.

with Recorder() as server:
    subprocess.run(["wandb", "sync", folder], env=os.environ | server.environment)
    server.runs["<id>"].history
"""

import gzip
import json
import re
import threading
import urllib.parse
from collections import defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "0123456789" * 4
_LAST_PAGE = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}


@dataclass
class RecordedRun:
    """rows: {line number: the lines that were sent for it}, so that a line that came twice can be told."""

    about: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    rows: dict[int, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    exit_code: int | None = None
    files: set[str] = field(default_factory=set)

    @property
    def history(self) -> list[dict[str, Any]]:
        """Each line as it was sent last, in the order of the lines, as the server shows them."""
        return [self.rows[line][-1] for line in sorted(self.rows)]


class Recorder(ThreadingHTTPServer):
    """refuses: answer every request as to a wrong key. cut_after: break the connection after so many posts of rows.

    loses: so many posts of rows are answered as if they had been kept, and are not.
    """

    daemon_threads = True
    refuses = False
    cut_after: int | None = None
    loses = 0

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.runs: dict[str, RecordedRun] = defaultdict(RecordedRun)
        self.artifacts: dict[str, dict[str, Any]] = {}
        self.views: list[dict[str, Any]] = []
        self.operations: list[str] = []
        self.stored: dict[str, int] = {}
        self.keys: set[str] = set()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def environment(self) -> dict[str, str]:
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY, "NO_PROXY": "127.0.0.1"}

    def __enter__(self) -> "Recorder":
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no error of the server."""

    # What the endpoints do.

    def graphql(self, operation: str, given: dict[str, Any]) -> dict[str, Any]:
        self.operations.append(operation)
        answer = getattr(self, f"_{operation}", None)
        return {"data": answer(given) if answer else {}}

    def _Viewer(self, given: dict[str, Any]) -> dict[str, Any]:
        viewer = {"id": "user", "entity": "somebody", "username": "somebody", "flags": "{}", "teams": {"edges": []}}
        return {"viewer": viewer}

    def _GetDefaultEntity(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"viewer": {"id": "user", "entity": "somebody"}}

    def _ProjectInternalId(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"id": "project", "internalId": "UHJvamVjdEludGVybmFsSWQ6MQ=="}}

    def _GetProjects(self, given: dict[str, Any]) -> dict[str, Any]:
        names = sorted({run.about["project"] for run in self.runs.values() if "project" in run.about})
        edges = [{"node": self._found_project(name)} for name in names]
        return {"models": {"edges": edges, "pageInfo": _LAST_PAGE}}

    def _found_project(self, name: str) -> dict[str, Any]:
        about = {"id": "project", "name": name, "entityName": "somebody", "createdAt": "2026-01-01T00:00:00"}
        return {"__typename": "Project", **about, "isBenchmark": False, "user": None}

    def _upsertView(self, given: dict[str, Any]) -> dict[str, Any]:
        saved = self._UpsertView2(given)
        saved["upsertView"]["view"]["project"] = {"id": "project", "name": "p", "entityName": "somebody"}
        return saved

    def _UpsertView2(self, given: dict[str, Any]) -> dict[str, Any]:
        view = {**given, "id": given.get("id") or f"view-{len(self.views)}", "name": given.get("name") or "view"}
        self.views.append(view)
        return {"upsertView": {"view": view, "inserted": True}}

    def _UpsertBucket(self, given: dict[str, Any]) -> dict[str, Any]:
        name = given["name"] or given["id"]
        new = name not in self.runs
        run = self.runs[name]
        run.about |= {k: v for k, v in given.items() if v is not None and k not in ("config", "id")}
        run.config |= json.loads(given.get("config") or "{}")
        bucket = {"id": f"id-{name}", "name": name, "displayName": run.about.get("displayName"), "sweepName": None}
        bucket |= {"description": "", "config": json.dumps(run.config), "project": self._project(run.about)}
        lines = {"historyLineCount": len(run.rows)}
        return {"upsertBucket": {"bucket": bucket | lines, "inserted": new}}

    def _Run(self, given: dict[str, Any]) -> dict[str, Any]:
        name = given["name"]
        return {"project": {"internalId": "1", "run": self._found_run(name) if name in self.runs else None}}

    def _Runs(self, given: dict[str, Any]) -> dict[str, Any]:
        asked = json.loads(given["filters"])["name"]["$in"]
        edges = [{"node": self._found_run(name), "cursor": name} for name in asked if name in self.runs]
        about = {"internalId": "1", "runCount": len(edges), "readOnly": False}
        return {"project": about | {"runs": {"edges": edges, "pageInfo": _LAST_PAGE}}}

    def _found_run(self, name: str) -> dict[str, Any]:
        run = self.runs[name]
        about = {"id": f"id-{name}", "name": name, "displayName": name, "state": "crashed", "tags": []}
        about |= {"config": json.dumps({k: {"value": v} for k, v in run.config.items()}), "projectId": 1}
        about |= {"summaryMetrics": json.dumps(run.summary), "systemMetrics": "{}", "historyKeys": {"keys": {}}}
        about |= {"user": {"name": "somebody", "username": "somebody"}, "group": None, "jobType": None, "commit": None}
        about |= {"readOnly": False, "createdAt": "2026-01-01T00:00:00", "heartbeatAt": None, "description": None}
        return about | {"notes": None, "historyLineCount": len(run.rows), "sweepName": None}

    def _project(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"id": "project", "name": given.get("project") or "p", "entity": {"id": "e", "name": "somebody"}}

    def _CreateRunFiles(self, given: dict[str, Any]) -> dict[str, Any]:
        files = [{"name": f, "uploadUrl": f"{self.url}/put/{given['run']}/{f}"} for f in given["files"]]
        return {"createRunFiles": {"runID": f"id-{given['run']}", "uploadHeaders": [], "files": files}}

    def _CreateArtifact(self, given: dict[str, Any]) -> dict[str, Any]:
        asked = given["input"]
        number = f"artifact-{len(self.artifacts)}"
        self.artifacts[number] = {
            "name": asked["artifactCollectionName"],
            "type": asked["artifactTypeName"],
            "run": asked["runName"],
            "aliases": [alias["alias"] for alias in asked["aliases"]],
            "files": [],
            "committed": False,
        }
        sequence = {"id": f"of-{number}", "latestArtifact": None}
        return {"createArtifact": {"artifact": {"id": number, "state": "PENDING", "artifactSequence": sequence}}}

    def _CreateArtifactManifest(self, given: dict[str, Any]) -> dict[str, Any]:
        number = given["artifactID"]
        file = self._file("artifact", f"{number}/wandb_manifest.json") | {"uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": number, "file": file}}}

    def _CreateArtifactFiles(self, given: dict[str, Any]) -> dict[str, Any]:
        nodes = []
        for spec in given["input"]["artifactFiles"]:
            self.artifacts[spec["artifactID"]]["files"].append(spec["name"])
            file = self._file("artifact", f"{spec['artifactID']}/{spec['name']}")
            more = {"artifact": {"id": spec["artifactID"]}, "uploadHeaders": [], "storagePath": spec["name"]}
            nodes.append({"node": file | more | {"name": spec["name"], "uploadMultipartUrls": None}})
        return {"createArtifactFiles": {"files": {"edges": nodes}}}

    def _CommitArtifact(self, given: dict[str, Any]) -> dict[str, Any]:
        number = given["artifactID"]
        self.artifacts[number]["committed"] = True
        return {"commitArtifact": {"artifact": {"id": number, "digest": "0"}}}

    def _file(self, run: str, name: str) -> dict[str, Any]:
        return {"id": name, "name": name, "displayName": name, "uploadUrl": f"{self.url}/put/{run}/{name}"}

    def stream(self, run: RecordedRun, body: dict[str, Any]) -> None:
        for name, content in body.get("files", {}).items():
            if name == "wandb-history.jsonl" and self.loses:
                self.loses -= 1
            elif name == "wandb-history.jsonl":
                for number, line in enumerate(content["content"]):
                    run.rows[content["offset"] + number].append(json.loads(line))
            elif name == "wandb-summary.json":
                run.summary = json.loads(content["content"][-1])
        if "exitcode" in body and body.get("complete"):
            run.exit_code = body["exitcode"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Recorder

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""

    def do_POST(self) -> None:
        body = self._body()
        if self.server.refuses:
            return self._reply({"errors": [{"message": "user is not logged in"}]}, 401)
        if self.path == "/graphql":
            asked = json.loads(body)
            operation = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
            with self.server.lock:
                name = operation.group(1) if operation else ""
                return self._reply(self.server.graphql(name, asked.get("variables") or {}))
        if self.path.startswith("/files/"):
            if self.server.cut_after is not None:
                self.server.cut_after -= 1
                if self.server.cut_after < 0:
                    self.close_connection = True
                    return self.connection.close()
            with self.server.lock:
                self.server.stream(self.server.runs[self.path.split("/")[4]], json.loads(body))
        return self._reply({})

    def do_PUT(self) -> None:
        name = urllib.parse.unquote(self.path.removeprefix("/put/"))
        self.server.stored[name] = len(self._body())
        run, _, file = name.partition("/")
        if run in self.server.runs:
            self.server.runs[run].files.add(file)
        self._reply({})

    def do_GET(self) -> None:
        self._reply({})

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        return gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body

    def _reply(self, answer: dict[str, Any], status: int = 200) -> None:
        sent = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)
