"""Random numbers of training images by a counter: those of an image do not depend on what is drawn with it.

On a GPU it is a Triton kernel behind torch.ops.sgdm.noise; elsewhere the plain twin of kernels/reference.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from kernels import noise_triton, reference

Backend = Literal["auto", "triton", "plain"]
BACKENDS = tuple(name for name in get_args(Backend) if name != "auto")


def noise(
    seed: int, positions: Tensor, shape: tuple[int, int, int], backend: Backend = "auto"
) -> tuple[Tensor, Tensor]:
    """Standard normal float32 [B, C, H, W], channels_last, and uniform float32 [4, B] in [0, 1).

    Philox4x32-10 (Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3, section 3.3), a cipher of a counter
    of 128 bits under a key of 64. The key is `seed`, in 0 .. 2^64-1. The counter is the image's number in `positions`,
    int64 [B], in two words, low first; a block of the image; and the stream: 0 for the normals, by the transform of
    Box and Muller (1958), 1 for the uniforms, of block 0. With N = ceil(C H W / 4) blocks, the four normals of block n
    are at n, n + N, n + 2 N and n + 3 N of an image of `shape` (C, H, W) in channels_last memory.
    Uniforms are the same on every device and backend, normals to float32 rounding.
    Compiled, other positions of as many images compile nothing anew, and another seed does.
    "auto" is the Triton kernel on a GPU and the plain twin elsewhere.
    ValueError for a seed or positions that do not fit, and for a backend that cannot run.
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"noise takes a seed in 0 .. 2^64-1, got {seed}")
    if positions.dim() != 1 or positions.dtype != torch.int64:
        raise ValueError(f"noise takes positions int64 [B], got {positions.dtype} {list(positions.shape)}")
    chosen = ("triton" if positions.is_cuda else "plain") if backend == "auto" else backend
    reason = refusal(chosen, positions.device)
    if reason is not None:
        raise ValueError(f"noise backend {chosen!r} {reason}")
    if chosen == "plain":
        return reference.noise(seed, positions, shape)
    # Operators take signed integers: the same 64 bits.
    return _noise(seed - 2**64 if seed >= 2**63 else seed, positions, shape)


def refusal(backend: str, device: torch.device) -> str | None:
    """None where a backend runs on this device; else why it does not."""
    if backend not in BACKENDS:
        return f"is unknown; choose auto or one of {', '.join(BACKENDS)}"
    if backend == "triton" and device.type != "cuda" and not noise_triton.INTERPRETED:
        return f"runs on a CUDA device, not on {device.type}; choose auto or plain"
    return None


@torch.library.custom_op("sgdm::noise", mutates_args=(), tags=(torch.Tag.pt2_compliant_tag,))
def _noise(seed: int, positions: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    with torch.cuda.device_of(positions):  # Triton launches on the current device
        return noise_triton.noise(seed, positions.contiguous(), shape)


@_noise.register_fake
def _(seed: int, positions: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    return noise_triton.empty(positions, shape)
