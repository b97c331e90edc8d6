"""What the layers do not do: copy activations that need no copy."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sgdm.models.embedding import Guide
from sgdm.models.layers import Backends, ContextAttention, Dropout, ResidualBlock, SelfAttention

COPIES = ("clone", "copy_", "_to_copy", "contiguous", "cat", "stack")
B, C, H, W = 2, 32, 8, 8
BACKENDS = Backends()
LAYERS = {
    "residual": lambda: ResidualBlock(C, 48, 16, 0.0, True, BACKENDS),
    "halved": lambda: ResidualBlock(C, C, 16, 0.0, True, BACKENDS, "halve"),
    "attention": lambda: SelfAttention(C, 4, BACKENDS),
    "attention with tokens": lambda: ContextAttention(C, 4, 8, BACKENDS),
}


class CountCopies(TorchDispatchMode):
    """Counts operations that copy at least a quarter of an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        name = function.overloadpacket.__name__
        if name in COPIES and isinstance(result, Tensor) and result.numel() >= B * C * H * W // 4:
            self.found[name] += 1
        return result


@pytest.mark.parametrize(
    ("name", "forward", "backward"),
    [
        ("residual", {}, {}),
        ("halved", {}, {}),
        # The gradients of q, k and v are put together, once.
        ("attention", {}, {"stack": 1}),
        # Keys and values of tokens and pixels are put together, once, and so is their gradient.
        ("attention with tokens", {"cat": 1}, {"cat": 1, "clone": 1}),
    ],
)
def test_copies_no_activation_without_need(name: str, forward: dict[str, int], backward: dict[str, int]) -> None:
    torch.manual_seed(0)
    layer = LAYERS[name]().eval()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.1)
    x = torch.randn(B, C, H, W).contiguous(memory_format=torch.channels_last).requires_grad_()
    guide = Guide(torch.randn(B, 16), torch.randn(B, 3, 8))
    with CountCopies() as copies:
        y = layer(x, guide)
    assert copies.found == forward
    dy = torch.randn(y.shape).contiguous(memory_format=torch.channels_last)
    with CountCopies() as copies:
        torch.autograd.grad(y, [x, *layer.parameters()], dy)
    assert copies.found == backward


def test_skip_concatenation_is_one_copy_and_stays_channels_last() -> None:
    x, skip = (torch.randn(B, C, H, W).contiguous(memory_format=torch.channels_last) for _ in range(2))
    layer = ResidualBlock(2 * C, C, 16, 0.0, True, BACKENDS).eval()
    with CountCopies() as copies:
        y = layer(torch.cat((x, skip), dim=1), Guide(torch.randn(B, 16), None))
    assert copies.found == {"cat": 1}
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_the_count_can_fail() -> None:
    with CountCopies() as copies:
        torch.randn(B, C, H, W).contiguous(memory_format=torch.channels_last)
    assert copies.found == {"clone": 1}


def test_compiled_dropout_on_a_cpu() -> None:
    """Dynamo alone: the operations that a compiler is given, run by torch."""
    torch._dynamo.reset()
    drop = torch.compile(Dropout(0.1), backend="eager", fullgraph=True, dynamic=False)
    x = torch.ones(4, 32, 16, 16).contiguous(memory_format=torch.channels_last).requires_grad_()
    torch.manual_seed(0)
    draws = [drop(x) for _ in range(20)]
    assert draws[0].unique().tolist() == pytest.approx([0, 1 / 0.9])
    assert draws[0].is_contiguous(memory_format=torch.channels_last)
    (gradient,) = torch.autograd.grad(draws[0].sum(), x)
    assert torch.equal(gradient, draws[0]), "one mask forward and backward"
    torch.manual_seed(0)
    assert torch.equal(drop(x), draws[0]), "a function of torch's seed"

    kept = (torch.stack(draws).detach() > 0).double()
    number = kept.numel()
    assert kept.mean().item() == pytest.approx(0.9, abs=5 * (0.09 / number) ** 0.5)
    # Neighbours in the batch, in channels, rows and columns, and one value in two draws, are as good as independent.
    centred = (kept - 0.9) / 0.3
    for dimension in range(5):
        length = centred.shape[dimension] - 1
        product = centred.narrow(dimension, 0, length) * centred.narrow(dimension, 1, length)
        assert abs(product.mean().item()) < 5 * product.numel() ** -0.5
    assert torch.equal(drop.eval()(x), x) and torch.equal(Dropout(0.0)(x), x)
