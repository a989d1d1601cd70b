"""PaliGemma: no chat template and no chat, one question and one answer; the prompt is read in both directions.

Beyer et al., "PaliGemma: A versatile 3B VLM for transfer", arXiv:2407.07726, section 3.2.1 and figure 2: image tokens, start
token, prefix, line break, suffix, end token; full attention over image and prefix, causal attention over the suffix.
"""

from __future__ import annotations

from typing import Any

import transformers

from mcit.models.families.hf import materialize, pending

__all__ = ["adapt", "materialize", "pending"]

TEMPLATE = (
    "{% if messages | length > 2 %}{{ raise_exception('PaliGemma takes one question, not a conversation') }}{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' %}"
    "{% for c in m.content if c.type == 'image' %}{{ '<image>' }}{% endfor %}{{ bos_token }}"
    "{% for c in m.content if c.type == 'text' %}{{ c.text }}{% endfor %}{{ '\n' }}"
    "{% else %}{{ m.content[0].text + eos_token }}{% endif %}{% endfor %}"
)


class PaliGemmaProcessor(transformers.PaliGemmaProcessor):
    """The family's processor for whole texts: start token and line break are the template's, pictures may be absent."""

    prefix_attention = True
    """`mcit.data.encode` gives the prompt token type 0 and the answer 1, which is how the model tells them apart."""

    def __call__(self, images: Any = None, text: Any = None, **settings: Any) -> Any:
        """Token ids and pixels of rendered texts."""
        out = transformers.ProcessorMixin.__call__(self, images=images, text=text, **settings)
        return transformers.BatchFeature({k: v for k, v in out.items() if k != "token_type_ids"})

    # What the family's own class adds to these two is undone: it rewrites the text and insists on a picture.
    prepare_inputs_layout = transformers.ProcessorMixin.prepare_inputs_layout  # type: ignore[assignment]
    validate_inputs = transformers.ProcessorMixin.validate_inputs


def adapt(processor: Any) -> Any:
    """The processor of a PaliGemma folder as above, with the layout of the paper where the folder has no template."""
    processor.__class__ = PaliGemmaProcessor
    if not processor.chat_template and not processor.tokenizer.chat_template:
        processor.chat_template = TEMPLATE
    return processor
