"""The objective `neighbours`: to tell where an image lies in the commute-time embedding of nearest neighbours.

The network sees shifted, scaled and partly hidden images. The neighbours make it group images, and what it cannot tell
apart after a shift it brings together. The nearest neighbours are those of whitened pixels at first, and later those
that the network itself finds.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sgdm.annotate.selfsup.encoder import centred
from sgdm.annotate.selfsup.learner import Learner
from sgdm.annotate.selfsup.networks import TrainedNetwork
from sgdm.annotate.selfsup.pixels import whitened_pixels
from sgdm.annotate.selfsup.views import near_views
from sgdm.annotate.spectral import commute_time_embedding, nearest_neighbours

NEIGHBOURS = 15
ENCODING_BATCH = 1024


class Neighbours(Learner):
    """The network and the coordinates that it learns to tell, which are part of its state until the next round."""

    rounds = 2  # of finding neighbours and learning from them
    momentum = 0.5  # with 0.9, clusters of Fashion-MNIST were less pure (0.776 for 0.791, K = 100, 80,000 views)

    def __init__(self, encoder: TrainedNetwork, sample: Tensor, *, dimension: int, steps: int, seed: int) -> None:
        """sample: uint8 [N, 3, 32, 32] on the encoder's device; `dimension`, that of its output, is less than N."""
        super().__init__()
        self.encoder = encoder
        self._sample = sample
        self._steps, self._steps_a_round = steps, -(-steps // self.rounds)
        self._seed = seed
        self.targets: Tensor
        self.register_buffer("targets", torch.empty(len(sample), dimension, device=sample.device))
        self._find_targets(whitened_pixels(sample, dimension, seed))

    def loss(self, rows: Tensor, images: Tensor, generator: torch.Generator) -> Tensor:
        """One minus the cosine of output and target, on average: clusters see nothing but directions."""
        return (1 - F.cosine_similarity(self.encoder(near_views(images, generator)), self.targets[rows])).mean()

    def after_step(self, step: int) -> None:
        if (step + 1) % self._steps_a_round == 0 and step + 1 < self._steps:
            self.encoder.eval()
            self._find_targets(self.encoder)
            self.encoder.train()

    @torch.no_grad()
    def _find_targets(self, network: nn.Module) -> None:
        points = torch.cat([network(centred(batch)).cpu() for batch in self._sample.split(ENCODING_BATCH)])
        links = nearest_neighbours(points.numpy(), NEIGHBOURS)
        self.targets.copy_(torch.from_numpy(commute_time_embedding(links, self.targets.shape[1], self._seed)))
