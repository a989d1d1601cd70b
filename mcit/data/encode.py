"""Row -> Sample: token ids, label mask and pixels, through the model's own processor and chat template.

The conversation is tokenised once; which tokens are an answer follows from their character offsets. What is supervised
is exactly what the model must produce after the generation prompt: the answer and its end token.

Shapes: T positions of a row after image placeholders are expanded.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mcit.core.errors import DataError
from mcit.core.types import Row, Sample
from mcit.data.images import load_images
from mcit.data.memo import Memo
from mcit.data.placeholder import PLACEHOLDER
from mcit.data.ragged import join
from mcit.data.template import ChatTemplate, Rendering

IGNORE = -100
_TEXT_KEYS = frozenset({"input_ids", "attention_mask", "offset_mapping", "text_replacement_offsets"})


@dataclass(frozen=True, slots=True)
class _Tokens:
    """One tokenisation: ids, character offsets in the expanded text, and the shifts of the expansion."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    text: str
    extras: Mapping[str, Tensor]
    expansions: Sequence[Mapping[str, Any]]
    token_keys: frozenset[str] = frozenset()
    """Names in `extras` with values per token."""

    def moved(self, position: int) -> int:
        """Where a character position of the unexpanded text is in the expanded one."""
        shift = 0
        for item in self.expansions:
            if item["span"][1] <= position:
                shift = item["new_span"][1] - item["span"][1]
        return position + shift


