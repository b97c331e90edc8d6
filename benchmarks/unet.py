"""The case of a training step of the UNet: forward, loss, backward, AdamW and a moving average of the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import deepspeed
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._inductor.utils import fresh_cache

from benchmarks.comparison import Comparison, Step
from benchmarks.diffusers_unet import DiffusersUNet, size_of
from benchmarks.shapes import PAPER
from benchmarks.stock import stock_network
from engine.compilation import Compilation
from engine.distributed import initialize
from engine.peak import training_flops
from engine.recipes import imagenet64
from engine.zero import deepspeed_config
from kernels.ema import ema_update
from sgdm.conditions import Condition
from sgdm.models.config import UNetConfig
from sgdm.models.unet import UNet

RELEASED = "released setting: fp32 eager NCHW"
DIFFUSERS = "diffusers: bf16 compiled"
OURS = "ours: bf16 compiled, bare loop"
OURS_WITHOUT_EMA = "ours, without EMA"
OURS_UNDER_DEEPSPEED = "ours, under DeepSpeed"

Network = TypeVar("Network", bound=nn.Module)

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


def train_step(device: torch.device, quick: bool) -> Iterator[Comparison]:
    """A step as the trainer makes it, against the released code's setting and diffusers; what DeepSpeed and the EMA
    cost of it."""
    config = TINY if quick else PAPER
    torch.manual_seed(0)
    network = trained(UNet(config)).to(device)
    weights, flops = sum(parameter.numel() for parameter in network.parameters()), training_flops(config) / 3
    their_weights, their_flops = size_of(config)
    for B in (2,) if quick else (8,) if device.type == "cpu" else (64, 256):
        torch._dynamo.reset()  # else the last batch's shapes count towards the limit of recompilations
        # Compiled anew, whatever an earlier run left in the compiler's cache: the time it takes is one of the figures.
        # Of the peers that compile our network alike only the first pays it all.
        with fresh_cache():
            yield Comparison(
                f"batch {B}, {weights / 1e6:.1f} M weights (diffusers {their_weights / 1e6:.1f} M), "
                f"{flops / 1e9:.1f} GFLOP a forward pass of an image (diffusers {their_flops / 1e9:.1f})",
                _peers(network, _Batch(config, B, device)),
                device,
                flops=B * training_flops(config),
                arithmetic="bf16",
                images=B,
            )


class _Batch:
    def __init__(self, config: UNetConfig, B: int, device: torch.device) -> None:
        size = config.image_size
        self.x, self.target = torch.randn(2, B, 3, size, size, device=device)
        self.time = torch.linspace(0, 999, B, device=device)
        self.condition = Condition(torch.arange(B, device=device) % (config.num_clusters or 1))


def _peers(network: UNet, batch: _Batch) -> dict[str, Callable[[], Step]]:
    """All with fp32 weights, the same optimizer and, where it is not said, one average of the weights."""
    if batch.x.is_cuda:
        torch.backends.cudnn.benchmark = True  # as the released code and the trainer have it

    def ours() -> _Loss:
        return _Loss(_copy(network), bf16=True, compiled=True)

    def diffusers() -> _Loss:
        return _Loss(trained(DiffusersUNet(network.config)).to(batch.x.device), bf16=True, compiled=True)

    return {
        # As the released code: matrix products without TF32. It leaves torch's default for convolutions, with TF32.
        RELEASED: lambda: _bare(_Loss(stock_network(network), bf16=False, compiled=False), batch),
        DIFFUSERS: lambda: _bare(diffusers(), batch),
        OURS: lambda: _bare(ours(), batch),
        OURS_WITHOUT_EMA: lambda: _bare(ours(), batch, averaged=False),
        OURS_UNDER_DEEPSPEED: lambda: _under_deepspeed(ours(), batch),
    }


def _copy(network: UNet) -> UNet:
    copy = UNet(network.config).to(network.input.weight.device)
    copy.load_state_dict(network.state_dict())
    return copy


class _Loss(nn.Module):
    """A network and its loss in one module, compiled as one graph like the trainer's."""

    def __init__(self, network: nn.Module, bf16: bool, compiled: bool) -> None:
        super().__init__()
        self.network, self.bf16 = network, bf16
        self._call = Compilation("default" if compiled else "off")(self._loss)

    def forward(self, x: Tensor, time: Tensor, condition: Condition, target: Tensor) -> Tensor:
        return self._call(x, time, condition, target)

    def _loss(self, x: Tensor, time: Tensor, condition: Condition, target: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            y = self.network(x, time, condition)
        return F.mse_loss(y.float(), target)


def _bare(loss: _Loss, batch: _Batch, averaged: bool = True) -> Step:
    optimizer, update = _optimizer(loss), _average(loss) if averaged else None

    def step() -> None:
        loss(batch.x, batch.time, batch.condition, batch.target).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if update is not None:
            update()

    return step


def _under_deepspeed(loss: _Loss, batch: _Batch) -> Step:
    threads = torch.get_num_threads()
    ranks = initialize()
    torch.set_num_threads(threads)  # as the other peers have them
    config = deepspeed_config(imagenet64().training, 0, len(batch.x), 1, ranks)
    engine, *_ = deepspeed.initialize(model=loss, optimizer=_optimizer(loss), config=config)
    update = _average(loss)

    def step() -> None:
        engine.backward(engine(batch.x, batch.time, batch.condition, batch.target))
        engine.step()
        update()

    return step


def _optimizer(loss: _Loss) -> torch.optim.Optimizer:
    return torch.optim.AdamW(loss.parameters(), lr=1e-4, fused=True)


def _average(loss: _Loss) -> Callable[[], None]:
    parameters = list(loss.parameters())
    average = [parameter.detach().clone() for parameter in parameters]
    return lambda: ema_update([average], parameters, [0.9999])


def trained(network: Network) -> Network:
    """With what starts at zero at random: a GPU multiplies zeros faster."""
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return network
