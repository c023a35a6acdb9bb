"""As much of Google Cloud's REST interfaces as `gcloud` and `bq` need to create topics, tables and accounts.

There is one project, "project". What is created is kept, so a second run finds it. Every change is in `requests`.
"""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

NUMBER = "123456789012"


class GoogleCloud:
    """The server. `discovery` is the description of BigQuery's interface that `bq` asks for."""

    def __init__(self, discovery: Path) -> None:
        self.resources: dict[str, dict[str, Any]] = {}
        self.policies: dict[str, dict[str, Any]] = {}
        self.requests: list[tuple[str, str, dict[str, Any]]] = []
        self._discovery = discovery
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def roles(self) -> set[tuple[str, str, str]]:
        """Return who may do what with which resource."""
        return {
            (path.rpartition("/")[2], binding["role"], member)
            for path, policy in self.policies.items()
            for binding in policy.get("bindings", [])
            for member in binding["members"]
        }

    def answer(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Return status and answer of a request."""
        path = path.replace("/projects/-/", "/projects/project/")  # whichever project an account is of
        if "$discovery" in path:
            described: dict[str, Any] = json.loads(self._discovery.read_text(encoding="utf-8"))
            return 200, described | {"rootUrl": f"{self.url}/", "baseUrl": f"{self.url}/bigquery/v2/"}
        if method != "GET" and not path.endswith(":getIamPolicy"):
            self.requests.append((method, path, body))
        if found := re.fullmatch(r"(.*)(:getIamPolicy|:setIamPolicy|/iam)", path):
            return 200, self._policy(found[1], body if path.endswith(":setIamPolicy") else body or None)
        if re.fullmatch(r"/v1/projects/[\w-]+", path):
            return 200, {"projectId": path.rpartition("/")[2], "projectNumber": NUMBER}
        if ":batchEnable" in path or ":generateServiceIdentity" in path or path.startswith("/v1/operations"):
            identity = f"service-{NUMBER}@gcp-sa-pubsub.iam.gserviceaccount.com"
            return 200, {"name": "operations/done", "done": True, "response": {"email": identity}}
        return self._resource(method, path, body)

    def _policy(self, path: str, new: dict[str, Any] | None) -> dict[str, Any]:
        if new and ("policy" in new or "bindings" in new):
            self.policies[path] = new.get("policy", new)
        return self.policies.get(path, {"etag": "BwXh", "bindings": []})

    def _resource(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if method == "GET":
            if path in self.resources:
                return 200, self.resources[path]
            return _error(404, "NOT_FOUND", "notFound")
        reference = body.get("tableReference") or body.get("datasetReference") or {}
        if method == "POST":
            name = reference.get("tableId") or reference.get("datasetId")
            path = f"{path}/{name or body['accountId'] + '@project.iam.gserviceaccount.com'}"
            if path in self.resources:
                return _error(409, "ALREADY_EXISTS", "duplicate")
        self.resources[path] = self.resources.get(path, {}) | body
        return 200, self.resources[path]


def _error(code: int, status: str, reason: str) -> tuple[int, dict[str, Any]]:
    message = f"scripted {status}"
    errors = [{"reason": reason, "message": message}]
    return code, {"error": {"code": code, "status": status, "message": message, "errors": errors}}


def _handler(cloud: GoogleCloud) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, found = cloud.answer(self.command, self.path.partition("?")[0], json.loads(data or b"{}"))
            text = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815  names of http.server

        def log_message(self, *_: object) -> None:
            pass

    return Handler