class Encoder:
    """Encodes rows for one processor. Pure: equal rows give equal samples, in any order and thread."""

    def __init__(
        self, processor: Any, *, max_length: int | None = None, pad_images: bool = False, memo: Memo | None = None
    ) -> None:
        """With a `memo` nothing that it still has is decoded, processed or tokenised again."""
        self.processor = processor
        self._memo = memo
        if memo is not None:
            memo.attach(processor)
        self.max_length = max_length
        self.pad_images = pad_images
        self._tokenizer = processor.tokenizer
        self._template = ChatTemplate(processor)
        self._bos = self._tokenizer.bos_token
        self._end_id: int | None = None
        self._image_id = self._image_token_id()
        self._image_token = None if self._image_id is None else self._tokenizer.convert_ids_to_tokens(self._image_id)
        self._row_keys: frozenset[str] | None = None

    def without_limit(self) -> Encoder:
        """An encoder that takes rows of any length: for measuring them."""
        other = copy.copy(self)
        other.max_length = None
        return other

    @property
    def end_token_id(self) -> int:
        """Id of the token that closes an answer: generation must stop at it."""
        if self._end_id is None:
            self._end_id = int(self._tokenizer.convert_tokens_to_ids(self._template.end_token))
        return self._end_id

    @property
    def pad_id(self) -> int:
        """Id to pad with: the tokenizer's own, else its end token (padding is told apart by the attention mask)."""
        found = self._tokenizer.pad_token_id
        return int(found if found is not None else self.end_token_id)

    @property
    def notes(self) -> list[str]:
        """What a user should know."""
        return [self._memo.note] if self._memo is not None and self._memo.note else []

    def encode(self, row: Row) -> Sample:
        """A training sample: every answer and its end token supervised.

        Raises DataError naming file:line:id when a placeholder has no image, nothing is supervised, the supervised
        tokens are not the answer, the generation prompt is no token prefix, or the row is longer than `max_length`.
        """
        return self._made("whole", row, self._whole)

    def prompt(self, row: Row) -> Sample:
        """Everything before the last answer with the generation prompt, nothing supervised.

        Raises DataError as `encode` does.
        """
        return self._made("prompt", row, self._prompt)

    def _made(self, kind: str, row: Row, make: Callable[[Row], Sample]) -> Sample:
        return make(row) if self._memo is None else self._memo.sample(f"{kind} {self.max_length}", row, make)

    def _whole(self, row: Row) -> Sample:
        if row.encoding.raw:
            return self._plain_text(row)
        self._check_turns(row)
        rendering = self._template.render(row)
        tokens = self._tokenise(rendering.text, row)
        labels = [IGNORE] * len(tokens.ids)
        for k, (prompt, end) in enumerate(zip(rendering.prompts, rendering.ends, strict=True)):
            first = self._prompt_length(tokens, prompt, row)
            last = self._last_token(tokens, tokens.moved(end))
            answer = tokens.ids[first : last + 1]
            labels[first : first + len(answer)] = answer
            self._prove(answer, rendering, k, row)
        return self._sample(row, tokens, labels)

    def _prompt(self, row: Row) -> Sample:
        self._check_turns(row)
        rendering = self._template.render(row)
        tokens = self._tokenise(rendering.text[: rendering.prompts[-1]], row)
        return self._sample(row, tokens, [IGNORE] * len(tokens.ids))

    def supervised_text(self, sample: Sample) -> list[tuple[str, bool]]:
        """The sample as pieces of text, each with whether it is supervised; image tokens are shown as one."""
        pieces: list[tuple[str, bool]] = []
        ids, labels = sample.input_ids_T.tolist(), sample.labels_T.tolist()
        for supervised, group in groupby(zip(ids, labels, strict=True), key=lambda pair: pair[1] != IGNORE):
            text = self._tokenizer.decode([token for token, _ in group], skip_special_tokens=False)
            pieces.append((_collapsed(text, self._image_token or self._template.image_token), supervised))
        return pieces

    @property
    def image_token_id(self) -> int | None:
        """Id of the token that stands for a piece of an image; None where the processor has none."""
        return self._image_id

    # ---- steps ------------------------------------------------------------------------------------------------------
    def _image_token_id(self) -> int | None:
        """Id of the token that an image is expanded to; None if the processor has no such token."""
        listed = getattr(self.processor, "image_token_ids", None) or [None]  # a placeholder may expand to another token
        known = listed[0] if listed[0] is not None else getattr(self.processor, "image_token_id", None)
        if known is None:
            known = self._tokenizer.get_vocab().get(self._template.image_token)
        return None if known is None else int(known)

    def _keys_per_row(self) -> frozenset[str]:
        """Names of picture values whose first axis is the row: seen on two rows with one and two pictures."""
        if self._row_keys is None:
            blank = [Image.new("RGB", (56, 56), (9 * k, 0, 0)) for k in range(3)]
            try:
                out = self.processor.image_processor([blank[:1], blank[1:]])
                self._row_keys = frozenset(key for key, value in out.items() if len(value) == 2)
            except (TypeError, ValueError, AttributeError):  # it takes flat lists only, so nothing can be per row
                self._row_keys = frozenset()
        return self._row_keys

    def _plain_text(self, row: Row) -> Sample:
        """A text without template or end token, every token supervised.

        The end is cut off at ``encoding.max_tokens`` or the model's limit, start token included: unlike a conversation, a
        text has no answer that a cut would lose.
        """
        if len(row.turns) != 1 or row.images:
            raise DataError("a plain text is one turn without images", where=row.where, fix="leave encoding.raw off")
        text = row.turns[0].text
        control = self._template.control_token(text)
        if control:
            raise DataError(
                f"the text contains the model's control token {control!r}",
                where=row.where,
                fix="remove it from the text",
            )
        ids = list(self._tokenizer([text], add_special_tokens=False, truncation=False)["input_ids"][0])
        if row.encoding.bos:
            if self._tokenizer.bos_token_id is None:
                raise DataError("the tokenizer has no start token", where=row.where, fix="set bos: false")
            ids = [int(self._tokenizer.bos_token_id), *ids]
        ids = ids[: min((n for n in (row.encoding.max_tokens, self.max_length) if n), default=None)]
        if len(ids) < 2:
            raise DataError("the text has no token to predict", where=row.where, fix="remove the row")
        return self._sample(row, _Tokens(ids, [], text, {}, ()), ids)

    def _check_turns(self, row: Row) -> None:
        if len(row.turns) < 2 or row.turns[-1].role != "assistant":
            raise DataError("the row does not end with an answer", where=row.where, fix="add the assistant's turn")
        count = sum(turn.text.count(PLACEHOLDER) for turn in row.turns)
        if count != len(row.images):
            raise DataError(
                f"{count} {PLACEHOLDER} placeholder(s) for {len(row.images)} image(s)",
                where=row.where,
                fix=f"write {PLACEHOLDER} once for each image, in order",
            )

    def _tokenise(self, text: str, row: Row) -> _Tokens:
        """Expand placeholders, look at the pictures, tokenise once."""
        settings = {
            "return_offsets_mapping": True,
            "padding": False,
            "truncation": False,
            "add_special_tokens": not (self._bos and text.startswith(self._bos)),
        }
        images = self._pictures(row)
        nested = [images] if images else None  # one list per row: some families expand several pictures differently
        shown = nullcontext() if self._memo is None else self._memo.showing(row)
        try:
            with shown:
                out = self.processor(images=nested, text=[text], return_text_replacement_offsets=True, **settings)
        except (
            ArithmeticError,
            AttributeError,
            ImportError,
            LookupError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            kind = (
                "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            )  # someone else's code, any reason
            raise DataError(
                f"the processor refuses the row: {kind}{error}",
                where=row.where,
                fix="check that the chat template shows every image exactly once (base.chat_template)",
            ) from None
        expansions = (out.get("text_replacement_offsets") or [[]])[0]
        expanded = _expanded(text, expansions)
        ids, offsets = self._real(out["input_ids"][0], out["offset_mapping"][0])
        if not expansions and offsets[-1][1] > len(text):
            raise DataError(
                f"{type(self.processor).__name__} does not say where it expands image placeholders",
                where=row.where,
                fix="use a model whose processor supports return_text_replacement_offsets",
            )
        self._check_images(ids, expanded, expansions, row)
        extras = {key: _images_first(out[key]) for key in sorted(set(out) - _TEXT_KEYS)}
        per_token = {key for key, value in extras.items() if value.shape[:2] == (1, len(out["input_ids"][0]))}
        extras = {key: value[0, : len(ids)] if key in per_token else value for key, value in extras.items()}
        return _Tokens(ids, offsets, expanded, extras, expansions, frozenset(per_token))

    def _pictures(self, row: Row) -> list[Image.Image]:
        load = functools.partial(load_images, row, pad=self.pad_images or row.encoding.pad_image)
        return load() if self._memo is None else self._memo.pictures(row, load)

    def _real(self, ids: Sequence[int], offsets: Sequence[tuple[int, int]]) -> tuple[list[int], list[tuple[int, int]]]:
        """Without the tokens that some tokenizers add after the text: the end token is placed by the template."""
        end = len(ids)
        while end and tuple(offsets[end - 1]) == (0, 0):
            end -= 1
        return list(ids[:end]), [(int(a), int(b)) for a, b in offsets[:end]]

    def _check_images(self, ids: list[int], expanded: str, expansions: Sequence[Any], row: Row) -> None:
        token, token_id = self._image_token, self._image_id
        if len(expansions) not in (0, len(row.images)):
            raise DataError(
                f"the processor expanded {len(expansions)} placeholder(s) for {len(row.images)} image(s)",
                where=row.where,
                fix="check the chat template: it must show every image once",
            )
        if token_id is not None and token and ids.count(token_id) != expanded.count(token):
            raise DataError(
                f"{ids.count(token_id)} image tokens are left of {expanded.count(token)}",
                where=row.where,
                fix="switch truncation off in the tokenizer, or raise its limit",
            )

    def _prompt_length(self, tokens: _Tokens, prompt: int, row: Row) -> int:
        """Tokens of the generation prompt, after checking that the row starts with exactly these."""
        text = tokens.text[: tokens.moved(prompt)]
        out = self._tokenizer(
            [text],
            return_offsets_mapping=True,
            padding=False,
            truncation=False,
            add_special_tokens=not (self._bos and text.startswith(self._bos)),
        )
        ids, _ = self._real(out["input_ids"][0], out["offset_mapping"][0])
        if tokens.ids[: len(ids)] != ids:
            raise DataError(
                "the generation prompt is not a token prefix of the training sequence: the tokenizer merges its end "
                f"{text[-12:]!r} with the answer",
                where=row.where,
                fix="end the template's generation prompt before the white space that precedes answers (base.chat_template)",
            )
        return len(ids)

    def _last_token(self, tokens: _Tokens, end: int) -> int:
        """Index of the last token that starts before character `end`."""
        return max((i for i, (a, b) in enumerate(tokens.offsets) if a < end and b > a), default=-1)

    def _prove(self, ids: list[int], rendering: Rendering, k: int, row: Row) -> None:
        """Decode the supervised tokens and compare them with the text they must stand for."""
        meant = rendering.text[rendering.prompts[k] : rendering.ends[k]]
        shown = self._tokenizer.decode(ids, skip_special_tokens=False)
        if _squeezed(shown) != _squeezed(meant):
            raise DataError(
                f"the supervised tokens read {shown!r}, the answer is {meant!r}",
                where=row.where,
                fix="the tokenizer cannot write this answer; change its words or the tokenizer",
            )

    def _sample(self, row: Row, tokens: _Tokens, labels: list[int]) -> Sample:
        length = len(tokens.ids)
        if self.max_length is not None and length > self.max_length:
            raise DataError(
                f"{length} tokens, the limit is {self.max_length}",
                where=row.where,
                fix="shorten or remove the row; rows are never cut",
            )
        extras, per_token = dict(tokens.extras), tokens.token_keys
        if getattr(
            self.processor, "prefix_attention", False
        ):  # the prompt is read in both directions, the answer is not
            answer = next((i for i, label in enumerate(labels) if label != IGNORE), length)
            extras["token_type_ids"] = (torch.arange(length) >= answer).long()
            per_token |= {"token_type_ids"}
        return Sample(
            row=row,
            input_ids_T=torch.tensor(tokens.ids, dtype=torch.int64),
            labels_T=torch.tensor(labels, dtype=torch.int64),
            pixels=extras,
            image_T=torch.tensor(tokens.ids) == self._image_id if row.images and self._image_id is not None else None,
            token_keys=per_token,
            row_keys=self._keys_per_row() & extras.keys() if row.images else frozenset(),
        )


def _expanded(text: str, expansions: Sequence[Mapping[str, Any]]) -> str:
    out, done = [], 0
    for item in expansions:
        start, end = item["span"]
        out += [text[done:start], item["replacement"]]
        done = end
    return "".join([*out, text[done:]])


def _images_first(value: Any) -> Tensor:
    """What a processor returns for images (arrays, lists of arrays, tensors) as one tensor, first axis = images."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, (list, tuple)):
        return join([torch.as_tensor(item).unsqueeze(0) for item in value])
    return torch.as_tensor(value)


def _squeezed(text: str) -> str:
    """Without white space: decoders differ in how they treat a leading blank."""
    return "".join(text.split())


def _collapsed(text: str, token: str) -> str:
    return re.sub(f"(?:{re.escape(token)})+", lambda _: token, text)
