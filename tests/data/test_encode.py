"""Which tokens are supervised, for several template styles, two kinds of tokenizer and four processor families.

Hand-derived numbers: T15 one image and 100 text tokens of which one is the placeholder give 100 - 1 + 576 = 675
positions; T16 of ``BOS S S U Q Q A: x y EOS`` only x, y and EOS are supervised (3 of 10).
"""

import time
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers import processors as post
from transformers import Gemma3Processor, Idefics3Processor, LlavaNextProcessor, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from mcit.core.errors import DataError
from mcit.core.types import Encoding
from mcit.data.encode import IGNORE, Encoder
from tests.fakes.processors import TEMPLATES, byte_level_tokenizer, make_processor, wrapped
from tests.fakes.rows import picture, row

ENDS = {
    "llava": "</s>",
    "chatml": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "marked": "</s>",
    "marked_chatml": "<|im_end|>",
    "no_end": "</s>",
    "string": "<|im_end|>",
}
ANSWERS = ["yes", "A", "5", "[0.1, 0.25, 0.3, 1.0]", "two words", "I do not know .", "naïve 😀 café", "a\nb", "x."]


@pytest.fixture(scope="module")
def encoders():
    """One encoder per style and tokenizer kind."""
    return {(s, kind): Encoder(make_processor(s, kind=kind)) for s in TEMPLATES for kind in ("bytes", "metaspace")}


def supervised(encoder, sample):
    """The stretches of supervised tokens, decoded."""
    return [text for text, on in encoder.supervised_text(sample) if on]


@pytest.mark.parametrize("kind", ["bytes", "metaspace"])
@pytest.mark.parametrize("style", sorted(TEMPLATES))
def test_exactly_answer_and_end_token_are_supervised(encoders, style, kind, tmp_path):
    encoder = encoders[style, kind]
    image = picture(tmp_path)
    for answer in ANSWERS:
        for images, question in (((), "Is it red?"), ((image,), "<image>\nIs it red?")):
            sample = encoder.encode(row(question, answer, images=images, root=tmp_path))
            found = supervised(encoder, sample)
            assert [text.strip() for text in found] == [answer + ENDS[style]]
            labels = sample.labels_T
            assert torch.equal(labels[labels != IGNORE], sample.input_ids_T[labels != IGNORE])
            assert labels[-1] == encoder.end_token_id  # nothing after the end token, and it is supervised
            assert labels[0] == IGNORE


@pytest.mark.parametrize("kind", ["bytes", "metaspace"])
@pytest.mark.parametrize("style", sorted(TEMPLATES))
def test_every_answer_of_several_turns(encoders, style, kind, tmp_path):
    encoder = encoders[style, kind]
    image = picture(tmp_path)
    sample = encoder.encode(row("<image>\nOne?", "A 5", "Two?", "no", "Three?", "ü", images=(image,), root=tmp_path))
    found = supervised(encoder, sample)
    assert [text.strip() for text in found] == [answer + ENDS[style] for answer in ("A 5", "no", "ü")]


@pytest.mark.parametrize("kind", ["bytes", "metaspace"])
@pytest.mark.parametrize("style", sorted(TEMPLATES))
def test_generation_prompt_is_a_token_prefix(encoders, style, kind, tmp_path):
    """And what plain transformers makes of the same question is the same prompt."""
    encoder = encoders[style, kind]
    one = row("<image>\nIs it red?", "yes", images=(picture(tmp_path),), root=tmp_path)
    sample, prompt = encoder.encode(one), encoder.prompt(one)
    length = len(prompt.input_ids_T)
    assert sample.input_ids_T[:length].tolist() == prompt.input_ids_T.tolist()
    assert (sample.labels_T[:length] == IGNORE).all() and (sample.labels_T[length:] != IGNORE).all()
    assert (prompt.labels_T == IGNORE).all()
    assert torch.equal(prompt.pixels["pixel_values"], sample.pixels["pixel_values"])
    if style != "string":
        parts = [{"type": "image", "path": str(tmp_path / "a.png")}, {"type": "text", "text": "Is it red?"}]
        theirs = encoder.processor.apply_chat_template(
            [{"role": "user", "content": parts}], add_generation_prompt=True, tokenize=True
        )
        assert theirs[0] == prompt.input_ids_T.tolist()


