"""What the memory of `mcit chat` finds and what a model makes of it, on facts of the demo's recipes.

    python scripts/memory_study.py recall --model embedded --turns 500 --questions 50 --budget 256 --json recall.json
    python scripts/memory_study.py retrieval --model embedded --chunks 10000 --json retrieval.json
    python scripts/memory_study.py latency --model embedded --sizes 1000 10000 50000 --json latency.json

``recall``: a made-up dialogue in which named people draw the objects of ``demo/naming`` and ``demo/lowvision``, between
questions of ``demo/edible``; at its end it is asked who drew what, with no memory (as many of the last turns as the budget
holds), the compact, the vector, and both. Two shares per memory: the fact was in the prompt (``shown``), and the answer names
the object (``right``, unless ``--no-answers``). ``retrieval``: P@5 and R@50 where each name has 20 exchanges. ``latency``:
milliseconds of a question for its vector and for the search. What is in the JSON file under the same settings is not measured
again.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mcit.core.files import write_json
from mcit.core.types import Row, Turn
from mcit.evals.inference import wilson
from mcit.evals.normalise import contains
from mcit.memory.compact import extract
from mcit.memory.memory import Embedder, Memory, MemoryConfig, Recalled
from mcit.memory.prompt import Measure, fitted
from mcit.memory.retrieval import precision_at, recall_at
from mcit.memory.vectors import Vectors

MEMORIES = ("none", "compact", "vector", "both")
PER_NAME = 20
"""Exchanges of a name in ``retrieval``: what is relevant to a question."""
DEPENDS = {
    "recall": ("facts", "turns", "questions", "hits", "budget"),
    "retrieval": ("facts", "chunks", "questions"),
    "latency": ("questions",),
}
"""What the results of a study depend on, besides the model, what embeds texts, and the seed."""
ANSWER = 16
"""Longest answer, in tokens."""
_PARTS = ("ba", "de", "fi", "go", "ku", "la", "me", "no", "pi", "ra", "su", "ti", "vo", "wa", "xe", "zu")


@dataclass(frozen=True)
class Fact:
    """Who drew what, and the turn in which it was said."""

    name: str
    answer: str
    turn: int

    @property
    def question(self) -> str:
        """As it is asked in the dialogue, and at its end."""
        return f"What did {self.name} draw?"

    @property
    def said(self) -> str:
        """The answer in the dialogue."""
        return f"{self.name} drew a {self.answer}."


def names(count: int, draw: random.Random) -> list[str]:
    """Made-up names of three syllables, none twice."""
    made = ["".join((a, b, c)).capitalize() for a in _PARTS for b in _PARTS for c in _PARTS]
    return draw.sample(made, count)


def dialogue(
    drawn: Sequence[str], asides: Sequence[tuple[str, str]], *, turns: int, seed: int
) -> tuple[list[tuple[str, str]], list[Fact]]:
    """So many exchanges, three in five of them facts, and the facts."""
    draw = random.Random(f"{seed}/dialogue")
    people = iter(names(turns, draw))
    said: list[tuple[str, str]] = []
    facts: list[Fact] = []
    for turn in range(turns):
        if draw.random() < 0.6:
            facts.append(Fact(next(people), draw.choice(drawn), turn))
            said.append((facts[-1].question, facts[-1].said))
        else:
            said.append(draw.choice(asides))
    return said, facts


class Asked:
    """A history that knows the whole dialogue and learns nothing from what is asked at its end."""

    def __init__(self, said: Sequence[tuple[str, str]], memory: Memory | None, *, budget: int) -> None:
        self._turns = tuple(t for q, a in said for t in (Turn("user", q), Turn("assistant", a)))
        self._said, self._memory, self._budget = len(said), memory, budget
        self.shown: tuple[tuple[Turn, ...], str] = ((), "")

    def before(self, turns: tuple[Turn, ...], question: str, measure: Measure) -> tuple[tuple[Turn, ...], str]:
        """What of the whole dialogue and the memory fits."""
        found = self._memory.recall(question) if self._memory else Recalled()
        kept, asked, _ = fitted(self._turns, question, found, said=self._said, budget=self._budget, measure=measure)
        self.shown = (kept, asked)
        return kept, asked

    def after(self, question: str, answer: str) -> None:
        """Nothing is learned from a question of the study."""

    def shows(self, fact: Fact) -> bool:
        """Whether the last prompt held what was said of a fact."""
        turns, asked = self.shown
        return any(turn.text == fact.said for turn in turns) or fact.said in asked


def share(hits: Sequence[bool]) -> dict[str, Any]:
    """A share with Wilson's 95 % interval."""
    return {"share": sum(hits) / len(hits), "interval": wilson(sum(hits), len(hits)), "n": len(hits)}


