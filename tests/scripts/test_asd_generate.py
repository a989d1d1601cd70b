"""The script as a user starts it: plan, generate with a server or a local model, export."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import asd_generate

from mcit.core.schema import BaseConfig
from mcit.data.asd.cues import CUES
from mcit.models.load import materialize
from tests.fakes.chat_server import chat_server, good_reply
from tests.fakes.recipes import recipe_file
from tests.fakes.rows import llava
from tests.fakes.run_dir import json_lines


@pytest.fixture
def recipe(tmp_path):
    """40 rows at X=20: 2 for each foreign style; yn and mcq by rule, brief and detail by a model."""
    train = [
        llava(f"r{k}", f"<image>\nWhat is {k}?\n{CUES['short']}", f"class{k}", image="a.png", style="name")
        for k in range(40)
    ]
    return recipe_file(
        tmp_path / "s", train=train, transforms=[{"use": "asd", "cells": "classes", "answers": "made.jsonl"}]
    )


def test_plan_asks_nobody(recipe, capsys):
    assert asd_generate.main(["plan", str(recipe)]) == 0
    told = capsys.readouterr().out
    assert "native style short, 2 per foreign style, cells classes" in told
    assert "yn: 2 by rule, 0 by a model" in told and "detail: 0 by rule, 2 by a model" in told
    assert "Class: class" in told and "gt_category" in told


def test_generate_then_export(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MCIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MY_KEY", "secret")
    with chat_server(good_reply) as asked:
        start = ["generate", str(recipe), "--backend", "openai", "--base-url", asked.url, "--model", "m"]
        assert asd_generate.main([*start, "--key-env", "MY_KEY"]) == 0
        assert asd_generate.main(start) == 0
    told = capsys.readouterr().out
    assert "4 row(s) for a model, 0 finished before; 4 reply(s), 4 accepted, 0 row(s) stay native" in told
    assert "4 row(s) for a model, 4 finished before; 0 reply(s)" in told
    assert len(asked.bodies) == 4 and {h["Authorization"] for h in asked.headers} == {"Bearer secret"}
    assert "secret" not in (tmp_path / "s" / "made.jsonl").read_text()
    monkeypatch.chdir(tmp_path)
    assert asd_generate.main(["export", str(recipe)]) == 0
    values = json.loads((tmp_path / "train_x20.json").read_text())
    assert len(values) == 40 and sum("asd" in v for v in values) == 8
    assert sorted(v["asd"]["generator"] for v in values if "asd" in v)[0] == "openai:m:prompt-1:attempt-1"


def test_an_interrupted_call_goes_on(recipe, tmp_path, capsys):
    with chat_server(lambda text, number: good_reply(text, number) if number < 1 else (401, "key expired")) as asked:
        start = ["generate", str(recipe), "--backend", "openai", "--model", "m", "--concurrency", "1", "--base-url"]
        assert asd_generate.main([*start, asked.url]) == 2
    assert "key expired" in capsys.readouterr().err
    with chat_server(good_reply) as asked:
        assert asd_generate.main([*start, asked.url]) == 0
    assert len(asked.bodies) == 3


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["--backend", "openai", "--model", "m"], 2, "--base-url: is required"),
        (["--backend", "openai", "--model", "m", "--base-url", "file:///x"], 2, "no http or https address"),
        (["--backend", "hf", "--model", "/nowhere"], 2, "is not a folder"),
    ],
)
def test_what_is_refused(recipe, capsys, arguments, code, message):
    assert asd_generate.main(["generate", str(recipe), *arguments]) == code
    assert message in capsys.readouterr().err


def test_recipe_without_the_step(tmp_path, capsys):
    plain = recipe_file(tmp_path / "s", train=[llava("r", "q", "a")])
    assert asd_generate.main(["plan", str(plain)]) == 4
    assert "no asd transform" in capsys.readouterr().err
    start = ["generate", str(plain), "--backend", "openai", "--model", "m", "--base-url", "http://127.0.0.1:9/v1"]
    assert asd_generate.main(start) == 2
    assert "no file for the answers" in capsys.readouterr().err


def test_a_local_model_goes_through_the_same_filter(recipe, tmp_path, capsys):
    """Random weights answer nonsense: every reply is refused with a reason, and every row stays native."""
    folder = materialize(BaseConfig(family="tiny", dtype="fp32"))
    start = ["generate", str(recipe), "--backend", "hf", "--model", str(folder), "--max-tokens", "8", "--batch", "2"]
    assert asd_generate.main([*start, "--attempts", "2"]) == 0
    told = capsys.readouterr().out
    assert "4 row(s) for a model, 0 finished before; 8 reply(s), 0 accepted, 4 row(s) stay native" in told
    lines = json_lines(tmp_path / "s" / "made.jsonl")
    assert len(lines) == 8 and all(line["status"] == "refused" and line["reasons"] for line in lines)
    assert lines[0]["generator"]["backend"] == "hf" and "@" in lines[0]["generator"]["model"]


@pytest.mark.embedded
def test_the_embedded_model_is_judged_by_the_filter(recipe, tmp_path, capsys):
    """135 million parameters do not write good explanations: each row is accepted or has its reasons, none is lost."""
    folder = materialize(BaseConfig(family="embedded", dtype="fp32"))
    start = ["generate", str(recipe), "--backend", "hf", "--model", str(folder), "--max-tokens", "48", "--batch", "4"]
    assert asd_generate.main([*start, "--attempts", "2"]) == 0
    told = capsys.readouterr().out
    lines = json_lines(tmp_path / "s" / "made.jsonl")
    accepted = {(line["id"], line["style"]) for line in lines if line["status"] == "accepted"}
    refused = [line for line in lines if line["status"] == "refused"]
    assert refused and all(line["reasons"] and "reply" in line for line in refused)
    assert len({(line["id"], line["style"]) for line in lines}) == 4
    assert f"{len(accepted)} accepted, {4 - len(accepted)} row(s) stay native" in told
