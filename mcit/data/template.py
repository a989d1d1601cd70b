"""Conversation -> text: the model's own chat template, and which characters of its output are an answer.

A template may mark answers with ``{% generation %}``. Most do not; then the conversation is rendered a second time with
a unique word in the place of each answer, which tells where answers stand whatever the template puts around them.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from os.path import commonprefix
from typing import Any, Literal

from jinja2 import TemplateError

from mcit.core.errors import DataError
from mcit.core.types import Row, Turn
from mcit.data.placeholder import PLACEHOLDER

_MARKERS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_RENDERING = threading.Lock()
"""transformers compiles a template once per process, and the compiled template remembers the marks of the rendering under way:
two threads in it at once get each other's answers."""
_SYSTEM = "write system: front for the source: the turn then stands above the first question"
_FIXED_DATE = "01 Jan 2026"
"""Some templates print today's date: a run that crosses midnight would change."""


@dataclass(frozen=True, slots=True)
class Rendering:
    """A conversation as one string, and where the answers are in it."""

    text: str
    """Ends with the end marker of the last answer: what comes after has no influence on the loss."""
    prompts: tuple[int, ...]
    """Per answer the length of the generation prompt that leads to it: everything before is given to the model."""
    ends: tuple[int, ...]
    """Per answer the position after its end marker: ``text[prompts[k]:ends[k]]`` is what the model must produce."""
    answers: tuple[tuple[int, int], ...]
    """Per answer start and end of its own words."""


