"""The published caption number from stored answers; the Java programs are stood in for."""

import shutil

import pytest

from mcit.evals.predictions import write_predictions
from scripts import coco_captions

REFERENCES = {"a cat sits": ["a cat sits"], "a dog runs": ["x", "a dog runs"]}
MADE = {"tokens": 3, "truncated": False, "question": ""}
ROWS = [{"id": t, "index": i, "text": t, "gold": {"answers": r}, **MADE} for i, (t, r) in enumerate(REFERENCES.items())]


class Plain:
    """Stands for the Java tokenizer: captions as they are."""

    def tokenize(self, captions):
        return {k: [c["caption"] for c in found] for k, found in captions.items()}


class Half:
    """Stands for METEOR."""

    def compute_score(self, gts, res):
        return 0.5, [0.5 for _ in gts]


@pytest.fixture
def folder(tmp_path):
    write_predictions(tmp_path, ROWS, {})
    return tmp_path


def test_the_mean_of_seven(folder, monkeypatch):
    from pycocoevalcap.meteor import meteor
    from pycocoevalcap.tokenizer import ptbtokenizer

    monkeypatch.setattr(meteor, "Meteor", Half)
    monkeypatch.setattr(ptbtokenizer, "PTBTokenizer", Plain)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/java")
    assert coco_captions.main([str(folder)]) == 0
    found = coco_captions.measure(folder)
    assert found["bleu_1"] == pytest.approx(100, abs=1e-4) and found["meteor"] == 50 and found["rouge_l"] == 100
    assert found["average"] == pytest.approx(sum(found[n] for n in coco_captions.NAMES) / 7)


def test_without_java_it_says_so(folder, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert coco_captions.main([str(folder)]) != 0
    assert "need java" in capsys.readouterr().err
