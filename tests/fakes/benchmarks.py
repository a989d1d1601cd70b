"""Folders of public benchmarks in exactly the layout that their authors describe, with a few made-up rows each.

CoIN and CoIN-Refined: ``playground/Instructions/<task>/{train,test}.json`` beside ``cl_dataset/`` with the pictures (READMEs of
zackschen/CoIN and JingyangQiao/CoIN). CoIN-ASD: ``annotations/<task>/train_x<X>.json`` beside the pictures' folders (README of
jinpeng0528/SEFE). UCIT: data configs of MCITlib. MLLM-CL: README of bjzhb666/MLLM-CL. LLaVA's mix: docs/Data.md of LLaVA.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.fakes.rows import picture

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
OPTIONS = "Which is a metal?\nA. iron\nB. wood"
FOLDERS = {
    "ScienceQA": "ScienceQA/images/train",
    "TextVQA": "TextVQA/train_images",
    "ImageNet": "ImageNet_withlabel/train",
    "GQA": "GQA/images",
    "VizWiz": "VizWiz/train",
    "Grounding": "COCO2014/train2014",
    "VQAv2": "COCO2014/train2014",
    "OCRVQA": "OCR-VQA/images",
}
"""Where CoIN's rows find their pictures below ``cl_dataset``."""
COIN = {
    "ScienceQA": (f"{OPTIONS}\n{LETTER}", "A"),
    "TextVQA": (f"What is the brand?\nReference OCR token: ACME, 12\n{SHORT}", "acme"),
    "ImageNet": (f"What is the object in the image?\n{SHORT}", "tabby cat"),
    "GQA": (f"Is it red or blue?\n{SHORT}", "red"),
    "VizWiz": (f"What is this?\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n{SHORT}", "soup"),
    "Grounding": ("Give the bounding box of the region that this sentence describes: cup.", "[0.1, 0.2, 0.5, 0.6]"),
    "VQAv2": (f"How many cups?\n{SHORT}", "two"),
    "OCRVQA": (f"Who wrote this book?\n{SHORT}", "A. Writer"),
}  # fmt: skip
"""Question and answer of each task."""


def _save(path: Path, rows: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))


