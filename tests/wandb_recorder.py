"""A W&B server on 127.0.0.1 that keeps what it is sent: the few endpoints that a run, its files and `wandb sync` need.

with Recorder() as server:
    subprocess.run(["wandb", "sync", folder], env=os.environ | server.environment)
    server.runs["<id>"].history
"""

import gzip
import json
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "0123456789" * 4


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
    """refuses: answer every request as to a wrong key. cut_after: break the connection after so many posts of rows."""

    daemon_threads = True
    refuses = False
    cut_after: int | None = None

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

    def _RunResumeStatus(self, given: dict[str, Any]) -> dict[str, Any]:
        name = given["name"]
        bucket = None
        if name in self.runs:
            run = self.runs[name]
            last = run.history[-1:] or [{}]
            bucket = {"name": name, "historyLineCount": len(run.rows), "eventsLineCount": 0, "logLineCount": 0}
            bucket |= {
                "historyTail": json.dumps([json.dumps(last[0])]),
                "eventsTail": "[]",
                "tags": [],
                "wandbConfig": "",
            }
            bucket |= {"summaryMetrics": json.dumps(run.summary), "displayName": name, "id": f"id-{name}"}
            bucket |= {"config": json.dumps(run.config)}
        return {"model": self._project(given) | {"bucket": bucket}}

    def _project(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"id": "project", "name": given.get("project") or "p", "entity": {"id": "e", "name": "somebody"}}

    def _CreateRunFiles(self, given: dict[str, Any]) -> dict[str, Any]:
        files = [{"name": f, "uploadUrl": f"{self.url}/put/{given['run']}/{f}"} for f in given["files"]]
        return {"createRunFiles": {"runID": f"id-{given['run']}", "uploadHeaders": [], "files": files}}

    def stream(self, run: RecordedRun, body: dict[str, Any]) -> None:
        for name, content in body.get("files", {}).items():
            if name == "wandb-history.jsonl":
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
            with self.server.lock:
                return self._reply(self.server.graphql(asked.get("operationName"), asked.get("variables") or {}))
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
        name = self.path.removeprefix("/put/")
        self.server.stored[name] = len(self._body())
        run, _, file = name.partition("/")
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
