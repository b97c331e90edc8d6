"""Attention against its formula, the choice of a backend and the reasons of a refusal."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels.attention import BACKENDS, AttentionError, attention, attention_backends


def problem(queries: int = 5, keys: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 3, queries, 8), (2, 3, keys, 8), (2, 3, keys, 8))
    q, k, v = (torch.randn(shape, generator=generator) for shape in shapes)
    return q, k, v


def usable() -> list[str]:
    return [name for name, reason in attention_backends("cpu").items() if reason is None]


@pytest.mark.parametrize("backend", ["auto", *usable()])
def test_equals_the_formula(backend: str) -> None:
    q, k, v = problem()
    expected = (q.double() @ k.double().mT / 8**0.5).softmax(dim=-1) @ v.double()
    torch.testing.assert_close(attention(q, k, v, backend), expected.float(), rtol=1e-5, atol=1e-6)


def test_every_backend_is_usable_or_gives_a_reason() -> None:
    report = attention_backends("cpu")
    assert tuple(report) == BACKENDS
    assert report["math"] is None
    assert all(reason is None or reason for reason in report.values())
    assert "CUDA" in str(report["cudnn"])


def test_refusal_lists_the_reasons_of_all_backends() -> None:
    with pytest.raises(AttentionError) as refusal:
        attention(*problem(), backend="cudnn")
    message = str(refusal.value)
    assert "'cudnn' refuses q [2, 3, 5, 8]" in message
    assert all(f"  {name}: " in message for name in BACKENDS)
    assert "  math: takes them" in message


def test_unknown_backend_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"unknown attention backend 'flas'; choose auto or one of cudnn, flash"):
        attention(*problem(), backend="flas")


@pytest.mark.parametrize("backend", ["auto", "math"])
def test_traces_without_a_graph_break(backend: str) -> None:
    traced = torch.compile(attention, backend="aot_eager", fullgraph=True, dynamic=False)
    q, k, v = problem()
    torch.testing.assert_close(traced(q, k, v, backend), attention(q, k, v, backend))


@pytest.mark.gpu
def test_gpu_backends_agree_in_bfloat16() -> None:
    q, k, v = (x.to("cuda", torch.bfloat16) for x in problem(64, 64))
    expected = attention(q.double(), k.double(), v.double(), "math")
    for name, reason in attention_backends("cuda").items():
        if reason is None:
            torch.testing.assert_close(attention(q, k, v, name).double(), expected, rtol=2e-2, atol=1e-2)
