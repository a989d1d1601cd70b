"""Chosen answers against a loop that runs the model once per option, without packs, cache or padding."""

import pytest
import torch

from mcit.data.encode import Encoder
from mcit.evals.choosing import Choosing, _longer, as_answer, told_apart
from mcit.evals.decode import NEAR
from mcit.evals.filters.strip import Strip
from mcit.evals.generator import greedy
from mcit.evals.likelihood import last_answer
from mcit.models.load import load_processor
from tests.fakes.models import tiny_model, tiny_path
from tests.fakes.rows import picture, row

CPU = torch.device("cpu")
LETTERS, PREFIXES, WORDS = ("A", "B", "C"), ("A", "AB", "B"), ("yes", "no", "Yes", "No")


@pytest.fixture(scope="module")
def encoder():
    return Encoder(load_processor(tiny_path()))


@pytest.fixture(scope="module")
def model():
    return tiny_model().eval()


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Rows and their options: questions of one picture, of another, of two, of none, a conversation; one has no options."""
    folder = tmp_path_factory.mktemp("pictures")
    a, b = (picture(folder, f"{k}.png", colour=(90 * k, 200, 30)) for k in range(2))
    found = [
        (["<image>\nWhat is it?"], (a,), LETTERS),
        (["Say something short"], (), PREFIXES),
        (["<image>\nWhich colour is shown in this picture, and where?"], (a,), PREFIXES),
        (["<image>\nYes?"], (b,), WORDS),
        (["<image>\n<image>\nWhich is larger?"], (a, b), ("left", "right", "l")),
        (["<image>\nYes?"], (a,), ()),
        (["<image>\nIs it red?", "no", "Is it green?"], (b,), WORDS),
        (["Hello"], (), LETTERS),
        (["<image>\nYes?"], (a,), ("AB", "A")),
    ]
    rows = [
        row(*texts, "gold", id=f"r{k}", images=shown, root=str(folder)) for k, (texts, shown, _) in enumerate(found)
    ]
    return rows, {one.id: options for one, (_, _, options) in zip(rows, found, strict=True)}


def by_hand(model, encoder, one, options):
    """Sums of log-probabilities, each option by a forward pass of its own; of letters that of the letter, behind a blank."""
    out = []
    for option in options:
        texts = [*[turn.text for turn in one.turns[:-1]], option]
        sample, prompt = encoder.encode(row(*texts, images=one.images, root=one.root)), encoder.prompt(one)
        ids, first = sample.input_ids_T, len(prompt.input_ids_T)
        with torch.no_grad():
            logits = model(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None], **sample.pixels).logits[0]
        assert len(ids) == first + len(option) + 2 and ids[-1] == encoder.end_token_id  # bytes
        logps = logits.double().log_softmax(-1)[torch.arange(first - 1, len(ids) - 1), ids[first:]].tolist()
        out.append(logps[1] if options == LETTERS else sum(logps))
    return out


def by_first(scores):
    """What is common to all falls out."""
    return [score - scores[0] for score in scores]


def chosen(model, encoder, rows, options, *, share, filters=(), **given):
    with greedy(model, encoder, max_new_tokens=6, share=share, **given) as generator:
        return Choosing(generator, model, encoder, lambda one: options[one.id]).answer(
            rows, filters=filters, device=CPU
        )


@pytest.mark.parametrize("share", [True, False])
def test_the_likeliest_option_by_single_passes(model, encoder, asked, share, monkeypatch):
    rows, options = asked
    seen, own = {}, Choosing._chosen

    def kept(self, one, texts, scores, filters):
        seen[one.id] = scores
        return own(self, one, texts, scores, filters)

    monkeypatch.setattr(Choosing, "_chosen", kept)
    found = chosen(model, encoder, rows, options, share=share)
    for one, answer in zip(rows, found, strict=True):
        if not options[one.id]:
            continue
        expected = by_hand(model, encoder, one, options[one.id])
        assert by_first(seen[one.id]) == pytest.approx(by_first(expected), abs=2e-5)
        ranked = sorted(expected)
        assert ranked[-1] - ranked[-2] > NEAR and answer["near_tie"] is None
        text = options[one.id][expected.index(max(expected))]
        assert (answer["text"], answer["tokens"], answer["truncated"]) == (text, 1 + len(text), False)
        assert answer["options"] == len(options[one.id])
    assert len(seen) == len(rows) - 1 and len({answer["text"] for answer in found}) > 3


def test_parts_of_a_batch_give_the_same(model, encoder, asked):
    rows, options = asked
    whole = chosen(model, encoder, rows, options, share=True)
    for share in (True, False):
        assert chosen(model, encoder, rows, options, share=share, tokens=40) == whole


def test_rows_without_options_are_written(model, encoder, asked):
    """As if there were no option anywhere."""
    rows, options = asked
    found = [
        one
        for one, own in zip(chosen(model, encoder, rows, options, share=True), rows, strict=True)
        if not options[own.id]
    ]
    without = [one for one in rows if not options[one.id]]
    with greedy(model, encoder, max_new_tokens=6) as generator:
        assert found == generator.answer(without, device=CPU)
    assert "options" not in found[0]


@pytest.mark.parametrize("share", [True, False])
def test_the_limit_is_that_of_prompts(model, encoder, asked, share):
    """As in greedy decoding: rows that it would answer do not end an evaluation."""
    rows, options = asked
    most = max(len(encoder.prompt(one).input_ids_T) for one in rows)
    limited = Encoder(encoder.processor, max_length=most)
    assert chosen(model, limited, rows, options, share=share) == chosen(model, encoder, rows, options, share=share)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("text", ["<image> left", "so</s>"])
def test_a_row_with_an_option_that_cannot_be_an_answer_is_written(model, encoder, asked, share, text):
    rows, options = asked
    spoilt = {**options, "r3": (*WORDS, text)}
    without = chosen(model, encoder, rows, {**options, "r3": ()}, share=share)
    for one, answer, plain in zip(rows, chosen(model, encoder, rows, spoilt, share=share), without, strict=True):
        assert answer == ({**plain, "refused_option": text} if one.id == "r3" else plain)


def test_an_option_behind_a_prompt_is_the_row_in_training(asked):
    """Also what the processor says of each token: here that a prompt is read in both directions."""
    processor = load_processor(tiny_path())
    processor.prefix_attention = True
    encoder = Encoder(processor)
    for one in (one for one in asked[0] if len(one.turns) == 2):
        whole, prompt = last_answer(encoder.encode(one)), encoder.prompt(one)
        answer = as_answer(encoder, one.answer, one)
        begun = _longer(prompt, answer.part(0, 2))
        assert int(begun.pixels["token_type_ids"].sum()) == 2 and not (begun.labels_T != -100).any()
        own = _longer(prompt, answer, supervised=True)
        assert own.input_ids_T.equal(whole.input_ids_T) and own.labels_T.equal(whole.labels_T)
        assert own.pixels.keys() == whole.pixels.keys()
        assert all(torch.equal(value, whole.pixels[name]) for name, value in own.pixels.items())


def test_letters_take_one_pass_with_each_prompt_once(model, encoder, asked):
    rows, options = asked
    letters = [one for one in rows if options[one.id] == LETTERS]
    longest = 4  # the four words with their ends: yes and its end
    chosen(model, encoder, letters, options, share=True)  # packs are tried before
    for some, passes in ((letters, 1), ([one for one in rows if options[one.id] == WORDS], longest)):
        calls = []
        hook = model.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        try:
            chosen(model, encoder, some, options, share=True)
        finally:
            hook.remove()
        assert len(calls) == passes


def test_of_equals_the_first_and_a_near_tie_is_told(model, encoder):
    one = row("?", "gold")
    answer = Choosing(None, model, encoder, None)._chosen
    assert answer(one, ["x", "yy", "z"], [-2.0, -1.0, -1.0], [])["text"] == "yy"
    told = [answer(one, ["x", "yy"], [-1.0, -1.0 + gap], [])["near_tie"] for gap in (0.0, NEAR / 2, 3 * NEAR)]
    assert told == [0, 0, None]
    assert answer(one, ["a\nb", "c"], [0.0, -1.0], [Strip()])["text"] == "a"


def test_what_of_options_counts():
    assert told_apart([(5, 9), (6, 9)]) == ((), [(5,), (6,)])
    assert told_apart([(1, 5, 9), (1, 6, 9)]) == ((1,), [(5,), (6,)])
    assert told_apart([(5, 9), (5, 6, 9)]) == ((5,), [(9,), (6, 9)])
    assert told_apart([(5, 9), (5, 9)]) == ((5,), [(9,), (9,)])  # a tokenizer may write two alike
    assert told_apart([(5, 9), (5, 6, 9), (7, 9)]) == ((), [(5, 9), (5, 6, 9), (7, 9)])
