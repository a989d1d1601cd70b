"""An encoder of texts that counts words, and dialogues to remember."""

import zlib

import numpy as np


class Bag:
    """Words into one of 64 numbers each: texts that share words are near."""

    def __init__(self, identity="bag", dimension=64):
        self.identity, self.dimension, self.asked = identity, dimension, 0

    def __call__(self, texts):
        self.asked += len(texts)
        out = np.full((len(texts), self.dimension), 1e-3, dtype=np.float32)
        for k, text in enumerate(texts):
            for word in text.lower().split():
                out[k, zlib.crc32(word.encode()) % self.dimension] += 1
        return out
