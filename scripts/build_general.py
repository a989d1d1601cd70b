"""Build ``mcit/assets/general`` from two Debian packages, which the maintainers unpack first.

    apt-get download wordnet-base bsdgames
    dpkg-deb -x wordnet-base_1%3a3.0-37_all.deb unpacked && dpkg-deb -x bsdgames_2.17-29+b1_amd64.deb unpacked
    python scripts/build_general.py unpacked

Writes ``rows.json`` (definitions and example sentences of frequent WordNet words, quiz questions) and the licence texts.
The same input gives the same bytes. Frequent means often tagged in WordNet's own corpora, which also keeps rare and
offensive words out; a list of words and of disputed places is left out besides.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path

TARGET = Path(__file__).parent.parent / "mcit" / "assets" / "general"
FREQUENT, GLOSSES, EXAMPLES = 9, 500, 300
LONGEST = 90
"""Characters of a definition or sentence."""
POSITIONS = {"1": "noun", "2": "verb", "3": "adj", "4": "adv", "5": "adj"}
LEFT_OUT = re.compile(
    r"\b(sex\w*|kill\w*|murder\w*|rape\w*|slave\w*|negro\w*|jew\w*|nazi\w*|whore\w*|drug\w*|suicid\w*|corpse\w*|"
    r"genital\w*|penis|vagina\w*|breast\w*|prostitut\w*|god|christ\w*|muslim\w*|islam\w*|race|racial|black people)\b",
    re.IGNORECASE,
)
DISPUTED = {
    *(
        "Abkhazia",
        "South Ossetia",
        "Transnistria",
        "Northern Cyprus",
        "Kosovo",
        "Taiwan",
        "Palestine",
        "Western Sahara",
    ),
    *("Somaliland", "Israel", "Burma", "Nagorno-Karabakh", "Crimea", "Yugoslavia", "Swaziland", "Macedonia"),
}
VOWELS = "aeiou"


# ---- WordNet ---------------------------------------------------------------------------------------------------------
def frequent_words(folder: Path) -> Iterator[tuple[str, str]]:
    """Word and part of speech whose first sense is tagged most often, most frequent first."""
    found = []
    for line in (folder / "cntlist.rev").read_text().splitlines():
        sense, number, count = line.split()
        word, _, rest = sense.partition("%")
        if number == "1" and int(count) >= FREQUENT and word.isalpha() and word.islower() and len(word) > 3:
            found.append((-int(count), word, POSITIONS[rest[0]]))
    seen = set()
    for _, word, position in sorted(found):
        if word not in seen:
            seen.add(word)
            yield word, position


def first_sense(folder: Path, word: str, position: str, index: dict[str, dict[str, int]]) -> tuple[str, list[str]]:
    """Definition and example sentences of a word's first sense; only examples that hold the word itself."""
    data = (folder / f"data.{position}").read_bytes()
    offset = index[position][word]
    gloss = data[offset : data.index(b"\n", offset)].decode().split("| ", 1)[1].strip()
    definition = re.split(r'[;:]\s*"', gloss)[0].strip().rstrip(";")
    examples = [e for e in re.findall(r'"([^"]+)"', gloss) if re.search(rf"\b{word}\b", e)]
    return definition, examples


def wordnet(folder: Path) -> tuple[list[list[str]], list[str]]:
    """Pairs of word and definition, and sentences."""
    index: dict[str, dict[str, int]] = {}
    for position in set(POSITIONS.values()):
        index[position] = {}
        for line in (folder / f"index.{position}").read_text().splitlines():
            if line.startswith(" "):
                continue
            part = line.split()
            index[position][part[0]] = int(part[-int(part[2])])
    glosses, sentences = [], []
    for word, position in frequent_words(folder):
        if word not in index[position]:  # a count of an older WordNet
            continue
        definition, examples = first_sense(folder, word, position, index)
        plain = len(definition) < LONGEST and not LEFT_OUT.search(f"{word} {definition}")
        if plain and re.fullmatch(r"[a-z][A-Za-z ,;'()-]+", definition) and not re.search(rf"\b{word}\b", definition):
            glosses.append([word, definition])
        for example in examples[:1]:
            if 25 <= len(example) < LONGEST and not LEFT_OUT.search(example) and example.isascii():
                sentences.append(example[0].upper() + example[1:].rstrip(" .") + ".")
    return glosses[:GLOSSES], sorted(set(sentences), key=sentences.index)[:EXAMPLES]


