"""Batches of random tokens and pictures for the tiny LLaVA, without the data package."""

import torch

from mcit.core.types import Batch, Row, Turn

IMAGE_TOKENS = 16


def toy_rows(n, *, task="toy", images=True):
    return tuple(
        Row(
            f"{task}-{i}",
            ("x.png",) if images else (),
            (Turn("user", "q"), Turn("assistant", "a")),
            task,
            f"{task}.json:{i}",
        )
        for i in range(n)
    )


def toy_batch(model, *, rows=4, length=30, answer=5, seed=0, images=True, stream="task"):
    """A batch whose rows end in `answer` supervised tokens; random, by seed."""
    generator = torch.Generator().manual_seed(seed)
    image = model.config.image_token_id
    ids = torch.randint(0, 250, (rows, length), generator=generator)
    if images:
        ids[:, 2 : 2 + IMAGE_TOKENS] = image
    labels = torch.full_like(ids, -100)
    labels[:, -answer:] = ids[:, -answer:]
    pixels = {"pixel_values": torch.randn(rows, 3, 32, 32, generator=generator)} if images else {}
    return Batch(stream, toy_rows(rows, images=images), ids, labels, torch.ones_like(ids), pixels, rows * answer)