def recall(
    said: Sequence[tuple[str, str]], facts: Sequence[Fact], memory: Memory | None, chat: Any, args: argparse.Namespace
) -> dict[str, Any]:
    """Shares of the questions whose fact was shown, and answered."""
    history = Asked(said, memory, budget=args.budget)
    talk = chat(history)
    draw = random.Random(f"{args.seed}/questions")
    shown, right, lengths = [], [], []
    for fact in draw.sample(list(facts), min(args.questions, len(facts))):
        before, question = history.before((), fact.question, talk)
        shown.append(history.shows(fact))
        lengths.append(talk.prompt(before, question))
        if not args.no_answers:
            answer = chat(history).ask(fact.question, max_new_tokens=ANSWER)["text"]
            right.append(contains(answer, fact.answer))
    out = {"shown": share(shown), "longest_prompt": max(lengths), "mean_prompt": sum(lengths) / len(lengths)}
    return {**out, "right": share(right)} if right else out


def retrieval(embed: Embedder, drawn: Sequence[str], args: argparse.Namespace) -> dict[str, Any]:
    """P@5 and R@50 over questions about one name each."""
    draw = random.Random(f"{args.seed}/retrieval")
    people = names(args.chunks // PER_NAME, draw)
    chunks = [
        (name, f"What did {name} draw on day {day}?\n{name} drew a {draw.choice(drawn)}.")
        for name in people
        for day in range(PER_NAME)
    ]
    draw.shuffle(chunks)
    held = Vectors(embed.dimension)
    for start in range(0, len(chunks), 32):
        held.add(embed([text for _, text in chunks[start : start + 32]]))
    precision, recalled = [], []
    for name in draw.sample(people, min(args.questions, len(people))):
        relevant = {place for place, (other, _) in enumerate(chunks) if other == name}
        ranking = [place for place, _ in held.search(embed([f"Which things did {name} draw?"])[0], 50)]
        precision.append(precision_at(ranking, relevant, 5))
        recalled.append(recall_at(ranking, relevant, 50))
    return {"p@5": spread(precision), "r@50": spread(recalled), "entries": len(held)}


def latency(embed: Embedder, size: int, args: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of a question: its vector, and the search among so many entries."""
    draw = np.random.RandomState(args.seed)
    held = Vectors(embed.dimension)
    held.add(draw.normal(size=(size, embed.dimension)))
    held.search(draw.normal(size=embed.dimension), 5)  # an index is built by the first search
    embedded, searched = [], []
    for number in range(args.questions):
        began = time.perf_counter()
        query = embed([f"What did number {number} draw?"])[0]
        middle = time.perf_counter()
        held.search(query, 5)
        embedded.append(1e3 * (middle - began))
        searched.append(1e3 * (time.perf_counter() - middle))
    return {"exact": held.exact, "vector_ms": spread(embedded), "search_ms": spread(searched)}


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, and 5th, 50th and 95th percentile."""
    return {
        "mean": float(np.mean(values)),
        "percentiles": np.percentile(values, [5, 50, 95]).tolist(),
        "n": len(values),
    }


def measured(args: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """Name of each result and how to get it."""
    import torch

    from mcit.core.interfaces import Silent
    from mcit.data.build import build
    from mcit.data.folder import DataFolder
    from mcit.data.recipe import find_recipe, load_recipe
    from mcit.memory.embed import FolderEmbedder, ModelEmbedder
    from mcit.train.chat import Chat
    from mcit.train.standalone import Standalone, model_config

    one = Standalone(model_config(args.model, ["base.dtype=fp32", *args.set]), reporter=Silent())
    given = {"device": torch.device("cpu")}
    embed: Embedder
    if args.encoder:
        embed = FolderEmbedder(args.encoder, **given)
    else:
        embed = ModelEmbedder(one.model, one.encoder, digest=one.digest, layer=args.layer, **given)

    def rows(recipe: str) -> Sequence[Row]:
        return DataFolder.open(build(load_recipe(find_recipe(recipe)))).rows("train")

    if one.encoder.max_length is not None:
        args.budget = min(args.budget, one.encoder.max_length - ANSWER)
    drawn = sorted({r.answer for recipe in args.facts for r in rows(recipe) if r.meta.get("visible", True)})
    if args.study == "latency":
        for size in args.sizes:
            yield named(f"{size} entries", args), lambda size=size: latency(embed, size, args)
    elif args.study == "retrieval":
        yield named("exchanges", args), lambda: retrieval(embed, drawn, args)
    else:
        asides = [(f"Can you eat a {r.meta['object']}?", r.answer) for r in rows("demo/edible")]
        said, facts = dialogue(drawn, sorted(set(asides)), turns=args.turns, seed=args.seed)
        for kind in MEMORIES:
            memory = None
            if kind != "none":
                memory = Memory(embed, extract, MemoryConfig(parts=kind, hits=args.hits))
                for question, answer in said:
                    memory.remember(question, answer)
            yield (
                named(kind, args),
                lambda memory=memory: recall(
                    said, facts, memory, lambda h: Chat(one.model, one.encoder, history=h, **given), args
                ),
            )


def named(part: str, args: argparse.Namespace) -> str:
    """The name of a result: its part of the study, and every setting that it depends on."""
    keys = ("model", "set", "encoder" if args.encoder else "layer", *DEPENDS[args.study], "seed")
    values = {key: getattr(args, key) for key in keys}
    shown = {k: " ".join(v) if isinstance(v, list) else v for k, v in values.items() if v != []}
    return ", ".join([part, *(f"{key} {value}" for key, value in shown.items())])


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="recall, retrieval and latency of a memory")
    parser.add_argument("study", choices=("recall", "retrieval", "latency"))
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--encoder", help="folder of a sentence encoder (default: the model itself)")
    parser.add_argument("--layer", default="0", help="whose hidden states embed texts")
    parser.add_argument(
        "--facts", nargs="+", default=["demo/naming", "demo/lowvision"], help="recipes whose answers are drawn"
    )
    parser.add_argument("--turns", type=int, default=500)
    parser.add_argument("--questions", type=int, default=50)
    parser.add_argument("--hits", type=int, default=5)
    parser.add_argument("--budget", type=int, default=3500)
    parser.add_argument("--no-answers", action="store_true", help="recall: only look what the prompt shows")
    parser.add_argument("--chunks", type=int, default=10000)
    parser.add_argument("--sizes", nargs="+", type=int, default=[1000, 10000, 50000])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, required=True)
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Measure what is missing and write it as it comes."""
    args = arguments(given)
    result: dict[str, Any] = json.loads(args.json.read_text()) if args.json.is_file() else {}
    for name, measure in measured(args):
        if name not in result or not args.no_answers and args.study == "recall" and "right" not in result[name]:
            result[name] = measure()
            write_json(args.json, result)
        print(name, json.dumps(result[name]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
