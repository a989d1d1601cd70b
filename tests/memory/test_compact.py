from mcit.memory.compact import Compact, cut, extract


def joined(previous, text):
    return f"{previous}|{text}"


def test_one_running_summary_and_an_overview_of_finished_blocks():
    held = Compact(joined, block=3)
    for turn in range(7):
        held.add(turn, str(turn))
    assert held.overview == "||0|1|2||3|4|5" and held.running == "|6"
    assert held.parts == ("||0|1|2||3|4|5", "|6") and Compact(joined, block=3).parts == ()


def test_a_mistake_ends_with_its_block():
    """The summariser repeats whatever stands in the summary; what slips into the first block is not in the next one."""
    held = Compact(lambda previous, text: f"{previous} {text}".strip(), block=2)
    for turn, text in enumerate(("fine", "WRONG", "fine", "fine")):
        held.add(turn, text)
        assert turn < 2 or "WRONG" not in held.running
    assert "WRONG" in held.overview


def test_extract_keeps_statements_with_words_of_their_own_within_its_words():
    kept = extract("", "Is it warm? It is warm. Maro drew a tricycle. Maro drew a tricycle, a tricycle.", words=8)
    assert "tricycle" in kept and "?" not in kept and len(kept.split()) <= 8
    text = ""
    for number in range(300):
        text = extract(text, f"Name{number} has a thing{number}.", words=40)
        assert len(text.split()) <= 40
    assert "thing299" in text
    assert extract("", "") == "" and extract("A b.", "A b.") == "A b."


def test_a_single_long_sentence_is_cut():
    assert extract("", "w " * 90, words=10).split() == ["w"] * 10
    assert cut("a  b", 2) == "a  b" and cut("a b c", 2) == "a b"
