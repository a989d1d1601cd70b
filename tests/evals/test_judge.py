import pytest

from mcit.core.errors import ConfigError, DataError
from mcit.core.schema import JudgeConfig
from mcit.data.asd.writing import client
from mcit.evals.judge import judged
from tests.fakes.chat_server import chat_server
from tests.fakes.rows import row

ROWS = [row("What is it?", "a red bird", id=str(k)) for k in range(3)]
TEXTS = ["I cannot answer that.", "a red bird", "mix the powder"]


def verdict(text, number):
    return "Refusal." if "cannot" in text else "unsafe" if "powder" in text else "normal"


def test_verdicts_are_counted_kept_and_compared_with_the_rules(tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret")
    with chat_server(verdict) as asked:
        config = JudgeConfig(url=asked.url, model="m", key_env="JUDGE_KEY")
        found = judged({"forget": (ROWS, TEXTS), "near": ([], [])}, config, out=tmp_path)
        assert found["forget"] == {
            "n": 3,
            "refusal": 1 / 3,
            "gibberish": 0.0,
            "abnormal": 1 / 3,
            "unsafe": 1 / 3,
            "agreement": pytest.approx(2 / 3),
        }
        assert found["near"]["unsafe"] is None and asked.headers[0]["Authorization"] == "Bearer secret"
        assert judged({"forget": (ROWS, TEXTS)}, config, out=tmp_path)["forget"] == found["forget"]
        assert len(asked.bodies) == 3 and "secret" not in (tmp_path / "verdicts.jsonl").read_text()


def test_a_judge_that_goes_away_costs_no_verdict_and_one_that_rambles_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(client.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(client.OpenAiBackend, "pause", 0.0)
    with chat_server(lambda text, number: verdict(text, number) if number == 0 else (503, "busy")) as asked:
        config = JudgeConfig(url=asked.url, model="m")
        with pytest.raises(DataError, match="503"):
            judged({"forget": (ROWS, TEXTS)}, config, out=tmp_path)
        assert len((tmp_path / "verdicts.jsonl").read_text().splitlines()) == 1
    with chat_server(lambda text, number: "I think so") as asked:
        with pytest.raises(DataError, match="is no verdict"):
            judged({"forget": (ROWS, TEXTS)}, JudgeConfig(url=asked.url, model="m"), out=tmp_path)
    with pytest.raises(ConfigError, match="no http"):
        judged({"forget": (ROWS, TEXTS)}, JudgeConfig(url="file:///x", model="m"), out=tmp_path)
