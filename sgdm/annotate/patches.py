"""Dense features: what an encoder sees at each place of an image, for boxes and for segments.

A backbone has them in the layer and part that FeatureChoice says, and our own transformer in its last layer: by default
keys of the attention for boxes, which LOST found best, and output tokens for segments. Our own ConvNet has maps before
its last, global layer. Features of our own encoders are whitened.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from sgdm.annotate.backbones import TimmEncoder
from sgdm.annotate.features import Encoder
from sgdm.annotate.layer_reader import layer_reader
from sgdm.annotate.layout import Kind
from sgdm.annotate.names import FeatureChoice
from sgdm.annotate.selfsup import OwnEncoder
from sgdm.annotate.selfsup.networks import ConvNet, SmallTransformer

TRANSFORMER_INPUT = 64  # pixels, twice those of our transformer's training, whose crops were enlarged as much
CONVNET_INPUT = 128  # pixels, four times what the ConvNet learnt from, for it to see details
CONVNET_GRID = 16
MARGIN = 8  # pixels around the ConvNet's input, its border repeated: as far as the second layer sees
BACKGROUND = 2.0  # length of the number that is the same everywhere, in mean lengths of an image's features
TINY = 1e-12  # an image of one colour has features of length 0
REGULARISATION = 1e-2  # of an image's total variance, added to each variance that whitening divides by


class PatchEncoder(Protocol):
    """A frozen map from images to features of their patches."""

    name: str
    digest: str  # that of the encoder
    grid: tuple[int, int]  # h, w

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] on any device -> float32 [B, D, h, w] on the encoder's device."""
        ...


def patch_encoder(encoder: Encoder, kind: Kind) -> PatchEncoder:
    """The dense features of `encoder` that boxes or segments are found in; ValueError where it has none."""
    if isinstance(encoder, TimmEncoder):
        return BackbonePatches(encoder, kind)
    if isinstance(encoder, OwnEncoder) and isinstance(encoder.network, SmallTransformer):
        return WhitenedPatches(TransformerPatches(encoder, kind), kind)
    if isinstance(encoder, OwnEncoder) and isinstance(encoder.network, ConvNet):
        return WhitenedPatches(ConvNetPatches(encoder), kind)
    raise ValueError(
        f"the encoder {encoder.name} has no features of patches, which {kind} are found in: "
        "give self-supervised, or a backbone of timm"
    )


class BackbonePatches:
    """The patches of a timm backbone, of the layer and part that were chosen for it."""

    def __init__(self, encoder: TimmEncoder, kind: Kind) -> None:
        part = encoder.choice.of(kind)
        self.name = f"{part} of {encoder.name}"
        self.digest = encoder.digest
        forward = encoder.patches(part)
        h, w = encoder.probe(forward).shape[2:]
        self.grid = (h, w)
        self._encode = encoder.encoder_of(forward)

    def __call__(self, images: Tensor) -> Tensor:
        return self._encode(images)


class TransformerPatches:
    """The patches of our own transformer."""

    def __init__(self, encoder: OwnEncoder, kind: Kind) -> None:
        part = FeatureChoice().of(kind)
        self.name = f"{part} of {encoder.name}"
        self.digest = encoder.digest
        network: Any = encoder.network
        side = TRANSFORMER_INPUT // int(network.patch_embed.patch_size[0])
        self.grid = (side, side)
        read = layer_reader(network, -1, part)
        self._encode = partial(encoder.run, lambda pixels: read(pixels)[0], size=TRANSFORMER_INPUT)

    def __call__(self, images: Tensor) -> Tensor:
        return self._encode(images)


class ConvNetPatches:
    """The map of our ConvNet's second layer on a grid of 16x16, a place of which sees a tenth of the image's width."""

    grid = (CONVNET_GRID, CONVNET_GRID)

    def __init__(self, encoder: OwnEncoder) -> None:
        self.name = f"second layer of {encoder.name}"
        self.digest = encoder.digest
        self._encoder = encoder

    def __call__(self, images: Tensor) -> Tensor:
        return self._encoder.run(self._second_layer, images, CONVNET_INPUT)

    def _second_layer(self, pixels: Tensor) -> Tensor:
        network = self._encoder.network
        assert isinstance(network, ConvNet)
        # The layers pad with zeros, which would make the border of each image a texture of its own.
        layer = network.second_layer(F.pad(pixels, (MARGIN,) * 4, mode="replicate"))
        cut = MARGIN // 4
        return F.adaptive_avg_pool2d(layer[:, :, cut:-cut, cut:-cut], self.grid)


class WhitenedPatches:
    """Features of an encoder of our own, whitened over each image.

    Trained on few images for a short time, it does not tell objects from backgrounds as a large transformer does:
    `whiten` makes what an image shows most of, its background, unremarkable. Segments get one number more, the same
    everywhere: normalised, patches that depart little from their image's background then point more in its direction
    than others do, whatever the background looks like.
    """

    def __init__(self, patches: PatchEncoder, kind: Kind) -> None:
        self.name = f"whitened {patches.name}"
        self.digest = patches.digest
        self.grid = patches.grid
        self._patches = patches
        self._kind = kind

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        features = whiten(self._patches(images))
        if self._kind == "boxes":
            return features
        length = features.square().sum(dim=1, keepdim=True).mean(dim=(2, 3), keepdim=True).sqrt()
        return torch.cat([features, (BACKGROUND * length + TINY).expand_as(features[:, :1])], dim=1)


def whiten(features: Tensor) -> Tensor:
    """[B, D, h, w]: over the patches of each image, zero mean, no correlation, large variances brought down to one.

    Features of layers that never learnt to tell objects from backgrounds vary most with what covers most of the
    image: a background's gradient, stripes or clouds, whose parts are alike to nothing in other parts. Whitened, that
    is one direction of many, and what departs from all of the background stands out. Directions are those of the
    features (ZCA), so that they mean the same in every image.
    """
    rows = features.flatten(2).double()
    rows = rows - rows.mean(dim=2, keepdim=True)
    variances, directions = torch.linalg.eigh(rows @ rows.transpose(1, 2) / rows.shape[2])
    variances = variances.clamp_min(0)
    scales = (variances + REGULARISATION * variances.sum(dim=1, keepdim=True)).clamp_min(TINY).rsqrt()
    whitened = directions @ (scales[:, :, None] * (directions.transpose(1, 2) @ rows))
    return whitened.view_as(features).to(features.dtype)
