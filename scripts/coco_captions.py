"""The published number of caption tasks (UCIT): the mean of BLEU-1 to -4, METEOR, ROUGE-L and CIDEr, times 100.

    python scripts/coco_captions.py RUN/evals/after-06/flickr30k

reads the stored answers of a task and runs the COCO toolkit with its own tokenizer and METEOR, which are Java programs:
it needs `pip install 'mcit[captions]'` and `java`. The authors match answers to references by line; here a row carries its own.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from mcit.core.errors import McitError, StateError
from mcit.core.optional import needed
from mcit.evals.predictions import read_predictions
from mcit.evals.scorers.base import references

METRICS = (("bleu", "Bleu"), ("meteor", "Meteor"), ("rouge", "Rouge"), ("cider", "Cider"))
NAMES = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor", "rouge_l", "cider")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of a task's answers below RUN/evals")
    try:
        found = measure(parser.parse_args(argv).folder)
    except McitError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(json.dumps(found, indent=1))
    return 0


def measure(folder: Path) -> dict[str, float]:
    """The seven metrics and their mean. Raises StateError without Java, ConfigError without the toolkit."""
    if shutil.which("java") is None:
        raise StateError("the toolkit's tokenizer and METEOR need java", where="PATH", fix="install a Java runtime")
    rows = read_predictions(folder)
    tokenizer = needed("pycocoevalcap.tokenizer.ptbtokenizer", where="scripts/coco_captions.py").PTBTokenizer()
    written = tokenizer.tokenize({i: [{"caption": t} for t in references(row["gold"])] for i, row in enumerate(rows)})
    said = tokenizer.tokenize({i: [{"caption": row["text"]}] for i, row in enumerate(rows)})
    values: list[float] = []
    for module, name in METRICS:
        metric = getattr(needed(f"pycocoevalcap.{module}.{module}", where="scripts/coco_captions.py"), name)()
        value, _ = metric.compute_score(written, said)
        values += value if isinstance(value, list) else [value]
    found = {name: 100 * float(value) for name, value in zip(NAMES, values, strict=True)}
    return {**found, "average": sum(found.values()) / len(found)}


if __name__ == "__main__":
    sys.exit(main())
