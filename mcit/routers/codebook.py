"""Groups of instructions: each group has an adapter and a codebook of its instructions; rows go to the group most like theirs.

Paper: LCIA (Qiao et al., "Large Continual Instruction Assistant", ICML 2025, arXiv:2410.10868), instruction grouping, as its
released ``LoRASelect.py`` has it: TF-IDF is fitted on each pair of strings alone, English stop words are left out, the score of
a group is the mean cosine over all pairs of a stage's instructions with those of its codebook. The best group is continued and
takes the new strings if its score reaches the threshold, else a new group begins. At test the best group answers, or the last
one where none reaches the threshold.
State: "codebook", instructions by member in order; "threshold", "instruction" and "stop_words", for `route`.

The instruction is a part of the question, which the templates of a benchmark share. Differs: at most `most` instructions of
a stage are kept, drawn by its seed; strings of stop words alone, on which the released code fails, are alike only if equal.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from mcit.core.config import Field
from mcit.core.interfaces import DataContext, PoolContext
from mcit.core.optional import needed
from mcit.core.types import JsonDict
from mcit.routers.base import Router, RouterConfig, States

if TYPE_CHECKING:
    from torch import Tensor


class Codebook(Router):
    """By likeness of instructions."""

    class Config(RouterConfig):
        """Settings of the grouping."""

        threshold: float = Field(0.9, ge=0, le=1)
        """Score from which on a group is continued; 0.9 for a benchmark's own templates, 0.3 for diverse ones."""
        instruction: Literal["last_line", "second_line", "before_colon"] = "last_line"
        """Which part of a question it is; the code takes the second line for ImageNet, text before a colon for boxes."""
        most: int = Field(64, ge=1)
        """Different instructions that a stage puts into a codebook."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._codebook: dict[str, list[str]] = {}

    def join(self, members: Sequence[str], data: DataContext) -> str | None:
        """The group whose codebook is most like the stage's instructions, if it is like enough."""
        own = self._own(data)
        scores = {member: group_score(own, strings) for member, strings in self._codebook.items() if member in members}
        best = max(scores, key=lambda member: scores[member], default=None)
        return best if best is not None and scores[best] >= self.config.threshold else None

    def learn(self, member: str, ctx: PoolContext) -> None:
        """Put the stage's instructions into the group's codebook."""
        known = self._codebook.setdefault(member, [])
        known += [string for string in self._own(ctx.data) if string not in known]

    def _own(self, data: DataContext) -> list[str]:
        asked = (
            next(turn.text for turn in row.turns if turn.role == "user")
            for row in data.stage_rows()
            if len(row.turns) > 1
        )
        strings = sorted({instruction_of(text, self.config.instruction) for text in asked})
        return sorted(random.Random(f"{data.seed}/codebook").sample(strings, min(self.config.most, len(strings))))

    @staticmethod
    def route(
        rows: Sequence[Mapping[str, str]],
        members: Sequence[str],
        state: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        states: States,
    ) -> list[str]:
        """The most alike group, or the last one; TF-IDF with the smoothed document frequencies of scikit-learn."""
        import math
        import re
        from collections import Counter

        stop = set(state["stop_words"])

        def words(text: str) -> Counter[str]:
            return Counter(word for word in re.findall(r"(?u)\b\w\w+\b", text.lower()) if word not in stop)

        def part(text: str) -> str:
            lines = [line.strip() for line in text.replace("<image>", "").strip().splitlines() if line.strip()] or [""]
            if state["instruction"] == "second_line":
                return lines[min(1, len(lines) - 1)]
            return lines[-1].split(":")[0].strip() if state["instruction"] == "before_colon" else lines[-1]

        def cosine(a: Counter[str], b: Counter[str], same: bool) -> float:
            if not a or not b:
                return float(same)
            weight = {word: 1.0 if word in a and word in b else math.log(1.5) + 1 for word in a | b}
            norms = [math.sqrt(sum((n * weight[word]) ** 2 for word, n in counts.items())) for counts in (a, b)]
            return sum(a[word] * b[word] for word in a & b) / (norms[0] * norms[1])

        book = {m: [(s, words(s)) for s in state["codebook"].get(m, [])] for m in members}
        chosen = []
        for row in rows:
            text = part(row["question"])
            own = words(text)
            scores = {m: sum(cosine(own, w, text == s) for s, w in book[m]) / len(book[m]) for m in members if book[m]}
            best = max(scores, key=lambda m: scores[m], default=None)
            chosen.append(best if best is not None and scores[best] >= state["threshold"] else members[-1])
        return chosen

    def state_dict(self) -> JsonDict:
        """Codebooks, and what `route` needs of the settings."""
        words = sorted(needed("sklearn.feature_extraction.text", where="router (codebook)").ENGLISH_STOP_WORDS)
        given = {"threshold": self.config.threshold, "instruction": self.config.instruction, "stop_words": words}
        return {"codebook": self._codebook, **given}

    def load_state_dict(self, state: JsonDict) -> None:
        """Take back the codebooks."""
        self._codebook = {member: list(strings) for member, strings in state["codebook"].items()}


def instruction_of(text: str, part: str) -> str:
    """The part of a question that is its instruction, without picture placeholders and blank lines."""
    lines = [line.strip() for line in text.replace("<image>", "").strip().splitlines() if line.strip()] or [""]
    if part == "second_line":
        return lines[min(1, len(lines) - 1)]
    return lines[-1].split(":")[0].strip() if part == "before_colon" else lines[-1]


def group_score(own: Sequence[str], strings: Sequence[str]) -> float:
    """Mean over all pairs of the cosine of two strings in the TF-IDF fitted on them alone; 0 without pairs."""
    pairs = [pair_score(a, b) for a in own for b in strings]
    return sum(pairs) / len(pairs) if pairs else 0.0


def pair_score(a: str, b: str) -> float:
    """Cosine of two strings in the TF-IDF fitted on them alone, without English stop words; of equal strings 1."""
    if a == b:
        return 1.0
    vectoriser = needed("sklearn.feature_extraction.text", where="router (codebook)").TfidfVectorizer(
        stop_words="english"
    )
    try:
        first, second = vectoriser.fit_transform([a, b])
    except ValueError:  # nothing but stop words
        return 0.0
    return float((first @ second.T)[0, 0])