def test_whitespace_that_the_model_must_write_is_supervised(encoders):
    """A digit is a token of its own, so the blank before it is one too, and it comes after the generation prompt."""
    encoder = encoders["llava", "bytes"]
    sample = encoder.encode(row("How many?", "5"))
    assert supervised(encoder, sample) == [" 5</s>"]


def test_t15_image_tokens(tmp_path):
    words = ["<unk>", "<pad>", "</s>", "<image>", "USER:", "ASSISTANT:", "w", "yes"]
    tokenizer = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = wrapped(tokenizer, bos_token=None)
    clip = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    processor = LlavaProcessor(
        clip,
        fast,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATES["llava"],
    )
    # 100 text tokens: USER: <image> 95 words ASSISTANT: yes </s>
    image = picture(tmp_path)
    encoder = Encoder(processor)
    one = row("<image>\n" + " ".join(["w"] * 95), "yes", images=(image,), root=tmp_path)
    sample = encoder.encode(one)
    assert len(sample.input_ids_T) == 675
    assert int((sample.input_ids_T == 3).sum()) == 576
    assert int((sample.labels_T != IGNORE).sum()) == 2
    start = time.perf_counter()
    for _ in range(20):
        encoder._template.render(one)
    assert (time.perf_counter() - start) / 20 < 0.01


def _symbolic(rounds):
    words = ["<unk>", "<pad>", "<s>", "</s>", "<image>", "S", "U", "Q", "A:", "x", "y"]
    tokenizer = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = post.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    template = (
        "S S {% for m in messages %}{% if m['role'] == 'user' %}U {{ m['content'][0]['text'] }} "
        "{% else %}A: {{ m['content'][0]['text'] }}</s>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}A:{% endif %}"
    )
    processor = LlavaProcessor(CLIPImageProcessorPil(), wrapped(tokenizer), patch_size=14, chat_template=template)
    return Encoder(processor).encode(row(*["Q Q", "x y"] * rounds))


def test_t16_symbolic_masking():
    one = _symbolic(1)
    assert one.input_ids_T.tolist() == [2, 5, 5, 6, 7, 7, 8, 9, 10, 3]
    assert one.labels_T.tolist() == [IGNORE] * 7 + [9, 10, 3]
    two = _symbolic(2)
    assert two.labels_T.tolist() == [IGNORE] * 7 + [9, 10, 3] + [IGNORE] * 4 + [9, 10, 3]


def test_several_images_stand_where_their_placeholders_are(encoders, tmp_path):
    names = (picture(tmp_path, "a.png"), picture(tmp_path, "b.png", colour=(0, 0, 250)))
    encoder = encoders["chatml", "bytes"]
    sample = encoder.encode(row("Is <image> like <image>?", "no", images=names, root=tmp_path))
    image_id = encoder.processor.image_token_id
    at = (sample.input_ids_T == image_id).nonzero().flatten().tolist()
    assert len(at) == 8 and at[3] + 1 < at[4]  # two runs of four tokens with text between
    swapped = encoder.encode(row("Is <image> like <image>?", "no", images=names[::-1], root=tmp_path))
    assert torch.equal(sample.pixels["pixel_values"].flip(0), swapped.pixels["pixel_values"])
    assert (sample.labels_T[sample.input_ids_T == image_id] == IGNORE).all()


def test_tokens_added_behind_the_text_are_left_out():
    """A tokenizer that appends its end token would put it behind the generation prompt too."""
    tokenizer = byte_level_tokenizer()
    tokenizer.post_processor = post.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    processor = make_processor("chatml")
    processor.tokenizer = wrapped(tokenizer)
    encoder = Encoder(processor)
    sample = encoder.encode(row("Is it red?", "yes"))
    assert sample.input_ids_T[-1] == encoder.end_token_id and (sample.input_ids_T == 2).sum() == 0
    assert sample.input_ids_T[0] == 1


def test_values_per_token_end_with_the_tokens():
    """A tokenizer that appends its end token has a type for it too: one value less must be left, one per token."""
    tokenizer = byte_level_tokenizer()
    tokenizer.post_processor = post.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    sample = Encoder(gemma3(tokenizer)).encode(row("Is it red?", "yes"))
    assert (sample.input_ids_T == 2).sum() == 0
    assert sample.pixels["token_type_ids"].tolist() == [0] * len(sample.input_ids_T)