# ---- quiz ------------------------------------------------------------------------------------------------------------
def quiz_lines(path: Path) -> Iterator[list[str]]:
    """Fields of every line, the first alternative of each with its optional parts."""
    for line in path.read_text().replace("\\\n", "").splitlines():
        yield [plain(field) for field in line.split(":")]


def plain(field: str) -> str:
    """``{x}`` is x, ``[a|b]`` the first spelling made of letters, ``a|b`` is a."""
    while re.search(r"\[[^\[\]]*\]", field):
        field = re.sub(r"\[([^\[\]]*)\]", lambda m: _spelling(m.group(1).split("|")), field)
    while re.search(r"\{[^{}]*\}", field):
        field = re.sub(r"\{([^{}]*)\}", lambda m: m.group(1).split("|")[0], field)
    return field.split("|")[0].strip()


def _spelling(options: list[str]) -> str:
    return next((o for o in options if o.isalpha()), options[-1])


def quiz(folder: Path) -> list[list[str]]:
    """Question, answer, and the group a choice is drawn from."""
    rows = []
    for part in ("africa", "america", "asia", "europe"):
        for country, capital, *_ in quiz_lines(folder / part):
            if country not in DISPUTED:
                rows.append([f"What is the capital of {country}?", capital, "capitals"])
    rows += [[f"What is the capital of the US state {s}?", c, "states"] for s, c, *_ in quiz_lines(folder / "state")]
    rows += [
        [f"What is the chemical symbol of {name.lower()}?", symbol, "elements"]
        for symbol, _number, _weight, name, *_ in quiz_lines(folder / "elements")
    ]
    rows += [[f"What is the opposite of {a}?", b, "opposites"] for a, b, *_ in quiz_lines(folder / "posneg")]
    rows += [
        [f"What is a group of {animals} called?", _with_article(name), "groups"]
        for animals, name, *_ in quiz_lines(folder / "collectives")
    ]
    rows += [
        [f"What is a young {adult} called?", _with_article(young), "young"]
        for young, adult, *_ in quiz_lines(folder / "babies")
    ]
    first: dict[str, list[str]] = {}
    for row in rows:
        if not LEFT_OUT.search(" ".join(row)) and row[0].isascii() and re.fullmatch(r"[A-Za-z .,'-]+", row[1]):
            first.setdefault(row[0], row)
    return list(first.values())


def _with_article(noun: str) -> str:
    return f"{'an' if noun[:1] in VOWELS else 'a'} {noun}"


# ---- all -------------------------------------------------------------------------------------------------------------
def main() -> None:
    """Write the bundle."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("unpacked", type=Path)
    root = parser.parse_args().unpacked
    glosses, sentences = wordnet(root / "usr/share/wordnet")
    questions = quiz(root / "usr/share/games/bsdgames/quiz")
    TARGET.mkdir(parents=True, exist_ok=True)
    content = {"glosses": glosses, "sentences": sentences, "quiz": questions}
    (TARGET / "rows.json").write_text(json.dumps(content, ensure_ascii=True, indent=0, sort_keys=True) + "\n")
    for package, name in (("wordnet-base", "wordnet"), ("bsdgames", "bsdgames")):
        (TARGET / f"LICENSE-{name}.txt").write_bytes((root / f"usr/share/doc/{package}/copyright").read_bytes())
    print({key: len(value) for key, value in content.items()})


if __name__ == "__main__":
    main()
