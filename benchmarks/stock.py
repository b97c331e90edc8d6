"""What one writes in plain PyTorch where this project has something of its own: the peer to compare with."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from sgdm.models import layers
from sgdm.models.unet import UNet


def group_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """As kernels.group_norm, but in the dtype of x and three operations, as ADM and its descendants have it."""
    y = F.group_norm(x, num_groups, weight, bias)
    if scale is not None and shift is not None:
        y = y * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    return F.silu(y) if activation == "silu" else y


def with_stock_group_norm(network: UNet) -> UNet:
    """The network with torch's group norm, on the same weights. Changes it in place."""
    _replace(network, layers.GroupNorm, _GroupNorm)
    return network


def stock_network(network: UNet) -> UNet:
    """A network of the same weights as one writes it in plain PyTorch, and as the released code of the paper has it.

    torch's group norm, attention in plain operations, and activations in contiguous memory (NCHW). The UNet makes its
    input channels_last and multiplies 1x1 convolutions as matrices in that layout; both are undone.
    """
    copy = UNet(network.config, layers.Backends(attention="math")).to(network.input.weight.device)
    copy.load_state_dict(network.state_dict())
    copy.input.register_forward_pre_hook(lambda module, inputs: (inputs[0].contiguous(),))
    _replace(copy, layers.PointwiseConvolution, _PointwiseConvolution)
    return with_stock_group_norm(copy)


class _GroupNorm(nn.Module):
    def __init__(self, ours: layers.GroupNorm) -> None:
        super().__init__()
        self.num_groups, self.activation = ours.num_groups, ours.activation
        self.weight, self.bias = ours.weight, ours.bias

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        return group_norm(x, self.weight, self.bias, self.num_groups, scale, shift, self.activation)


class _PointwiseConvolution(nn.Module):
    def __init__(self, ours: layers.PointwiseConvolution) -> None:
        super().__init__()
        self.weight = nn.Parameter(ours.weight.detach()[:, :, None, None])
        self.bias = ours.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x.contiguous(), self.weight, self.bias)


def _replace(network: nn.Module, ours: type[nn.Module], stock: type[nn.Module]) -> None:
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, ours):
                setattr(module, name, stock(child))