@pytest.mark.parametrize(("token", "expected"), [("<unk>", 3), (None, 6)])
def test_pad_id_is_the_tokenizers_own_or_else_the_end_token(token, expected):
    """Ids in the order of the special tokens: <unk> is 3, and <|im_end|>, which closes an answer, is 6."""
    processor = make_processor("chatml")
    processor.tokenizer = wrapped(byte_level_tokenizer(), pad_token=token)
    encoder = Encoder(processor)
    assert encoder.end_token_id == 6
    assert encoder.pad_id == expected


def test_answer_that_melts_into_its_prompt_is_refused():
    encoder = Encoder(make_processor("llava", kind="melting"))
    with pytest.raises(DataError, match="not a token prefix") as caught:
        encoder.encode(row("Is it red?", "yes"))
    assert caught.value.where == "f.json:1:r1" and caught.value.fix
    assert "merges its end '? ASSISTANT:' with" in caught.value.what  # twelve characters


@pytest.mark.parametrize(
    ("texts", "images", "match"),
    [
        (("<image>\nIs it red?", "yes"), (), "1 <image> placeholder.* for 0 image"),
        (("Is it red?", "yes"), ("a.png",), "0 <image> placeholder.* for 1 image"),
        (("<image> <image>?", "yes"), ("a.png",), "2 <image> placeholder.* for 1 image"),
        (("Is it red?",), (), "does not end with an answer"),
        (("Is it red?", "yes", "Is it blue?"), (), "does not end with an answer"),
        (("Say <|im_end|> now", "yes"), (), "control token '<|im_end|>'"),
        (("Is it red?", "yes</s>no"), (), "control token '</s>'"),
        (("<image>\nIs it red?", "yes"), ("gone.png",), "does not exist"),
    ],
)
def test_bad_rows_name_file_line_and_id(encoders, tmp_path, texts, images, match):
    picture(tmp_path)
    with pytest.raises(DataError, match=match.replace("|", r"\|")) as caught:
        encoders["chatml", "bytes"].encode(row(*texts, images=images, root=tmp_path))
    assert caught.value.where == "f.json:1:r1"


def test_rows_are_never_cut(tmp_path):
    one = row("<image>\nIs it red?", "yes", images=(picture(tmp_path),), root=tmp_path)
    processor = make_processor("chatml")
    processor.tokenizer.model_max_length = 5  # as a tokenizer's config may say
    length = len(Encoder(processor).encode(one).input_ids_T)
    assert len(Encoder(processor, max_length=length).encode(one).input_ids_T) == length
    with pytest.raises(DataError, match=f"{length} tokens, the limit is {length - 1}") as caught:
        Encoder(processor, max_length=length - 1).encode(one)
    assert caught.value.where == "f.json:1:r1"
    with pytest.raises(DataError, match="the limit is"):
        Encoder(processor, max_length=3).prompt(one)


def test_truncation_stored_in_the_tokenizer_is_ignored(tmp_path):
    processor = make_processor("chatml")
    processor.tokenizer.backend_tokenizer.enable_truncation(6)
    processor.tokenizer.backend_tokenizer.enable_padding(length=64)
    sample = Encoder(processor).encode(row("<image>\nIs it red?", "yes", images=(picture(tmp_path),), root=tmp_path))
    assert int((sample.input_ids_T == processor.image_token_id).sum()) == 4
    assert sample.labels_T[-1] == 6


def test_template_that_drops_the_picture_is_refused(tmp_path):
    processor = make_processor("chatml")
    processor.chat_template = processor.chat_template.replace("<image>\n", "")
    with pytest.raises(DataError, match="processor refuses") as caught:
        Encoder(processor).encode(row("<image>\nIs it red?", "yes", images=(picture(tmp_path),), root=tmp_path))
    assert caught.value.where == "f.json:1:r1"


def test_answer_the_tokenizer_cannot_write_is_refused():
    words = ["<unk>", "<pad>", "<s>", "</s>", "<image>", "USER:", "ASSISTANT:", "hi", "yes"]
    tokenizer = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    processor = make_processor("llava")
    processor.tokenizer = wrapped(tokenizer)
    assert Encoder(processor).encode(row("hi", "yes"))
    with pytest.raises(DataError, match="supervised tokens read"):
        Encoder(processor).encode(row("hi", "perhaps"))


