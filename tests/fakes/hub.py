"""A model hub on this machine: as much of its HTTP interface as creating a repository and one commit of small files need."""

import base64
import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub:
    """What was asked, what was created and what lies in the repositories."""

    def __init__(self, *, refuse=None):
        self.refuse, self.created, self.files, self.commits, self.asked = refuse, {}, {}, [], []

    def answer(self, path, body, headers):
        """Status and JSON of a POST."""
        self.asked.append(path)
        if self.refuse:
            return self.refuse, {"error": "Invalid username or password."}
        if path == "/api/repos/create":
            name = f"{body['organization']}/{body['name']}"
            private = body.get("visibility") == "private" or body.get("private", False)
            self.created[name] = {"private": private, "token": headers.get("authorization")}
            return 200, {"url": f"{self.url}/{name}", "id": name}
        if path == "/api/validate-yaml":
            return 200, {"warnings": [], "errors": []}
        name = "/".join(path.split("/")[3:5])
        if path.endswith("/preupload/main"):
            files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in body["files"]]
            return 200, {"files": files}
        if path.endswith("/commit/main"):
            lines = [json.loads(line) for line in body.splitlines()]
            for line in lines:
                if line["key"] == "header":
                    self.commits.append((name, line["value"]["summary"]))
                else:
                    self.files[name, line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return 200, {"success": True, "commitOid": "1" * 40, "commitUrl": f"{self.url}/{name}/commit/{'1' * 40}"}
        return 404, {"error": f"not part of this hub: {path}"}


@contextlib.contextmanager
def served(monkeypatch, **settings):
    """The hub at an address of this machine, as the one that huggingface_hub talks to."""
    from huggingface_hub import constants

    hub = Hub(**settings)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            data = self.rfile.read(int(self.headers["content-length"]))
            body = data if self.path.endswith("/commit/main") else json.loads(data)
            status, found = hub.answer(self.path.partition("?")[0], body, self.headers)
            self.reply(status, found)

        def do_GET(self):
            hub.asked.append(self.path)
            self.reply(404, {"error": "not found"})

        def reply(self, status, found):
            content = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
