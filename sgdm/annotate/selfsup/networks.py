"""The networks of our own encoders: a ConvNet, a vision transformer, and the linear map of whitened pixels."""

from __future__ import annotations

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from sgdm.annotate.names import Network

SIZE = 32  # pixels: images are encoded at this size, so that the cost does not depend on theirs


class ConvNet(nn.Module):
    """float [B, 3, 32, 32] in [-1, 1] -> float32 [B, dimension]."""

    name = "convnet"
    local_size = SIZE  # pixels of a small crop in training: the last layers take one size only
    learning_rate = 3e-3

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_halving(3, 24, kernel=4),
            *_halving(24, 48, kernel=3),
            *_halving(48, 96, kernel=3),
            nn.Flatten(),
            nn.Linear(96 * (SIZE // 8) ** 2, 256, bias=False),
            nn.BatchNorm1d(256),
            nn.ReLU(inplace=True),
        )
        self.project = nn.Linear(256, dimension)

    def forward(self, images: Tensor) -> Tensor:
        return self.project(self.features(images.contiguous(memory_format=torch.channels_last)))

    def second_layer(self, images: Tensor) -> Tensor:
        """float [B, 3, H, W] in [-1, 1], of any size -> float32 [B, 48, H / 4, W / 4], not negative."""
        return self.features[:6](images.contiguous(memory_format=torch.channels_last))


class SmallTransformer(VisionTransformer):
    """float [B, 3, H, W] in [-1, 1], H and W multiples of 4 -> float32 [B, dimension], from the class token."""

    name = "vit"
    local_size = SIZE // 2
    learning_rate = 1e-3

    def __init__(self, dimension: int) -> None:
        super().__init__(
            img_size=SIZE,
            patch_size=4,
            embed_dim=96,
            depth=4,
            num_heads=3,
            num_classes=dimension,
            dynamic_img_size=True,  # position embeddings are interpolated for crops, and for dense features
        )


class WhitenedPixels(nn.Module):
    """float [B, 3, 32, 32] in [-1, 1] -> float32 [B, dimension]: principal components, scaled."""

    name = "pixels"

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.project = nn.Linear(3 * SIZE * SIZE, dimension)

    def forward(self, images: Tensor) -> Tensor:
        return self.project(images.flatten(1))


TrainedNetwork = ConvNet | SmallTransformer
NETWORKS: dict[Network, type[TrainedNetwork]] = {"convnet": ConvNet, "vit": SmallTransformer}


def _halving(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, kernel, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]
