"""The case of a training step of the UNet, without its optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.comparison import Comparison, Step
from benchmarks.shapes import PAPER, one_image
from benchmarks.stock import stock_network, with_stock_group_norm
from sgdm.conditions import Condition
from sgdm.models.config import UNetConfig
from sgdm.models.unet import UNet

# On a CPU its kernels take a minute to compile, the paper's half an hour.
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
    network = _trained(UNet(config)).to(device)
    for B in (2,) if quick else (8,) if device.type == "cpu" else (64, 256):
        torch._dynamo.reset()  # else the last batch's shapes count towards the limit of recompilations
        batch = _Batch(config, B, device)
        peers = _cpu_peers(network, batch) if device.type == "cpu" else _gpu_peers(network, batch)
        yield Comparison(
            f"batch {B}",
            peers,
            device,
            flops=3 * B * flops_of_an_image(config),
            arithmetic="fp32" if device.type == "cpu" else "bf16",
            images=B,
        )


def flops_of_an_image(config: UNetConfig) -> int:
    """Operations of a forward pass, as torch counts them. The backward pass has twice as many."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        UNet(config)(*one_image(config))
    return counter.get_total_flops()


class _Batch:
    def __init__(self, config: UNetConfig, B: int, device: torch.device) -> None:
        size = config.image_size
        self.x, self.target = torch.randn(2, B, 3, size, size, device=device)
        self.time = torch.linspace(0, 999, B, device=device)
        self.condition = Condition(torch.arange(B, device=device) % (config.num_clusters or 1))


def _cpu_peers(network: UNet, batch: _Batch) -> dict[str, Callable[[], Step]]:
    return {
        "eager fp32 NCHW": lambda: _step(stock_network(network), batch),
        "compiled fp32": lambda: _step(deepcopy(network), batch, compiled=True),
        "compiled bf16": lambda: _step(deepcopy(network), batch, bf16=True, compiled=True),
    }


def _gpu_peers(network: UNet, batch: _Batch) -> dict[str, Callable[[], Step]]:
    torch.backends.cudnn.benchmark = True  # as the released code and the trainer have it
    return {
        # As the released code: matrix products without TF32. It leaves torch's default for convolutions, with TF32.
        "eager fp32 NCHW": lambda: _step(stock_network(network), batch),
        "eager bf16": lambda: _step(with_stock_group_norm(deepcopy(network)), batch, bf16=True),
        "compiled bf16": lambda: _step(deepcopy(network), batch, bf16=True, compiled=True),
    }


def _step(network: nn.Module, batch: _Batch, bf16: bool = False, compiled: bool = False) -> Step:
    def loss(x: Tensor, time: Tensor, condition: Condition, target: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            y = network(x, time, condition)
        return F.mse_loss(y.float(), target)

    # As the trainer does: one graph of the network and its loss.
    call = torch.compile(loss, fullgraph=True, dynamic=False) if compiled else loss

    def step() -> None:
        call(batch.x, batch.time, batch.condition, batch.target).backward()
        network.zero_grad(set_to_none=True)

    return step


def _trained(network: UNet) -> UNet:
    """With the layers that start at zero at random: a GPU multiplies zeros faster."""
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return network
