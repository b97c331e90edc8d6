"""The objectives by which views of one image are to be alike: SimCLR, VICReg and DINO, with lightly's heads and losses.

They differ in what keeps the network from giving all images the same feature: SimCLR (arXiv 2002.05709) drives other
images away, VICReg (arXiv 2105.04906) wants every dimension to vary and none to repeat another, DINO (arXiv
2104.14294) centres and sharpens what a teacher, the average of past students, says.

lightly takes seconds to import: import this module only where it is used.
"""

from __future__ import annotations

import math
import warnings

import torch
from lightly.loss import DINOLoss, NTXentLoss, VICRegLoss
from lightly.models.modules.heads import DINOProjectionHead, SimCLRProjectionHead, VICRegProjectionHead
from torch import Tensor, nn

from sgdm.annotate.selfsup.learner import Learner
from sgdm.annotate.selfsup.networks import SIZE, TrainedNetwork
from sgdm.annotate.selfsup.views import far_views

PAIR_AREA = (0.2, 1.0)  # of the image that a view shows
HIDDEN = 512
TEMPERATURE = 0.2  # of SimCLR

GLOBAL_AREA = (0.4, 1.0)
LOCAL_AREA = (0.2, 0.5)
LOCAL_VIEWS = 2
PROTOTYPES = 2048  # outputs of DINO's head; the paper's 65,536 are for a million images
DINO_LEARNING_RATE = 5e-4  # at the ConvNet's own rate, features of all images came close to each other
FIRST_MOMENTUM = 0.9  # of DINO's teacher; it rises to 1 as a half cosine


class Pairs(Learner):
    """Two views of each image, and a loss of the two outputs of a head."""

    def __init__(self, encoder: TrainedNetwork, head: nn.Module, criterion: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.criterion = criterion

    def loss(self, rows: Tensor, images: Tensor, generator: torch.Generator) -> Tensor:
        views = [far_views(images, generator, size=SIZE, area=PAIR_AREA) for _ in range(2)]
        return self.criterion(*self.head(self.encoder(torch.cat(views))).chunk(2))


def simclr(encoder: TrainedNetwork, dimension: int) -> Pairs:
    return Pairs(encoder, SimCLRProjectionHead(dimension, HIDDEN, 128), NTXentLoss(TEMPERATURE))


def vicreg(encoder: TrainedNetwork, dimension: int) -> Pairs:
    return Pairs(encoder, VICRegProjectionHead(dimension, HIDDEN, HIDDEN), VICRegLoss())


class Dino(Learner):
    """A student that says of every crop what its teacher says of the other, large ones; the teacher is the encoder."""

    def __init__(self, student: TrainedNetwork, teacher: TrainedNetwork, *, dimension: int, steps: int) -> None:
        super().__init__()
        self.encoder = teacher
        self.student = nn.Sequential(student, _dino_head(dimension))
        self.teacher = nn.Sequential(teacher, _dino_head(dimension)).requires_grad_(False)
        self.teacher.load_state_dict(self.student.state_dict())
        self.criterion = _Criterion(PROTOTYPES)  # its centre is a buffer, and so part of the state
        self._local_size = student.local_size
        self._steps = steps

    @property
    def learning_rate(self) -> float:
        return DINO_LEARNING_RATE

    def loss(self, rows: Tensor, images: Tensor, generator: torch.Generator) -> Tensor:
        large = [far_views(images, generator, size=SIZE, area=GLOBAL_AREA) for _ in range(2)]
        small = [far_views(images, generator, size=self._local_size, area=LOCAL_AREA) for _ in range(LOCAL_VIEWS)]
        with torch.no_grad():
            taught = self.teacher(torch.cat(large)).chunk(2)
        told = [*self.student(torch.cat(large)).chunk(2), *self.student(torch.cat(small)).chunk(LOCAL_VIEWS)]
        return self.criterion(list(taught), told)

    def after_step(self, step: int) -> None:
        momentum = 1 - (1 - FIRST_MOMENTUM) * (1 + math.cos(math.pi * step / self._steps)) / 2
        for average, latest in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            average.lerp_(latest, 1 - momentum)


class _Criterion(DINOLoss):
    """With the centre of this process alone: lightly's waits for all of a group, of which only one trains here."""

    @torch.no_grad()
    def update_center(self, teacher_out: Tensor) -> None:
        """teacher_out: [views, B, PROTOTYPES]."""
        self.center.lerp_(teacher_out.mean(dim=(0, 1), keepdim=True), 1 - self.center_momentum)


def _dino_head(dimension: int) -> DINOProjectionHead:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's, of the weight normalisation that lightly uses
        return DINOProjectionHead(dimension, HIDDEN, bottleneck_dim=128, output_dim=PROTOTYPES, batch_norm=True)