def test_pad_images_changes_what_the_model_sees(tmp_path):
    one = row("<image>\nIs it red?", "yes", images=(picture(tmp_path, size=(64, 20)),), root=tmp_path)
    processor = make_processor("chatml")
    plain, padded = Encoder(processor).encode(one), Encoder(processor, pad_images=True).encode(one)
    carried = Encoder(processor).encode(replace(one, encoding=Encoding(pad_image=True)))  # as a recipe says it
    assert torch.equal(carried.pixels["pixel_values"], padded.pixels["pixel_values"])
    middle, top = padded.pixels["pixel_values"][0, 0, 16, 16], padded.pixels["pixel_values"][0, 0, 0, 16]
    assert torch.equal(plain.input_ids_T, padded.input_ids_T)
    assert abs(float(top)) < 0.02  # the padding colour is the mean of the normalisation
    assert float(middle) > 1 and float(plain.pixels["pixel_values"][0, 0, 0, 16]) > 1


# ---- other processor families ---------------------------------------------------------------------------------------
def llava_next():
    """Tiles: three pictures of 32 x 32 for one."""
    picture_processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": 32},
        crop_size={"height": 32, "width": 32},
        image_grid_pinpoints=[[32, 64], [64, 32], [64, 64]],
    )
    return LlavaNextProcessor(
        image_processor=picture_processor,
        tokenizer=wrapped(byte_level_tokenizer()),
        patch_size=16,
        vision_feature_select_strategy="full",
        chat_template=TEMPLATES["chatml"],
    )


def idefics3():
    """One leading axis per row, and text between the tiles."""
    return Idefics3Processor(
        image_processor=Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32}),
        tokenizer=wrapped(byte_level_tokenizer()),
        image_seq_len=4,
        chat_template=TEMPLATES["chatml"],
    )


def gemma3(tokenizer=None):
    """A placeholder that is not the image token, and a type per token."""
    tokenizer = tokenizer or byte_level_tokenizer()
    tokenizer.add_special_tokens(["<boi>", "<eoi>", "<soft>"])
    fast = wrapped(
        tokenizer, extra_special_tokens={"image_token": "<soft>", "boi_token": "<boi>", "eoi_token": "<eoi>"}
    )
    return Gemma3Processor(
        image_processor=Gemma3ImageProcessorPil(size={"height": 32, "width": 32}),
        tokenizer=fast,
        image_seq_length=4,
        chat_template=TEMPLATES["chatml"].replace("<image>", "<boi>"),
    )


@pytest.mark.parametrize("make", [llava_next, idefics3, gemma3])
def test_other_families(make, tmp_path):
    encoder = Encoder(make())
    names = (picture(tmp_path, "a.png"), picture(tmp_path, "b.png", size=(90, 30)))
    one = row("<image>\nIs <image> red?", "A 5", "Why?", "naïve 😀", images=names, root=tmp_path)
    sample, prompt = encoder.encode(one), encoder.prompt(one)
    assert [t.strip() for t in supervised(encoder, sample)] == ["A 5<|im_end|>", "naïve 😀<|im_end|>"]
    length = len(prompt.input_ids_T)
    assert sample.input_ids_T[:length].tolist() == prompt.input_ids_T.tolist()
    if make is gemma3:
        assert len(sample.pixels["token_type_ids"]) == len(sample.input_ids_T)
        assert int(sample.pixels["token_type_ids"].sum()) == 8
        text = encoder.encode(row("Is it red?", "yes"))
        assert text.pixels["token_type_ids"].tolist() == [0] * len(text.input_ids_T)  # the model demands it


def test_supervised_text_splits_at_every_change():
    encoder = Encoder(make_processor("chatml"))
    sample = encoder.encode(row("Is it red?", "yes"))
    labels = torch.full_like(sample.labels_T, -100)
    labels[0] = sample.input_ids_T[0]
    labels[-1] = sample.input_ids_T[-1]
    pieces = encoder.supervised_text(replace(sample, labels_T=labels))
    assert [on for _, on in pieces] == [True, False, True]
    assert "".join(text for text, _ in pieces) == encoder._tokenizer.decode(sample.input_ids_T)


