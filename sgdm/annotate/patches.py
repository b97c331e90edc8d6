"""Dense features: what an encoder sees at each place of an image, for boxes and for segments.

A vision transformer, of timm or our own, has a feature a patch: the keys of its last attention layer for boxes, which
LOST found best, and the tokens that its last layer gives for segments. Our own ConvNet has maps before its last, global
layer. Features of our own encoders are whitened.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from sgdm.annotate.features import Encoder, TimmEncoder
from sgdm.annotate.layout import Kind
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
    if isinstance(encoder, TimmEncoder) and isinstance(encoder.network, VisionTransformer):
        return VisionTransformerPatches(encoder, encoder.run, encoder.network.patch_embed.grid_size, kind)
    if isinstance(encoder, OwnEncoder) and isinstance(encoder.network, SmallTransformer):
        side = TRANSFORMER_INPUT // encoder.network.patch_embed.patch_size[0]
        run = partial(encoder.run, size=TRANSFORMER_INPUT)
        return WhitenedPatches(VisionTransformerPatches(encoder, run, (side, side), kind), kind)
    if isinstance(encoder, OwnEncoder) and isinstance(encoder.network, ConvNet):
        return WhitenedPatches(ConvNetPatches(encoder), kind)
    raise ValueError(
        f"the encoder {encoder.name} has no features of patches, which {kind} are found in: "
        "give a self-supervised one, or a vision transformer of timm"
    )


class VisionTransformerPatches:
    """Keys of the last attention layer, all heads, or normed tokens; those of class and registers are left out."""

    def __init__(
        self,
        encoder: TimmEncoder | OwnEncoder,
        run: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor],
        grid: tuple[int, int],
        kind: Kind,
    ) -> None:
        """`run` brings images through a way through the encoder's network, at the size that gives the grid."""
        self.name = f"{'keys' if kind == 'boxes' else 'tokens'} of {encoder.name}"
        self.digest = encoder.digest
        self.grid = grid
        self._network: Any = encoder.network
        self._run = run
        self._kind = kind

    def __call__(self, images: Tensor) -> Tensor:
        tokens = self._run(self._keys if self._kind == "boxes" else self._tokens, images)
        patches = tokens[:, self._network.num_prefix_tokens :]
        return patches.transpose(1, 2).unflatten(2, self.grid)

    def _tokens(self, pixels: Tensor) -> Tensor:
        return self._network.forward_features(pixels)

    def _keys(self, pixels: Tensor) -> Tensor:
        projected: list[Tensor] = []
        layer = self._network.blocks[-1].attn.qkv
        hook = layer.register_forward_hook(lambda module, inputs, output: projected.append(output))
        try:
            self._tokens(pixels)
        finally:
            hook.remove()
        return projected[0].chunk(3, dim=2)[1]  # queries, keys, values


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
