"""The case of a training step of the UNet, without its optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._inductor.utils import fresh_cache

from benchmarks.comparison import Comparison, Step
from benchmarks.shapes import PAPER
from benchmarks.stock import stock_network, with_stock_group_norm
from engine.compilation import Compilation
from engine.peak import training_flops
from kernels.group_norm import Backend
from sgdm.conditions import Condition
from sgdm.models.config import UNetConfig
from sgdm.models.layers import Backends
from sgdm.models.unet import UNet

# One level and few blocks, because a CPU's compiler takes seconds for every kernel.
TINY = UNetConfig(
    image_size=16,
    channels=16,
    channel_multipliers=(1,),
    residual_blocks=1,
    attention_downsamples=(),
    heads=2,
    num_clusters=10,
)


def training_step(device: torch.device, quick: bool) -> Iterator[Comparison]:
    """Forward and backward pass with mean squared error, against the released code's way of doing it."""
    config = TINY if quick else PAPER
    torch.manual_seed(0)
    network = trained(UNet(config)).to(device)
    weights = sum(parameter.numel() for parameter in network.parameters())
    for B in (2,) if quick else (8,) if device.type == "cpu" else (64, 256):
        torch._dynamo.reset()  # else the last batch's shapes count towards the limit of recompilations
        batch = _Batch(config, B, device)
        peers = _cpu_peers(network, batch) if device.type == "cpu" else _gpu_peers(network, batch)
        # Compiled anew, whatever an earlier run left in the compiler's cache: the time it takes is one of the figures.
        with fresh_cache():
            yield Comparison(
                f"{weights / 1e6:.1f} M weights, batch {B}",
                peers,
                device,
                flops=B * training_flops(config),
                arithmetic="fp32" if device.type == "cpu" else "bf16",
                images=B,
            )


class _Batch:
    def __init__(self, config: UNetConfig, B: int, device: torch.device) -> None:
        size = config.image_size
        self.x, self.target = torch.randn(2, B, 3, size, size, device=device)
        self.time = torch.linspace(0, 999, B, device=device)
        self.condition = Condition(torch.arange(B, device=device) % (config.num_clusters or 1))


def _cpu_peers(network: UNet, batch: _Batch) -> dict[str, Callable[[], Step]]:
    return {
        "fp32 eager NCHW": lambda: _step(stock_network(network), batch),
        "fp32 compiled": lambda: _step(_copy(network), batch, compiled=True),
        "bf16 compiled": lambda: _step(_copy(network), batch, bf16=True, compiled=True),
    }


def _gpu_peers(network: UNet, batch: _Batch) -> dict[str, Callable[[], Step]]:
    torch.backends.cudnn.benchmark = True  # as the released code and the trainer have it
    return {
        # As the released code: matrix products without TF32. It leaves torch's default for convolutions, with TF32.
        "fp32 eager NCHW": lambda: _step(stock_network(network), batch),
        "bf16 eager": lambda: _step(with_stock_group_norm(_copy(network)), batch, bf16=True),
        "bf16 compiled plain": lambda: _step(_copy(network, "plain"), batch, bf16=True, compiled=True),
        "bf16 compiled triton": lambda: _step(_copy(network, "triton"), batch, bf16=True, compiled=True),
    }


def _copy(network: UNet, group_norm: Backend = "auto") -> UNet:
    copy = UNet(network.config, Backends(group_norm=group_norm)).to(network.input.weight.device)
    copy.load_state_dict(network.state_dict())
    return copy


def _step(network: UNet, batch: _Batch, bf16: bool = False, compiled: bool = False) -> Step:
    def loss(x: Tensor, time: Tensor, condition: Condition, target: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            y = network(x, time, condition)
        return F.mse_loss(y.float(), target)

    # As the trainer does: one graph of the network and its loss.
    call = Compilation("default" if compiled else "off")(loss)

    def step() -> None:
        call(batch.x, batch.time, batch.condition, batch.target).backward()
        network.zero_grad(set_to_none=True)

    return step


def trained(network: UNet) -> UNet:
    """With what starts at zero at random: a GPU multiplies zeros faster."""
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return network