def _pictures(folder: Path, count: int, first: int) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    colours = [(10 * (k % 25), 40 + 50 * (k // 25), first % 250) for k in range(count)]
    return [picture(folder, f"{first + k:06d}.jpg", colour=colour) for k, colour in enumerate(colours)]


def train_rows(images: list[str], question: str, answer: str) -> list[dict[str, Any]]:
    """Training rows of the LLaVA family, one per picture; ``{k}`` in the question is the row's number."""
    rows = []
    for k, image in enumerate(images):
        asked = {"from": "human", "value": f"<image>\n{question}".replace("{k}", str(k))}
        rows.append({"id": f"{k}", "image": image, "conversations": [asked, {"from": "gpt", "value": answer}]})
    return rows


def rows_at_test(images: list[str], question: str, answer: Any, **more: Any) -> list[dict[str, Any]]:
    """Test rows of CoIN and its successors."""
    return [
        {"question_id": k, "image": image, "text": question.replace("{k}", str(k)), "answer": answer, **more}
        for k, image in enumerate(images)
    ]


def coin(root: Path, tasks: list[str], *, train: int = 12, test: int = 3) -> Path:
    """CoIN, or CoIN-Refined, below `root`; the letter cue is missing at test, as the harness adds it."""
    for number, task in enumerate(tasks):
        question, answer = COIN[task]
        home = FOLDERS[task]
        images = [f"./{home}/{name}" for name in _pictures(root / "cl_dataset" / home, train + test, 100 * number)]
        more = {"answer_bbox": answer, "size": [40, 30]} if task == "Grounding" else {}
        asked = question.replace(f"\n{LETTER}", "")
        folder = root / "playground" / "Instructions" / task
        _save(folder / "train.json", train_rows(images[:train], question, answer))
        _save(folder / "test.json", rows_at_test(images[train:], asked, answer, **more))
        if task == "TextVQA":
            entries = [
                {"question_id": k, "question": "What is the brand?", "answers": ["acme"] * 10} for k in range(test)
            ]
            _save(root / "cl_dataset" / "TextVQA" / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": entries})
    return root


def coin_asd(root: Path, tasks: list[str], percents: tuple[int, ...] = (10, 20, 40, 60, 80)) -> Path:
    """CoIN-ASD as SEFE's README arranges it."""
    for number, task in enumerate(tasks):
        question, answer = COIN[task]
        home = "COCO/train2014" if task in ("Grounding", "VQAv2") else f"{task}/images"
        images = [f"{home}/{name}" for name in _pictures(root / home, 12, 100 * number)]
        asked = question.replace(f"\n{LETTER}", "")
        more = {"answer_bbox": answer, "size": [40, 30]} if task == "Grounding" else {}
        for percent in percents:
            rows = train_rows(images[:9], question, answer)
            talk = f'<image>\n{asked}\nIs the correct answer "{answer}"?\nAnswer with yes or no.'
            rows[0]["conversations"] = [{"from": "human", "value": talk}, {"from": "gpt", "value": "Yes"}]
            _save(root / "annotations" / task / f"train_x{percent}.json", rows)
        _save(root / "annotations" / task / "test.json", rows_at_test(images[9:], asked, answer, **more))
        if task == "TextVQA":
            entries = [{"question_id": k, "answers": ["acme"] * 10} for k in range(3)]
            _save(root / "TextVQA" / "TextVQA_0.5.1_val.json", {"data": entries})
    return root


UCIT = {
    "ImageNet-R": ("train.json", f"What is the object in the image?\n{SHORT}", "goldfish"),
    "ArxivQA": ("train_4w.json", f"What does the figure show?\nA) growth\nB) decay\n{LETTER}", "A"),
    "VizWiz-caption": ("train.json", "What is happening in the image?\nGenerate a brief caption for the image.", "A red cup."),
    "IconQA": ("train.json", f"How many stars?\n{SHORT}", "3"),
    "CLEVR-Math": ("train_4w.json", f"Subtract all cubes. How many objects are left?\n{SHORT}", "4"),
    "Flickr30k-cap": ("train_brief_4w.json", "What is happening?\nGenerate a brief caption for the image.", "A dog runs."),
}  # fmt: skip


def ucit(root: Path) -> Path:
    """UCIT: one folder of instructions per task, pictures below ``datasets``."""
    for number, (task, (name, question, answer)) in enumerate(UCIT.items()):
        home = f"datasets/{task}/images"
        images = [f"./{home}/{image}" for image in _pictures(root / home, 12, 100 * number)]
        gold: Any = [answer, "Another caption."] if "cap" in task else answer
        _save(root / task / name, train_rows(images[:9], question, answer))
        _save(root / task / "test_3000.json", rows_at_test(images[9:], question, gold))
    return root


MLLM_CL = {
    "RS": ("How many buildings are there?", "12"),
    "Med": ("Is there a tumour in slice {k}?", "no"),
    "AD": ("What is in front of the car?", "a truck"),
    "Sci": (f"{OPTIONS}\n{LETTER}", "A"),
    "Fin": ("Which month was the highest?\nA. May\nB. June {k}", "B"),
    "OCR": ("What is written?", "open"),
    "Math": ("What is x?", "4"),
    "VP": ("How many chairs are there?", "2"),
    "APP": ("Where do I tap to go back?", "the arrow"),
}


def mllm_cl(root: Path) -> Path:
    """MLLM-CL: a folder per domain; abilities have a folder of their own for the test."""
    for number, (task, (question, answer)) in enumerate(MLLM_CL.items()):
        ability = task in ("OCR", "Math", "VP", "APP")
        names = _pictures(root / task / "images", 9, 100 * number)
        _save(root / task / "train.json", train_rows([f"images/{n}" for n in names], question, answer))
        home = root / (f"{task}_test" if ability else task)
        names = _pictures(home / "images", 3, 100 * number + 50)
        if task == "Sci":
            names = [str((home / "images" / n).rename(home / "images" / f"AI2D_{n}").name) for n in names]
        gold: Any = [answer, answer.upper()] if task == "OCR" else answer
        more = {"OCR": {"answer_type": "Scene Text-centric VQA"}, "VP": {"type": "2D", "task": "Count"}}.get(task, {})
        rows = rows_at_test([f"images/{n}" for n in names], question, gold, **more)
        if task == "Fin":
            rows[0].update(text="Did the price rise?", answer="Yes")
        _save(home / "test.json", rows)
    return root


def llava_mix(root: Path) -> Path:
    """LLaVA's mix: rows of several questions, one picture in two parts under one id, a conversation without a picture."""
    (image,) = (f"coco/train2017/{name}" for name in _pictures(root / "coco" / "train2017", 1, 0))
    several = train_rows([image], f"What colour?\n{SHORT}", "Red")[0]
    several["conversations"] += [{"from": "human", "value": "How many?"}, {"from": "gpt", "value": "One"}]
    again = train_rows([image], "Describe it.", "A red picture.")[0]
    again["conversations"][0]["value"] = "Describe it.\n<image>"
    talk = {
        "id": "wgByO4Y_0",
        "model": "",
        "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}],
    }
    _save(root / "llava_v1_5_mix665k.json", [several, again, talk])
    return root
