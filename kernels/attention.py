"""Attention through the fastest kernel that takes the tensors, with the reasons of those that do not."""

from __future__ import annotations

import warnings
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from kernels import dispatch

try:
    from xformers.ops import memory_efficient_attention
except ImportError:
    memory_efficient_attention = None

Backend = Literal["auto", "cudnn", "flash", "efficient", "math", "xformers"]
BACKENDS = tuple(name for name in get_args(Backend) if name != "auto")

_SDPA_BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
_CUDA_ONLY = ("cudnn", "efficient", "xformers")
# Where nothing was measured. cuDNN is reported 1.7-2.3x faster than flash on Hopper at training shapes and slower
# before and after it (huggingface/transformers#48163). No rule by shape has evidence yet: shapes enter by measured
# choices (kernels/dispatch.py). xformers runs kernels that torch has too: it is used where measured best, or named.
_PREFERENCE = ("flash", "efficient", "cudnn", "math")
_PREFERENCE_HOPPER = ("cudnn", "flash", "efficient", "math")


class AttentionError(ValueError):
    """The named backend refuses these tensors; the message says which take them and why the others do not."""


def attention(q: Tensor, k: Tensor, v: Tensor, backend: Backend = "auto") -> Tensor:
    """softmax(q k^T / sqrt(dim)) v, without mask or dropout (Vaswani et al., 2017, equation 1).

    q [B, heads, queries, dim], k and v [B, heads, keys, dim], of one floating dtype; returns the shape of q.
    Keys may outnumber queries: tokens put in front of an image's own. "auto" takes the first backend that accepts the
    tensors, of the one that was measured to be fastest at these shapes and a preference list by compute capability. A
    named backend is used or raises AttentionError (while torch.compile traces: torch's own error, which gives no
    reasons). ValueError for an unknown backend.
    """
    if backend == "auto":
        names = _preference(q.device, dispatch_key(q, k))
        if names[0] == "xformers":
            return _run("xformers", q, k, v)
        with sdpa_kernel([_SDPA_BACKENDS[name] for name in names], set_priority=True):
            return F.scaled_dot_product_attention(q, k, v)
    if backend not in BACKENDS:
        raise ValueError(f"unknown attention backend {backend!r}; choose auto or one of {', '.join(BACKENDS)}")
    try:
        return _run(backend, q, k, v)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise AttentionError(_explain(backend, q, k, v)) from error


def attention_backends(device: torch.device | str) -> dict[str, str | None]:
    """For every backend None where it works on the device, else the reason why not.

    Each is tried forward and backward on 4 heads and 64 tokens of dimension 64, in bfloat16 on a GPU and in
    float32 on a CPU.
    """
    dtype = torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
    q, k, v = torch.zeros(3, 1, 4, 64, 64, device=device, dtype=dtype).requires_grad_()
    return {name: _refusal(name, q, k, v) for name in BACKENDS}


def dispatch_key(q: Tensor, k: Tensor) -> str:
    """What a measured choice depends on. Batch and heads are left out: they scale every backend alike."""
    return f"{str(q.dtype).removeprefix('torch.')} {q.shape[2]} queries {k.shape[2]} keys {q.shape[3]} dim"


@torch.compiler.assume_constant_result  # nothing here for dynamo to trace
def _preference(device: torch.device, key: str) -> tuple[str, ...]:
    names = _PREFERENCE
    if device.type == "cuda" and torch.cuda.get_device_properties(device).major == 9:
        names = _PREFERENCE_HOPPER
    measured = dispatch.choice("attention", device, key)
    if measured is None or (measured == "xformers" and memory_efficient_attention is None):
        return names
    names = (measured, *(name for name in names if name != measured))
    # "math" takes everything; a CPU ignores the order, so what comes after it is cut off.
    return names[: names.index("math") + 1]


def _run(backend: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if backend != "xformers":
        with sdpa_kernel(_SDPA_BACKENDS[backend]):
            return F.scaled_dot_product_attention(q, k, v)
    if memory_efficient_attention is None:
        raise RuntimeError("xformers is not installed")
    # xformers takes [B, tokens, heads, dim].
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return memory_efficient_attention(q, k, v).transpose(1, 2)


def _refusal(backend: str, q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """None where the backend runs these tensors forward and, if need be, backward; else why not."""
    if q.device.type == "cpu" and backend in _CUDA_ONLY:
        return "runs on a CUDA device only"
    q, k, v = (x.detach().requires_grad_(x.requires_grad) for x in (q, k, v))
    with warnings.catch_warnings(record=True) as caught:  # torch gives its reasons as warnings before it raises
        warnings.simplefilter("always")
        try:
            output = _run(backend, q, k, v)
            if output.requires_grad:
                output.sum().backward()
        except RuntimeError as error:
            reasons = [str(warning.message).split(" (Triggered internally")[0] for warning in caught]
            return "; ".join([*reasons, str(error)])
    return None


def _explain(backend: str, q: Tensor, k: Tensor, v: Tensor) -> str:
    lines = [
        f"attention backend {backend!r} refuses q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)} "
        f"of {q.dtype} on {q.device}; name one that takes them, or auto:"
    ]
    for name in BACKENDS:
        lines.append(f"  {name}: {_refusal(name, q, k, v) or 'takes them'}")
    return "\n".join(lines)
