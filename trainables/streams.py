"""Named random streams: replicate r's initialisation, order, dropout and so on are the same in every arm.

Each stream is a hash of (study, sweep seed, stream, replicate, step), so nothing needs to be stored to resume: the
order of epoch 7 is a function of its name.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Streams:
    """The random streams of one sweep of one study."""

    study: str
    seed: int = 0

    def number(self, stream: str, replicate: int, step: int = 0) -> int:
        """A 63-bit seed, unrelated to that of any other name."""
        name = f"{self.study}/{self.seed}/{stream}/{replicate}/{step}".encode()
        return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") >> 1

    def generator(self, stream: str, replicate: int, step: int = 0) -> torch.Generator:
        """A CPU generator at the beginning of the stream."""
        return torch.Generator().manual_seed(self.number(stream, replicate, step))

    def numpy_generator(self, stream: str, replicate: int, step: int = 0) -> np.random.Generator:
        """The same for numpy, whose 16-bit draws are eight times as fast as torch's Bernoulli."""
        return np.random.default_rng(self.number(stream, replicate, step))
