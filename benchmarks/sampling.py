"""The case of sampling: a batch of images by guided DDIM, from noise to the last step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch._inductor.utils import fresh_cache

from benchmarks.comparison import Comparison, Step
from benchmarks.diffusers_unet import DiffusersUNet
from benchmarks.shapes import PAPER
from benchmarks.stock import stock_network
from benchmarks.unet import TINY, trained
from engine.compilation import Choice, Compilation
from engine.distributed import fast_bf16
from engine.peak import forward_flops
from sgdm.conditions import Condition
from sgdm.diffusion.denoiser import Network
from sgdm.diffusion.guidance import Guidance
from sgdm.diffusion.noise import NoiseSource
from sgdm.diffusion.objective import make_objective
from sgdm.diffusion.sampling import Noise, Sampling
from sgdm.diffusion.schedule import StepTable, make_alpha_bar
from sgdm.models.config import UNetConfig
from sgdm.models.unet import UNet

NAIVE = "naive: two calls, eager, fp32"
DIFFUSERS = "diffusers: eager"
DIFFUSERS_COMPILED = "diffusers: compiled network"
OURS = "ours: compiled step"
OURS_CAPTURED = "ours: CUDA graph"

SCALE = 3.0
"""Of guidance: any but 0 and 1 takes two passes."""

SMALL = UNetConfig(
    image_size=32,
    channels=32,
    channel_multipliers=(1, 2, 2),
    residual_blocks=1,
    attention_downsamples=(4,),
    heads=2,
    num_clusters=100,
)
"""For a CPU: a step of a batch takes tens of milliseconds."""

Loop = Callable[[Network, Tensor, Tensor, Tensor, int], Tensor]
"""loop(network, noise [B, C, H, W], cluster int64 [B], null cluster int64 [B], steps) -> images [B, C, H, W]."""


def sampling(device: torch.device, quick: bool) -> Iterator[Comparison]:
    """Guided DDIM with the engine's step, with diffusers, and as it is written in a dozen lines."""
    config = TINY if quick else SMALL if device.type == "cpu" else PAPER
    steps = 2 if quick else 10 if device.type == "cpu" else 50
    torch.manual_seed(0)
    network = trained(UNet(config)).to(device).eval()
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # as the released code and the engine have it
    for B in (2,) if quick else (16,) if device.type == "cpu" else (64, 256):
        torch._dynamo.reset()  # else the last batch's shapes count towards the limit of recompilations
        with fresh_cache():
            yield Comparison(
                f"batch {B}, {steps} steps of {config.image_size}x{config.image_size}, "
                f"all but the first in {'bf16' if fast_bf16(device) else 'fp32'}",
                _peers(network, B, steps, device),
                device,
                flops=B * steps * 2 * forward_flops(config),
                arithmetic="bf16",
                images=B,
            )


def _peers(network: UNet, B: int, steps: int, device: torch.device) -> dict[str, Callable[[], Step]]:
    """All draw their own noise, in fp32 or, where that is faster, in bf16."""
    config, fast = network.config, torch.bfloat16 if fast_bf16(device) else torch.float32
    K = config.num_clusters or 0
    cluster = torch.arange(B, device=device) % K
    shape = config.in_channels, config.image_size, config.image_size

    def by(loop: Loop, network: nn.Module, dtype: torch.dtype) -> Step:
        null = torch.full_like(cluster, K)
        return lambda: loop(network, torch.randn(B, *shape, device=device, dtype=dtype), cluster, null, steps)

    def diffusers(choice: Choice) -> Step:
        peer = trained(DiffusersUNet(config)).to(device, fast).eval()
        peer.forward = Compilation(choice)(peer.forward)  # type: ignore[method-assign]
        return by(guided_by_diffusers, peer, fast)

    def ours(choice: Choice) -> Step:
        sample = engine(deepcopy(network).to(fast), Compilation(choice))
        condition = Condition(cluster)
        return lambda: sample(condition, NoiseSource(0, range(B), shape, device), steps)

    peers: dict[str, Callable[[], Step]] = {
        NAIVE: lambda: by(naive, stock_network(network).eval(), torch.float32),
        DIFFUSERS: lambda: diffusers("off"),
        DIFFUSERS_COMPILED: lambda: diffusers("default"),
        OURS: lambda: ours("default"),
    }
    return peers | ({OURS_CAPTURED: lambda: ours("cuda-graphs")} if device.type == "cuda" else {})


def engine(network: UNet, compilation: Compilation) -> Callable[[Condition, Noise, int], Tensor]:
    """sgdm's sampling, as the programs use it."""
    sampling = Sampling(
        network,
        make_objective("eps", "sqrt_linear"),
        embed=network.embed,
        num_clusters=network.config.num_clusters,
        compile=compilation,
    )
    return lambda condition, noise, steps: sampling(
        condition, noise, sampler="ddim", steps=steps, guidance=Guidance(SCALE)
    )


@torch.inference_mode()
def naive(network: Network, x: Tensor, cluster: Tensor, null: Tensor, steps: int) -> Tensor:
    """Equation 12 of Song et al. (2010.02502) with guidance, line by line: two calls of the network a step."""
    alpha_bar = make_alpha_bar("sqrt_linear")
    alphas = [*alpha_bar.tolist(), 1.0]  # step -1 is the image
    for step, step_next in pairwise([*StepTable(alpha_bar).evenly_spaced_steps(steps), -1]):
        alpha, alpha_next = alphas[step], alphas[step_next]
        time = torch.full((len(x),), float(step), device=x.device)
        eps_null = network(x, time, Condition(null))
        eps = network(x, time, Condition(cluster))
        eps = eps_null + SCALE * (eps - eps_null)
        image = ((x - math.sqrt(1 - alpha) * eps) / math.sqrt(alpha)).clamp(-1, 1)
        eps = (x - math.sqrt(alpha) * image) / math.sqrt(1 - alpha)
        x = math.sqrt(alpha_next) * image + math.sqrt(1 - alpha_next) * eps
    return x


@torch.no_grad()
def guided_by_diffusers(network: Network, x: Tensor, cluster: Tensor, null: Tensor, steps: int) -> Tensor:
    """The loop of diffusers' guided pipelines, such as its DiTPipeline, around its DDIMScheduler: one pass over a
    doubled batch, whose halves are combined and given to the scheduler. The pipeline for this network, DDIMPipeline,
    knows no guidance."""
    from diffusers import DDIMScheduler  # a peer, and no dependency of the benchmarks

    scheduler: Any = DDIMScheduler(
        beta_start=1e-4, beta_end=0.02, beta_schedule="scaled_linear", timestep_spacing="trailing"
    )
    scheduler.set_timesteps(steps, device=x.device)
    both = Condition(torch.cat((null, cluster)))
    for time in scheduler.timesteps:
        doubled = scheduler.scale_model_input(torch.cat((x, x)), time)
        eps_null, eps = network(doubled, time.expand(len(doubled)), both).chunk(2)
        eps = eps_null + SCALE * (eps - eps_null)
        x = scheduler.step(eps, time, x, use_clipped_model_output=True).prev_sample
    return x
