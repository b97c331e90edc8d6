"""How a function of the network is compiled, and what the compiler made of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch._dynamo.utils import counters, cumulative_time_spent_ns

Choice = Literal["auto", "off", "default", "max-autotune", "cuda-graphs"]

_MODES = {"default": "default", "max-autotune": "max-autotune-no-cudagraphs", "cuda-graphs": "reduce-overhead"}


@dataclass(frozen=True)
class Compilation:
    """What training.compile means for a run."""

    choice: Choice
    """Never auto."""

    note: str = ""
    """Why it is not what was asked for; empty where it is."""

    @property
    def compiles(self) -> bool:
        return self.choice != "off"

    def __call__(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The function compiled as one graph of static shapes, in the mode chosen; the function itself where off.

        CUDA graphs replay forward and backward from static buffers, of torch's own making: arguments are copied in,
        and the result is cloned, because the next call overwrites it.
        """
        if not self.compiles:
            return function
        compiled = torch.compile(function, mode=_MODES[self.choice], fullgraph=True, dynamic=False)
        if self.choice != "cuda-graphs":
            return compiled

        def replayed(*arguments: object) -> Tensor:
            torch.compiler.cudagraph_mark_step_begin()
            return compiled(*arguments).clone()

        return replayed


def choose(choice: Choice, device: torch.device, accumulation: int = 1) -> Compilation:
    """`auto` compiles on a GPU. CUDA graphs need one, and fall back with a note where they cannot be."""
    if choice == "auto":
        return Compilation("default" if device.type == "cuda" else "off")
    if choice == "cuda-graphs" and device.type != "cuda":
        return Compilation("default", f"no CUDA graphs on {device.type}")
    if choice == "cuda-graphs" and accumulation > 1:
        # The gradients of a replay lie in buffers that the next replay overwrites.
        return Compilation("default", f"no CUDA graphs with training.accumulation {accumulation}: give 1")
    return Compilation(choice)


def choose_for_sampling(choice: Choice, device: torch.device) -> Compilation:
    """Of a denoising step, which is replayed hundreds of times: `auto` captures it as a CUDA graph on a GPU."""
    return choose("cuda-graphs" if choice == "auto" and device.type == "cuda" else choice, device)


@dataclass(frozen=True)
class CompileReport:
    """What torch.compile did in this process so far."""

    seconds: float
    graphs: int
    cache_hits: int
    cache_misses: int
    cuda_graphs_skipped: int

    def __str__(self) -> str:
        pieces = self.cache_hits + self.cache_misses
        text = f"{self.graphs} graph(s) in {self.seconds:.1f} s, {self.cache_hits} of {pieces} pieces from the cache"
        if self.cuda_graphs_skipped:
            text += (
                f"; CUDA graphs were not used for {self.cuda_graphs_skipped} of them, TORCH_LOGS=perf_hints says why"
            )
        return text


def compile_report() -> CompileReport:
    spent = cumulative_time_spent_ns
    inductor = counters["inductor"]
    return CompileReport(
        seconds=(spent["entire_frame_compile"] + spent["entire_backward_compile"]) / 1e9,
        graphs=counters["stats"]["unique_graphs"],
        cache_hits=inductor["fxgraph_cache_hit"],
        cache_misses=inductor["fxgraph_cache_miss"] + inductor["fxgraph_cache_bypass"],
        cuda_graphs_skipped=inductor["cudagraph_skips"],
    )
