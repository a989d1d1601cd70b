"""Requests to a server on this machine: what is sent, what is tried again, what is refused."""

import base64
import socket

import pytest

from mcit.core.errors import ConfigError, DataError
from mcit.data.asd.writing.client import OpenAiBackend
from mcit.data.asd.writing.prompts import Prompt
from tests.fakes.chat_server import chat_server
from tests.fakes.rows import picture

PROMPT = Prompt("system words", "user words", ())


def backend(url, **settings):
    pauses = []
    return OpenAiBackend(url, "some-model", sleep=pauses.append, timeout=10, **settings), pauses


def test_what_is_sent(tmp_path):
    picture(tmp_path)
    with chat_server(lambda text, number: f"reply to {text}") as asked:
        client, _ = backend(asked.url, key="secret", seed=3, max_tokens=7)
        prompts = [PROMPT, Prompt("s", "look", (str(tmp_path / "a.png"),))]
        assert client.complete(prompts) == ["reply to user words", "reply to look"]
    first, second = asked.bodies
    assert first["messages"] == [
        {"role": "system", "content": "system words"},
        {"role": "user", "content": "user words"},
    ]
    assert (first["model"], first["temperature"], first["seed"], first["max_tokens"]) == ("some-model", 0, 3, 7)
    assert asked.headers[0]["Authorization"] == "Bearer secret"
    url = second["messages"][1]["content"][0]["image_url"]["url"]
    kind, data = url.split(",")
    assert kind == "data:image/png;base64" and base64.b64decode(data) == (tmp_path / "a.png").read_bytes()


def test_no_key_no_header():
    with chat_server(lambda text, number: "x") as asked:
        backend(asked.url)[0].complete([PROMPT])
    assert "Authorization" not in asked.headers[0]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_failing_server_is_asked_again_with_growing_pauses(status):
    with chat_server(lambda text, number: (status, "busy") if number < 2 else "done") as asked:
        client, pauses = backend(asked.url)
        assert client.complete([PROMPT]) == ["done"]
    assert len(asked.bodies) == 3 and pauses == [1, 2]


def test_a_server_that_keeps_failing_is_given_up():
    with chat_server(lambda text, number: (500, "out of memory")) as asked:
        client, pauses = backend(asked.url, tries=3)
        with pytest.raises(DataError, match="500.*out of memory.*3 tries"):
            client.complete([PROMPT])
    assert len(asked.bodies) == 3 and pauses == [1, 2]


@pytest.mark.parametrize("status", [400, 401, 404])
def test_a_refused_request_is_not_repeated(status):
    with chat_server(lambda text, number: (status, "no such model")) as asked:
        with pytest.raises(ConfigError, match=f"{status}.*no such model"):
            backend(asked.url)[0].complete([PROMPT])
    assert len(asked.bodies) == 1


def test_nobody_there():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(DataError, match="no usable reply"):
        backend(url, tries=2)[0].complete([PROMPT])


def test_addresses_of_other_kinds_and_replies_of_other_servers(monkeypatch):
    with pytest.raises(ConfigError, match="no http or https address"):
        OpenAiBackend("file:///etc", "m")
    from mcit.data.asd.writing import client

    with pytest.raises(ConfigError, match="no chat completion"):
        client._content({"answer": 1}, "http://x")
    assert client._content({"choices": [{"message": {"content": None}}]}, "http://x") == ""
