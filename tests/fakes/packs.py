"""Batches of several questions per picture for the tiny LLaVA, and what a pack must equal."""

from dataclasses import dataclass, replace

import torch

from mcit.core.types import Batch
from tests.fakes.recipes import recipe_file
from tests.fakes.rows import llava, picture
from tests.fakes.toy import IMAGE_TOKENS, toy_rows


@dataclass(frozen=True, slots=True)
class Questions(Batch):
    place_ids: tuple = ()
    """Ids of each row without padding."""


def questions(model, per_picture, *, prefix=20, own=(6, 9, 4, 7), answer=3, seed=0, stream="task"):
    """`per_picture` rows of each picture in turn; row k has `own[k]` tokens behind the common prefix, then padding."""
    draw = torch.Generator().manual_seed(seed)
    image = model.config.image_token_id
    rows, ids, pixels = [], [], []
    for number, count in enumerate(per_picture):
        start = torch.randint(1, 250, (prefix,), generator=draw)
        start[2 : 2 + IMAGE_TOKENS] = image
        shown = torch.randn(3, 32, 32, generator=draw)
        for _ in range(count):
            k = len(rows)
            end = torch.randint(1, 250, (own[k],), generator=draw)
            end[0] = 1 + k  # rows differ from there on
            rows.append(replace(toy_rows(k + 1)[k], images=(f"{number}.png",)))
            ids.append(torch.cat([start, end]))
            pixels.append(shown)
    length = max(len(row) for row in ids)
    ids_BT = torch.zeros(len(rows), length, dtype=torch.int64)
    attention_BT, labels_BT = torch.zeros_like(ids_BT), torch.full_like(ids_BT, -100)
    for b, row in enumerate(ids):
        ids_BT[b, : len(row)], attention_BT[b, : len(row)] = row, 1
        labels_BT[b, len(row) - answer : len(row)] = row[-answer:]
    return Questions(
        stream,
        tuple(rows),
        ids_BT,
        labels_BT,
        attention_BT,
        {"pixel_values": torch.stack(pixels)},
        answer * len(rows),
        ids_BT == image,
        place_ids=tuple(ids),
    )


def question_settings(folder, **optim):
    """Two stages whose rows ask about few pictures, with general text rows, replay and hidden states beside them."""
    recipes = []
    for name in ("one", "two"):
        train = [
            llava(f"{name}{k}", f"<image>\nIs it {name}{'?' * (k % 3)} {k}?", "yes" if k % 2 else "no " * (k % 5 + 1),
                  image=f"{k % 3}.png")
            for k in range(18)
        ]  # fmt: skip
        (folder / name / "images").mkdir(parents=True)
        for k in range(3):
            picture(folder / name / "images", f"{k}.png", colour=(80 * k, 9, 200))
        recipes.append(recipe_file(folder / name, train=train[2:], test=train[:2], name=f"some/{name}", task=name))
    methods = [
        {"use": "gere", "recipe": "general/tiny", "per_step": 2, "variant": "tm"},
        {"use": "replay", "keep": 6, "per_step": 3},
    ]
    return {
        "stages": [{"recipe": str(recipe)} for recipe in recipes],
        "defaults": {
            "adapter": {"rank": 4, "alpha": 8, "also_train": ["projector"]},
            "optim": {"batch": 6, "lr": 1e-3, "rows_per_image": 6, **optim},
            "max_steps": 3,
            "methods": methods,
        },
    }
