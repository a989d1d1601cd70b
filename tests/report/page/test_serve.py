"""`mcit watch` over a real socket on a free port."""

import contextlib
import http.client
import threading

import pytest

from mcit.cli.main import main
from mcit.core.errors import ConfigError
from mcit.report.page import serve


@contextlib.contextmanager
def serving(run):
    with serve.server(run, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def get(port, path="/", host=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read().decode()


@pytest.fixture(autouse=True)
def _no_script(monkeypatch):
    monkeypatch.setattr("mcit.report.page.html.script", lambda: "")


def test_the_page_is_served_kept_and_made_anew_when_the_run_changes(three, monkeypatch):
    made = []
    page_text = serve.page_text
    monkeypatch.setattr(serve, "page_text", lambda runs: made.append(1) or page_text(runs))
    with serving(three.root) as port:
        status, headers, text = get(port)
        assert status == 200 and text.startswith("<!doctype html>") and "MFN" in text
        assert headers["Refresh"] == str(serve.RELOAD_S) and headers["Cache-Control"] == "no-store"
        get(port)
        assert len(made) == 1
        three.root.joinpath("ledger.jsonl").write_text("changed")
        get(port)
        assert len(made) == 2


def test_a_run_that_is_being_written_is_tried_again_soon(three):
    score = three.root / "evals" / "after-03" / "c" / "score.json"
    whole = score.read_bytes()
    score.write_bytes(whole[:20])
    with serving(three.root) as port:
        status, headers, text = get(port)
        assert status == 503 and "score.json" in text and int(headers["Refresh"]) < serve.RELOAD_S
        score.write_bytes(whole)
        assert get(port)[0] == 200


def test_it_answers_this_machine_alone_and_has_one_page(three):
    with serving(three.root) as port:
        assert get(port, "/../../etc/passwd")[0] == 404
        assert get(port, "/?again=1")[0] == 200
        assert get(port, host=f"localhost:{port}")[0] == 200
        assert get(port, host="evil.example")[0] == 403


def test_a_port_in_use_is_told(three, capsys):
    with serving(three.root) as port:
        with pytest.raises(ConfigError, match="in use"):
            serve.server(three.root, port)
        assert main(["watch", str(three.root), "--port", str(port)]) == 2
    err = capsys.readouterr().err
    assert f"--port {port}" in err and "--port 0" in err
    with pytest.raises(ConfigError):
        serve.server(three.root, 99999)