def test_an_expansion_that_is_not_one_per_image_is_refused(monkeypatch, tmp_path):
    encoder = Encoder(make_processor("llava"))
    two = row(
        "<image>\n<image>\nIs it red?",
        "yes",
        images=tuple(picture(tmp_path, f"{k}.png") for k in range(2)),
        root=tmp_path,
    )
    assert encoder.encode(two)
    inner = encoder.processor

    class Losing:
        def __call__(self, **settings):
            out = inner(**settings)
            out["text_replacement_offsets"] = [out["text_replacement_offsets"][0][:1]]
            return out

        def __getattr__(self, name):
            return getattr(inner, name)

    monkeypatch.setattr(encoder, "processor", Losing())
    with pytest.raises(DataError, match=r"expanded 1 placeholder\(s\) for 2 image"):
        encoder.encode(two)


class Around:
    """A processor whose calls are another function's, and which may lack attributes."""

    def __init__(self, inner, call=None, *, without=()):
        self.inner, self.call, self.without = inner, call or inner, without

    def __call__(self, **settings):
        return self.call(**settings)

    def __getattr__(self, name):
        if name in self.without:
            raise AttributeError(name)
        return getattr(self.inner, name)


def test_a_processor_that_expands_silently_is_refused(tmp_path):
    """The placeholder grows by one character unsaid: only the end token (`</s>`, four characters) ends behind the text."""
    inner = make_processor("llava")

    def silent(*, images, text, return_text_replacement_offsets, **settings):
        return inner.tokenizer([text[0].replace("<image>", "<image>!")], **settings)

    one = row("<image>\nIs it red?", "yes", images=(picture(tmp_path),), root=tmp_path)
    with pytest.raises(DataError, match="Around does not say where") as caught:
        Encoder(Around(inner, silent)).encode(one)
    assert caught.value.where == "f.json:1:r1" and "return_text_replacement_offsets" in caught.value.fix


def test_a_lost_image_token_is_noticed(tmp_path):
    """Of the four image tokens of a picture one is taken out of the ids, as a truncation would."""
    inner = make_processor("llava")

    def losing(**settings):
        out = inner(**settings)
        at = out["input_ids"][0].index(inner.image_token_id)
        for key in ("input_ids", "offset_mapping"):
            del out[key][0][at]
        return out

    one = row("<image>\nIs it red?", "yes", images=(picture(tmp_path),), root=tmp_path)
    with pytest.raises(DataError, match="3 image tokens are left of 4") as caught:
        Encoder(Around(inner, losing)).encode(one)
    assert caught.value.where == "f.json:1:r1"


def test_the_image_token_is_found_by_its_text_where_the_processor_does_not_say_its_id(tmp_path):
    """<image> is the fifth special token: id 4, four times."""
    one = row("<image>\nIs it red?", "yes", images=(picture(tmp_path),), root=tmp_path)
    sample = Encoder(Around(make_processor("llava"), without=("image_token_id",))).encode(one)
    assert sample.image_T.tolist() == [i == 4 for i in sample.input_ids_T.tolist()]
    assert int(sample.image_T.sum()) == 4


def test_tokens_without_width_prove_nothing():
    """A tokenizer that puts every token at one point: no token stands for the answer, and what was found is shown."""
    inner = make_processor("llava")

    def flat(**settings):
        out = inner(**settings)
        out["offset_mapping"] = [[(1, 1)] * len(out["input_ids"][0])]
        return out

    with pytest.raises(DataError, match="supervised tokens read '', the answer is ' ?yes</s>'"):
        Encoder(Around(inner, flat)).encode(row("Is it red?", "yes"))


def test_the_ignored_label_is_the_one_that_torch_ignores():
    assert torch.nn.CrossEntropyLoss().ignore_index == IGNORE


def test_several_image_tokens_are_shown_as_one():
    from mcit.data.encode import _collapsed

    assert [_collapsed(f"a {'<i>' * n} b", "<i>") for n in (1, 2, 3, 8)] == ["a <i> b"] * 4
    assert _collapsed("<i> <i><i>", "<i>") == "<i> <i>"


# ---- plain texts ----------------------------------------------------------------------------------------------------
def plain_row(text, **encoding):
    return replace(row("q", text), turns=(row("q", text).turns[1],), encoding=Encoding(raw=True, **encoding))


