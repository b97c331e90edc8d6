"""Random numbers by a counter: the cipher against its published answers, the numbers against arithmetic in float64.

The Triton kernel runs in Triton's interpreter on CPU tensors, or on a GPU where there is one.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from kernels import noise_triton, reference
from kernels.noise import _noise, noise, refusal

interpreted = pytest.param(
    "cpu", marks=pytest.mark.skipif(not noise_triton.INTERPRETED, reason="on the GPU instead"), id="interpreter"
)
on_each_device = pytest.mark.parametrize("device", [interpreted, pytest.param("cuda", marks=pytest.mark.gpu)])
on_each_backend = pytest.mark.parametrize("backend", ["triton", "plain"])

# Of the authors' library (Random123, kat_vectors): key, counter, words of philox4x32 with 10 rounds, the first word
# of a key the lowest of the seed.
KNOWN_ANSWERS = [
    (0, (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (2**64 - 1, (2**32 - 1,) * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        0x299F31D0A4093822,
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
SEEDS = [0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]
POSITIONS = [0, 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1]
SHAPES = [(3, 8, 8), (3, 5, 7), (1, 1, 1), (3, 32, 16)]  # of whole vectors, of parts of them, and of two programs


def words(seed: int, *counter: int) -> list[int]:
    a, b, c, d = (torch.tensor(word) for word in counter)
    return [int(word) for word in reference.philox(seed, (a, b, c, d))]


def in_double(seed: int, position: int, shape: tuple[int, int, int]) -> tuple[np.ndarray, list[float]]:
    """The numbers of one image by the definition of the operation, one after the other."""
    low, high = position % 2**32, position // 2**32
    quarters: list[list[float]] = [[], [], [], []]
    for block in range(math.ceil(math.prod(shape) / 4)):
        a, b, c, d = words(seed, low, high, block, 0)
        for first, radius, angle in ((0, a, b), (2, c, d)):
            length = math.sqrt(-2 * math.log((radius + 0.5) / 2**32))
            angle_in_radians = math.pi * (angle / 2**31 - 1)
            quarters[first].append(length * math.cos(angle_in_radians))
            quarters[first + 1].append(length * math.sin(angle_in_radians))
    C, H, W = shape
    image = np.concatenate(quarters)[: math.prod(shape)].reshape(H, W, C).transpose(2, 0, 1)
    return image, [(word >> 8) / 2**24 for word in words(seed, low, high, 0, 1)]


@pytest.mark.parametrize(("seed", "counter", "answer"), KNOWN_ANSWERS)
def test_the_cipher_gives_the_known_answers(seed: int, counter: tuple[int, ...], answer: tuple[int, ...]) -> None:
    assert words(seed, *counter) == list(answer)


@on_each_device
@on_each_backend
@pytest.mark.parametrize("shape", [(3, 4, 4), (3, 5, 7)])
@pytest.mark.parametrize("seed", [5, 2**64 - 3])
def test_numbers_are_those_of_the_definition(seed: int, shape: tuple[int, int, int], backend: Any, device: str) -> None:
    positions = [2, 2**40 + 7]
    normal, uniform = noise(seed, torch.tensor(positions, device=device), shape, backend)
    assert normal.shape == (2, *shape) and normal.dtype == uniform.dtype == torch.float32
    assert normal.is_contiguous(memory_format=torch.channels_last) and uniform.is_contiguous()
    for i, position in enumerate(positions):
        expected, fractions = in_double(seed, position, shape)
        assert uniform[:, i].tolist() == fractions
        # Relative to 1, a word keeps 24 bits in float32: of a radius near 0 few are left.
        torch.testing.assert_close(normal[i].double().cpu(), torch.from_numpy(expected), rtol=1e-6, atol=1e-4)


@on_each_device
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", SEEDS)
def test_triton_and_twin_agree(seed: int, shape: tuple[int, int, int], device: str) -> None:
    positions = torch.tensor(POSITIONS)
    expected = noise(seed, positions, shape, "plain")
    normal, uniform = noise(seed, positions.to(device), shape, "triton")
    assert torch.equal(uniform.cpu(), expected[1])
    torch.testing.assert_close(normal.cpu(), expected[0], rtol=1e-6, atol=2e-6)


@on_each_device
@on_each_backend
def test_an_image_has_its_numbers_in_any_company(backend: Any, device: str) -> None:
    positions = torch.tensor([7, 2**33, 8, 9, 7], device=device)
    normal, uniform = noise(3, positions, (3, 6, 6), backend)
    for part in (slice(0, 1), slice(1, 4), slice(0, 5, 2)):
        own_normal, own_uniform = noise(3, positions[part], (3, 6, 6), backend)
        assert torch.equal(own_normal, normal[part])
        assert torch.equal(own_uniform, uniform[:, part])


def large() -> tuple[Tensor, Tensor]:
    return noise(11, torch.arange(4096), (3, 16, 16))


def test_moments_are_those_of_a_normal_and_of_a_uniform() -> None:
    """Within five standard deviations of an estimate: E[x^k] = 0, 1, 0, 3, whose variances are 1, 2, 15, 96."""
    normal, uniform = large()
    values = normal.double()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert values.pow(power).mean().item() == pytest.approx(moment, abs=5 * (variance / values.numel()) ** 0.5)
    for threshold in (-4.0, -3.0, -1.0, 0.5, 2.0, 4.0):
        share = math.erfc(-threshold / 2**0.5) / 2
        deviation = (share * (1 - share) / values.numel()) ** 0.5
        assert (values < threshold).double().mean().item() == pytest.approx(share, abs=5 * deviation)
    assert uniform.min() >= 0 and uniform.max() < 1
    for row in uniform.double():
        assert row.mean().item() == pytest.approx(0.5, abs=5 * (1 / 12 / 4096) ** 0.5)
        counts = torch.histc(row, 16, 0, 1)
        assert (counts - 256).square().sum() / 256 < 45  # chi^2 of 15 degrees of freedom: once in 10,000


def test_numbers_are_unrelated() -> None:
    """Places in an image, images, seeds and the two streams."""
    normal, uniform = large()
    places = normal.permute(0, 2, 3, 1).reshape(4096, -1)[:, ::8].T  # some of each of the four normals of a counter
    squares = places.square()  # two normals of a counter share their radius
    for variables in (torch.cat((places, uniform)), squares, normal[:64].flatten(1)):
        correlation = torch.corrcoef(variables) - torch.eye(len(variables))
        assert correlation.abs().max() < 5.5 / variables.shape[1] ** 0.5

    draws = []
    for seed, position in itertools.product(SEEDS, POSITIONS):
        draws.append(noise(seed, torch.tensor([position]), (3, 8, 8))[0].flatten())
    correlation = torch.corrcoef(torch.stack(draws)) - torch.eye(len(draws))
    assert correlation.abs().max() < 5.5 / 192**0.5
    assert len(torch.stack(draws).unique()) > 0.99 * 192 * len(draws)


def test_no_word_is_lost_or_infinite() -> None:
    ends = torch.tensor([0, 1, 2**31 - 1, 2**31, 2**32 - 1])
    for normal in reference._normals(ends[:, None], ends[None, :]):
        assert normal.isfinite().all()
        assert normal.abs().max() < 6.8
    first, second = reference._normals(ends[0], ends)
    assert first.abs().max() == pytest.approx((2 * math.log(2**33)) ** 0.5)
    assert second.abs().min() < 1e-5


@on_each_device
def test_operator_is_registered_whole(device: str) -> None:
    torch.library.opcheck(_noise, (-7, torch.tensor([1, 2**40], device=device), [3, 4, 6]))


@on_each_device
@on_each_backend
def test_step_after_step_compiles_nothing_anew(backend: Any, device: str) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    traced = torch.compile(noise, backend=counter, fullgraph=True, dynamic=False)
    for first in (0, 1, 16, 2**31, 2**40):
        positions = torch.arange(first, first + 4, device=device)
        for actual, expected in zip(
            traced(2**63 + 5, positions, (3, 4, 4), backend),
            noise(2**63 + 5, positions, (3, 4, 4), backend),
            strict=True,
        ):
            torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
            assert actual.stride() == expected.stride()
    assert counter.frame_count == 1


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_inductor_makes_the_numbers_of_the_twin(device: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(noise, fullgraph=True, dynamic=False)
    positions = torch.tensor(POSITIONS, device=device)
    normal, uniform = compiled(2**64 - 1, positions, (3, 8, 8), "plain")
    expected = noise(2**64 - 1, positions, (3, 8, 8), "plain")
    assert torch.equal(uniform, expected[1])
    torch.testing.assert_close(normal, expected[0], rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": -1}, r"a seed in 0 \.\. 2\^64-1, got -1"),
        ({"seed": 2**64}, r"a seed in 0 \.\. 2\^64-1, got 18446744073709551616"),
        ({"positions": torch.zeros(2)}, r"positions int64 \[B\], got torch\.float32 \[2\]"),
        ({"positions": torch.zeros(2, 1, dtype=torch.int64)}, r"int64 \[B\], got torch\.int64 \[2, 1\]"),
        ({"backend": "fast"}, "'fast' is unknown; choose auto or one of triton, plain"),
    ],
)
def test_what_does_not_fit_is_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        noise(**{"seed": 0, "positions": torch.arange(2), "shape": (3, 4, 4), **changed})


def test_triton_refuses_a_device_it_does_not_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise_triton, "INTERPRETED", False)
    with pytest.raises(ValueError, match="runs on a CUDA device, not on cpu; choose auto or plain"):
        noise(0, torch.arange(2), (3, 4, 4), "triton")
    assert refusal("plain", torch.device("cpu")) is None
