"""The images that an encoder learns from, and seeds for what draws from no generator of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from sgdm.annotate.selfsup.encoder import Images, at_size

LARGEST_SAMPLE = 65_536  # images to learn from: neighbours are searched among all pairs
READING_BATCH = 1024


def draw_sample(images: Images, seed: int) -> Tensor:
    """uint8 [at most 65,536, 3, 32, 32], in random order; never more than a batch of large images in memory.

    ValueError where all images are the same.
    """
    rows = np.random.default_rng(seed).permutation(len(images))[:LARGEST_SAMPLE]
    batches = np.array_split(rows, -(-len(rows) // READING_BATCH) or 1)
    sample = torch.cat([at_size(torch.as_tensor(images[batch]).cpu()) for batch in batches])
    if bool((sample == sample[:1]).all()):
        raise ValueError("all images are the same: there is nothing in them to group by")
    return sample


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds torch's global generators, for what draws from no other, and gives them their old state back."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
