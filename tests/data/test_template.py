"""Where answers stand in a rendered conversation, and what closes them."""

from dataclasses import replace

import pytest

from mcit.core.errors import DataError
from mcit.core.types import Turn
from mcit.data.template import ChatTemplate
from tests.fakes.processors import TEMPLATES, make_processor
from tests.fakes.rows import row


def parts(rendering):
    """Prompt end to answer end, as text."""
    pairs = zip(rendering.prompts, rendering.ends, strict=True)
    return [rendering.text[start:end] for start, end in pairs]


def test_llava_layout_word_for_word():
    """The reference layout: a blank before the answer, the end token after it, the next turn at once."""
    rendering = ChatTemplate(make_processor("llava")).render(row("One?", "A", "Two?", "B"))
    assert rendering.text == "USER: One? ASSISTANT: A</s>USER: Two? ASSISTANT: B</s>"
    assert parts(rendering) == [" A</s>", " B</s>"]
    assert [rendering.text[a:b] for a, b in rendering.answers] == ["A", "B"]


def test_end_token_is_put_after_every_answer_where_the_template_has_none():
    rendering = ChatTemplate(make_processor("marked")).render(row("One?", "A", "Two?", "B"))
    assert rendering.text == "USER: One? ASSISTANT: A</s> USER: Two? ASSISTANT: B</s>"
    assert parts(rendering) == [" A</s>", " B</s>"]


def test_white_space_after_the_end_marker_is_not_the_answer():
    rendering = ChatTemplate(make_processor("chatml")).render(row("One?", "A", "Two?", "B"))
    assert parts(rendering) == ["A<|im_end|>", "B<|im_end|>"]
    assert rendering.text.endswith("B<|im_end|>")


def test_blank_between_answer_and_end_marker_is_part_of_what_the_model_writes():
    processor = make_processor("llava")
    processor.chat_template = TEMPLATES["llava"].replace("</s>", " </s>")
    assert parts(ChatTemplate(processor).render(row("One?", "A"))) == [" A </s>"]


def test_the_next_turns_header_is_no_end_marker():
    """Without an end token, what follows an answer in the middle is a special token of the next turn."""
    processor = make_processor("chatml")
    processor.chat_template = TEMPLATES["chatml"].replace("<|im_end|>\n", "")
    rendering = ChatTemplate(processor).render(row("One?", "A", "Two?", "B"))
    assert parts(rendering) == ["A</s>", "B</s>"]


@pytest.mark.parametrize("style", sorted(TEMPLATES))
def test_equal_answers_are_told_apart(style):
    """The second answer's text stands in the question and in the first answer too."""
    rendering = ChatTemplate(make_processor(style)).render(row("yes or no yes?", "yes", "yes?", "yes"))
    starts = [start for start, _ in rendering.answers]
    assert starts[0] < starts[1] and all(rendering.text[a:b] == "yes" for a, b in rendering.answers)
    assert (
        rendering.text.count("yes") == 5
        and rendering.answers[0][0] == [k for k in range(len(rendering.text)) if rendering.text.startswith("yes", k)][2]
    )


def test_template_that_changes_an_answer_is_refused():
    processor = make_processor("chatml")
    processor.chat_template = TEMPLATES["chatml"].replace("{{ c['text'] }}", "{{ c['text'] | upper }}")
    with pytest.raises(DataError, match="word for word") as caught:
        ChatTemplate(processor).render(row("One?", "yes"))
    assert caught.value.where == "f.json:1:r1"


def test_generation_prompt_that_leads_elsewhere_is_refused():
    processor = make_processor("chatml")
    processor.chat_template = TEMPLATES["chatml"].replace("assistant\n{% endif %}", "assistant\n<think>{% endif %}")
    with pytest.raises(DataError, match="does not lead to the answer"):
        ChatTemplate(processor).render(row("One?", "yes"))


def test_words_between_prompt_and_answer_are_refused_unless_marked():
    middle = "<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}Well: {% endif %}"
    processor = make_processor("chatml")
    processor.chat_template = TEMPLATES["chatml"].replace("<|im_start|>{{ m['role'] }}\n", middle)
    with pytest.raises(DataError, match="does not lead to the answer"):
        ChatTemplate(processor).render(row("One?", "yes"))
    marked = make_processor("marked_chatml")
    marked.chat_template = TEMPLATES["marked_chatml"].replace("{% generation %}", "{% generation %}Well: ")
    assert parts(ChatTemplate(marked).render(row("One?", "yes"))) == ["Well: yes<|im_end|>"]


def test_processor_without_template():
    processor = make_processor("chatml")
    processor.chat_template = None
    with pytest.raises(DataError, match="no chat template"):
        ChatTemplate(processor)


def test_no_end_token_anywhere():
    processor = make_processor("no_end")
    processor.tokenizer.eos_token = None
    with pytest.raises(DataError, match="no end token"):
        ChatTemplate(processor).render(row("One?", "yes"))


def test_a_template_that_prints_the_date_prints_a_fixed_one():
    processor = make_processor("chatml")
    date = "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    processor.chat_template = date + "{{ date_string }}\n" + TEMPLATES["chatml"]
    assert ChatTemplate(processor).render(row("One?", "yes")).text.startswith("01 Jan 2026\n")


def test_answer_is_stripped_and_question_kept():
    rendering = ChatTemplate(make_processor("chatml")).render(row("A  b?", "  yes \n"))
    assert parts(rendering) == ["yes<|im_end|>"] and "A  b?" in rendering.text


def test_threads_do_not_get_each_others_answers():
    """Compiled templates are shared by the whole process and remember marks while they render."""
    import sys
    from concurrent.futures import ThreadPoolExecutor

    templates = [ChatTemplate(make_processor("marked")) for _ in range(4)]
    rows = [row("Q" * (k % 7 + 1), "A" * (k % 5 + 1), id=f"r{k}") for k in range(400)]
    expected = [templates[0].render(one) for one in rows]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda pair: templates[pair[0] % 4].render(pair[1]), enumerate(rows)))
    finally:
        sys.setswitchinterval(before)
    assert found == expected


NO_SYSTEM = {
    "as one of the assistant": TEMPLATES["llava"],
    "leaves the system turn out": TEMPLATES["llava"].replace("{% else %}A", "{% elif m['role'] == 'assistant' %}A"),
    "refuses a system turn (no)": "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
    + TEMPLATES["llava"],
}


@pytest.mark.parametrize("what", NO_SYSTEM)
def test_a_system_turn_without_a_place_is_refused(what):
    processor = make_processor("llava")
    processor.chat_template = NO_SYSTEM[what]
    one = row("One?", "A")
    template = ChatTemplate(processor)
    template.render(one)
    with pytest.raises(DataError) as caught:
        template.render(replace(one, turns=(Turn("system", "Be brief."), *one.turns)))
    assert what in caught.value.what and "system: front" in caught.value.fix


def test_a_system_turn_is_shown():
    one = row("One?", "A")
    rendering = ChatTemplate(make_processor("chatml")).render(
        replace(one, turns=(Turn("system", "Brief."), *one.turns))
    )
    assert rendering.text.startswith("<|im_start|>system\nBrief.<|im_end|>") and parts(rendering) == ["A<|im_end|>"]