@pytest.mark.parametrize("style", ["llava", "chatml", "llama3"])
def test_a_plain_text_has_no_template_and_every_token_is_supervised(encoders, style):
    encoder = encoders[style, "bytes"]
    sample = encoder.encode(plain_row(" yes, no\n"))
    assert torch.equal(sample.labels_T, sample.input_ids_T) and sample.image_T is None
    assert encoder.supervised_text(sample) == [(" yes, no\n", True)]


def test_plain_text_truncation(encoders):
    """Oracle 16 of the GeRe card: of 600 tokens 563 are kept, of 10 all 10; the start token counts where it is asked for."""
    encoder = encoders["llama3", "metaspace"]
    long, short = " ".join(["yes"] * 600), " ".join(["yes"] * 10)
    whole = len(encoder.encode(plain_row(long)).input_ids_T)
    assert whole == 600
    assert len(encoder.encode(plain_row(long, max_tokens=563)).input_ids_T) == 563
    assert len(encoder.encode(plain_row(short, max_tokens=563)).input_ids_T) == 10
    started = encoder.encode(plain_row(short, max_tokens=563, bos=True)).input_ids_T
    assert len(started) == 11 and started[0] == encoder.processor.tokenizer.bos_token_id
    limited = Encoder(encoder.processor, max_length=20)
    assert limited.without_limit().max_length is None and limited.max_length == 20
    assert len(limited.encode(plain_row(long)).input_ids_T) == 20  # a text is cut where a conversation is refused


def test_two_tokens_are_enough_for_a_plain_text(encoders):
    """The first token is given, the second predicted; x and z are tokens of their own."""
    assert len(encoders["chatml", "bytes"].encode(plain_row("xz")).labels_T) == 2


def test_plain_texts_that_cannot_be_used_are_named(encoders):
    encoder = encoders["chatml", "bytes"]
    with pytest.raises(DataError, match="control token '<\\|im_end\\|>'"):
        encoder.encode(plain_row("yes <|im_end|> no"))
    with pytest.raises(DataError, match="no token to predict"):
        encoder.encode(plain_row("y"))
    with pytest.raises(DataError, match="one turn"):
        encoder.encode(replace(row("q", "a"), encoding=Encoding(raw=True)))


def test_image_positions_are_marked(encoders, tmp_path):
    """The mask is true exactly where the image token stands; a row without an image has none."""
    encoder = encoders["chatml", "bytes"]
    image = picture(tmp_path)
    sample = encoder.encode(row("<image>\nIs it red?", "yes", images=(image,), root=tmp_path))
    assert torch.equal(sample.image_T, sample.input_ids_T == encoder.processor.image_token_id) and sample.image_T.any()
    assert encoder.encode(row("Is it red?", "yes")).image_T is None


def test_a_generation_prompt_with_other_white_space_is_what_the_last_answer_follows():
    """A blank after the role that the prompt has not: the last answer follows the prompt, the one before stays as shown."""
    parts = "{% for c in m['content'] %}{{ '\n' + c['text'] }}{% endfor %}"
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ' ' }}" + parts + "{{ '<|im_end|>' }}{% endfor %}"
    )
    prompt = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    processor = make_processor("chatml")
    processor.chat_template = template + prompt
    encoder = Encoder(processor)
    two = row("Is it red?", "yes", "And blue?", "no")
    assert encoder.supervised_text(encoder.encode(two)) == [
        ("<|im_start|>user \nIs it red?<|im_end|><|im_start|>assistant \n", False),
        ("yes<|im_end|>", True),
        ("<|im_start|>user \nAnd blue?<|im_end|><|im_start|>assistant\n", False),
        ("no<|im_end|>", True),
    ]
    asked = encoder.prompt(two).input_ids_T
    assert torch.equal(encoder.encode(two).input_ids_T[: len(asked)], asked)


def test_a_template_that_refuses_a_row_is_quoted():
    processor = make_processor("chatml")
    processor.chat_template = (
        "{% if messages | length > 2 %}{{ raise_exception('one turn only') }}{% endif %}" + (TEMPLATES["chatml"])
    )
    encoder = Encoder(processor)
    assert encoder.encode(row("Is it red?", "yes"))
    with pytest.raises(DataError, match="refuses the row: one turn only") as caught:
        encoder.encode(row("Is it red?", "yes", "And?", "no"))
    assert caught.value.where == "f.json:1:r1"