class ChatTemplate:
    """Renders rows with a processor's chat template; knows the end marker of an answer."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._tokenizer = processor.tokenizer
        self._source = _template_source(processor)
        self._extra = {"date_string": _FIXED_DATE} if "date_string" in self._source else {}
        self._marked = bool(_MARKERS.search(self._source))
        self.image_token: str = getattr(processor, "image_token", None) or PLACEHOLDER
        specials = {t for t in self._tokenizer.all_special_tokens if t.strip()}
        specials |= {str(t) for t in self._tokenizer.added_tokens_decoder.values() if t.special and str(t).strip()}
        self._specials = sorted(specials - {self.image_token}, key=lambda token: (-len(token), token))
        self._control = re.compile("|".join(map(re.escape, [*self._specials, self.image_token])))
        self._parts = self._takes_parts()
        self._closers: dict[str, str] = {}

    def render(self, row: Row, *, upto: int | None = None) -> Rendering:
        """Render the turns of a row (the first `upto` of them).

        Raises DataError when the template loses an answer, or leads to one with other words than its own prompt.
        """
        turns = row.turns[:upto]
        if turns and turns[0].role == "system" and self._no_system:
            raise DataError(self._no_system, where=row.where, fix=_SYSTEM)
        messages = [self._message(turn, row) for turn in turns]
        answers = [turn.text.strip() for turn in turns if turn.role == "assistant"]
        text = self._render(messages, row)
        spans = self._spans(text, messages, answers, row)
        return self._close(text, spans, messages, row)

    def control_token(self, text: str) -> str:
        """The first of the model's control tokens that a text contains, or an empty string."""
        found = self._control.search(text)
        return found.group() if found else ""

    def _takes_parts(self) -> bool:
        """Text-only templates join strings; given a list of parts they fail or print its Python form."""
        probe = [{"role": "user", "content": [{"type": "text", "text": "probe"}]}]
        try:
            shown = self._raw(probe, prompt=True)
        except (TypeError, TemplateError):
            return False
        return "'type'" not in shown and "probe" in shown

    @cached_property
    def _no_system(self) -> str:
        """What the template does to a system turn if it has no place for one; empty if it has."""
        question = Row("probe", (), (Turn("user", "probe"),), "", "processor")
        asked = self._message(question.turns[0], question)

        def shown(role: Literal["system", "user", "assistant"]) -> str:
            return self._raw([self._message(Turn(role, "directions"), question), asked], prompt=False)

        try:
            text = shown("system")
        except TemplateError as error:
            return f"the chat template refuses a system turn ({error})"
        if "directions" not in text:
            return "the chat template leaves the system turn out"
        for role in ("user", "assistant"):
            with contextlib.suppress(TemplateError):  # it may insist on turns that alternate
                if shown(role) == text:
                    return f"the chat template shows the system turn as one of the {role}"
        return ""

    # ---- rendering --------------------------------------------------------------------------------------------------
    def _render(self, messages: Sequence[dict[str, Any]], row: Row, *, prompt: bool = False) -> str:
        try:
            return self._raw(messages, prompt=prompt)
        except TemplateError as error:
            fix = "change the row, or give another template with base.chat_template"
            raise DataError(f"the chat template refuses the row: {error}", where=row.where, fix=fix) from None

    def _raw(self, messages: Sequence[dict[str, Any]], *, prompt: bool) -> str:
        with _RENDERING:
            return self._processor.apply_chat_template(
                list(messages), chat_template=self._source, tokenize=False, add_generation_prompt=prompt, **self._extra
            )

    def _message(self, turn: Turn, row: Row) -> dict[str, Any]:
        """A turn as a template wants it; images stay where their placeholders are."""
        pieces = turn.text.split(PLACEHOLDER) if turn.role == "user" else [turn.text.strip()]
        for piece in pieces:
            found = self._control.search(piece)
            if found:
                raise DataError(
                    f"the text contains the model's control token {found.group()!r}",
                    where=row.where,
                    fix="remove it from the row, or write it differently",
                )
        parts: list[dict[str, str]] = []
        for index, piece in enumerate(pieces):
            if index:
                parts.append({"type": "image"})
                piece = piece.removeprefix("\n")
            piece = piece.removesuffix("\n")
            if piece.strip():
                parts.append({"type": "text", "text": piece.strip() if len(pieces) == 1 else piece})
        if self._parts:
            return {"role": turn.role, "content": parts}
        shown = [part["text"] if part["type"] == "text" else f"{self.image_token}\n" for part in parts]
        return {"role": turn.role, "content": "".join(shown)}

    # ---- where the answers are --------------------------------------------------------------------------------------
    def _spans(self, text: str, messages: list[dict[str, Any]], answers: list[str], row: Row) -> list[tuple[int, int]]:
        spans = self._marked_spans(text, messages) if self._marked else self._probed_spans(messages, answers, row)
        fits = len(spans) == len(answers) and all(
            text[start:end].endswith(answer) for (start, end), answer in zip(spans, answers, strict=True)
        )
        if not fits:
            raise DataError(
                "the chat template does not show every answer word for word",
                where=row.where,
                fix="give a template with base.chat_template that prints each assistant message as it is",
            )
        return spans

    def _marked_spans(self, text: str, messages: list[dict[str, Any]]) -> list[tuple[int, int]]:
        """Marked regions without the white space around them and without an end marker inside."""
        from transformers.utils.chat_template_utils import render_jinja_template

        settings: dict[str, Any] = {**self._tokenizer.special_tokens_map, **self._extra}
        with _RENDERING:
            rendered: Any = render_jinja_template(
                conversations=[list(messages)],
                chat_template=self._source,
                return_assistant_tokens_mask=True,
                **settings,
            )
        spans = []
        for start, end in rendered[1][0]:
            region = text[start:end]
            kept = region.rstrip()
            for token in self._specials:
                if kept.endswith(token):
                    kept = kept.removesuffix(token).rstrip()
                    break
            spans.append((start + len(kept) - len(kept.lstrip()), start + len(kept)))
        return spans

    def _probed_spans(self, messages: list[dict[str, Any]], answers: list[str], row: Row) -> list[tuple[int, int]]:
        words = [f"\u27e6answer {k}\u27e7" for k in range(len(answers))]
        waiting = iter(words)
        probed = []
        for message in messages:
            if message["role"] == "assistant":
                word = next(waiting)
                message = {**message, "content": [{"type": "text", "text": word}] if self._parts else word}
            probed.append(message)
        text = self._render(probed, row)
        spans, shift = [], 0
        for word, answer in zip(words, answers, strict=True):
            at = text.find(word)
            if at < 0:
                return []
            spans.append((at + shift, at + shift + len(answer)))
            shift += len(answer) - len(word)
        return spans

    # ---- where they end ---------------------------------------------------------------------------------------------
    def _close(self, text: str, spans: list[tuple[int, int]], messages: list[dict[str, Any]], row: Row) -> Rendering:
        """Find each answer's end marker, or put the tokenizer's end token where the template has none."""
        if not spans:
            return Rendering(text, (), (), ())
        closer = self._closer(text[spans[-1][1] :])
        out, prompts, ends, answers = "", [], [], []
        places = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        done = 0  # characters of `text` already in `out`
        for place, (start, end) in zip(places, spans, strict=True):
            lead = self._render(messages[:place], row, prompt=True)
            prompt, between = self._lead(text, (done, start), lead, row, last=place == places[-1])
            out += prompt
            prompts.append(len(out))
            out += between
            answers.append((len(out), len(out) + end - start))
            out += text[start:end]
            rest = text[end:]
            gap = len(rest) - len(rest.lstrip())
            if rest[gap:].startswith(closer):
                out += rest[: gap + len(closer)]
                done = end + gap + len(closer)
            else:
                out += closer
                done = end
            ends.append(len(out))
        return Rendering(out, tuple(prompts), tuple(ends), tuple(answers))

    def _lead(self, text: str, span: tuple[int, int], lead: str, row: Row, *, last: bool) -> tuple[str, str]:
        """What stands in `text` between the last answer and this one, cut where the generation prompt `lead` ends.

        Where the two differ in white space, the last answer follows the generation prompt, as it will when the model is
        asked; earlier answers are history by then and stay as the template shows them.
        """
        done, start = span
        gap = text[len(lead) : start]
        if text.startswith(lead) and len(lead) <= start and (self._marked or not gap.strip()):
            return text[done : len(lead)], gap
        shared = len(commonprefix([lead, text[:start]]))
        if lead.split() != text[:start].split() or shared < done:
            raise DataError(
                "the chat template's generation prompt does not lead to the answer: "
                f"it ends with {lead[-30:]!r}, the conversation has {text[max(0, start - 30) : start]!r}",
                where=row.where,
                fix="give a template with base.chat_template whose generation prompt stands before each assistant message",
            )
        return (text[done:shared] + lead[shared:] if last else text[done:start]), ""

    def _closer(self, tail: str) -> str:
        """The end marker, from what the template puts after the last answer."""
        if tail not in self._closers:
            tail_text = tail.lstrip()
            found = next((token for token in self._specials if tail_text.startswith(token)), None)
            if found is None and not self._tokenizer.eos_token:
                raise DataError(
                    "the chat template closes no answer and the tokenizer has no end token",
                    where="processor",
                    fix="set the tokenizer's eos_token",
                )
            self._closers[tail] = found or self._tokenizer.eos_token
        return self._closers[tail]

    @property
    def end_token(self) -> str:
        """The token that closes an answer."""
        row = Row("probe", (), (Turn("user", "probe"), Turn("assistant", "answer")), "", "processor")
        rendering = self.render(row)
        return rendering.text[rendering.answers[0][1] :].strip()


def _template_source(processor: Any) -> str:
    template = getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None)
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        raise DataError(
            "the model's processor has no chat template",
            where=getattr(processor.tokenizer, "name_or_path", "") or "processor",
            fix="give one with base.chat_template, or put a chat_template.jinja into the model folder",
        )
    return str(template)
