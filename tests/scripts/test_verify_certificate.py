"""The script that checks certificates, on a head of three rows made by hand."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from scripts.verify_certificate import main

HEAD = {"stage": "01-a", "home": "router"}


@pytest.fixture
def run(tmp_path):
    """A head of rows a, b (first class) and c (second), gamma 1."""
    head = {"classes": ["one", "two"], "rows": {"one": ["a", "b"], "two": ["c"]}}
    x = {"one": np.array([[1.0, 0.0], [0.0, 1.0]]), "two": np.array([[1.0, 1.0]])}
    every = np.concatenate([x["one"], x["two"]])
    cross = np.stack([x["one"].sum(0), x["two"].sum(0)], 1)
    home = tmp_path / "stages" / "01-a" / "router"
    home.mkdir(parents=True)
    (home / "state.json").write_text(json.dumps({"state": {"head": head}}))
    weight = np.linalg.solve(every.T @ every + np.eye(2), cross)
    save_file({"weight|head": weight}, home / "tensors.safetensors")
    return tmp_path, x


def certify(root, name, key, features):
    folder = root / "certificates" / name
    folder.mkdir(parents=True)
    about = {"rows": [{"key": key}], "heads": [HEAD], "gamma": {"01-a/router": 1.0}, "limit": 1e-10}
    (folder / "certificate.json").write_text(json.dumps(about))
    save_file({f"base|{label}": x for label, x in features.items()}, folder / "features.safetensors")
    return folder


def test_the_newest_proves_the_weights_and_an_older_one_that_its_rows_stay_away(run, capsys):
    root, x = run
    first = certify(root, "0001", "d", {**x, "two": np.array([[1.0, 1.0], [3.0, 0.0]])})
    assert main(root, first) == 1, "as long as it is the newest, weights are compared"
    assert "the certificate has 2 rows of two, the head 1" in capsys.readouterr().out
    (root / "certificates" / "stages").mkdir()
    assert main(root, certify(root, "0002", "e", x)) == 0 and "superseded" not in capsys.readouterr().out
    assert main(root, first) == 0 and "superseded by 0002" in capsys.readouterr().out


def test_a_forgotten_row_that_is_listed_is_wrong_whatever_came_later(run, capsys):
    root, x = run
    first = certify(root, "0001", "b", x)
    assert main(root, first) == 1
    certify(root, "0002", "e", x)
    capsys.readouterr()
    assert main(root, first) == 1 and "forgotten rows listed: 1: WRONG" in capsys.readouterr().out
