"""The time embedding and the condition's projection."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from sgdm.conditions import Condition
from sgdm.models.config import UNetConfig
from sgdm.models.embedding import ConditionProjection, Embedded, Embedder, Guide, sinusoidal

SMALL = UNetConfig(image_size=8, channels=8, channel_multipliers=(1, 2), attention_downsamples=(), heads=2)


def with_fields(**changed: object) -> UNetConfig:
    return UNetConfig(**{**vars(SMALL), **changed})


def embed(embedder: Embedder, time: torch.Tensor, condition: Condition | None) -> Guide:
    return embedder(time, embedder.embed(condition))


def test_sinusoidal_is_the_formula_for_whole_and_fractional_times() -> None:
    times = [0.0, 1.0, 499.5, -3.25]
    waves = sinusoidal(torch.tensor(times), 6)
    for row, time in zip(waves.tolist(), times, strict=True):
        angles = [time * 10_000 ** (-index / 3) for index in range(3)]
        expected = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
        torch.testing.assert_close(torch.tensor(row), torch.tensor(expected), rtol=0, atol=1e-4)


def test_projection_is_a_linear_layer_on_one_hot_and_multi_hot() -> None:
    projection = ConditionProjection(with_fields(num_clusters=5, num_attributes=3), width=4)
    cluster, attributes = torch.tensor([0, 4]), torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    weight = torch.cat((projection.cluster.weight[:5].T, projection.attributes.weight), dim=1)
    dense = torch.cat((F.one_hot(cluster, 5).float(), attributes), dim=1)
    expected = F.linear(dense, weight, projection.bias)
    torch.testing.assert_close(projection(Condition(cluster, attributes)), expected)


def test_zero_null_is_zero_and_never_trained() -> None:
    embedder = Embedder(with_fields(num_clusters=5))
    guide = embed(embedder, torch.zeros(2), Condition(torch.tensor([5, 1])))
    guide.vector.sum().backward()
    table = embedder.condition[0].cluster.weight
    assert torch.equal(table[5], torch.zeros_like(table[5]))
    assert torch.equal(table.grad[5], torch.zeros_like(table[5]))
    assert table.grad[1].abs().sum() > 0


def test_learned_null_is_trained() -> None:
    embedder = Embedder(with_fields(num_clusters=5, null_condition="learned"))
    embed(embedder, torch.zeros(1), Condition(torch.tensor([5]))).vector.sum().backward()
    table = embedder.condition[0].cluster.weight
    assert table[5].abs().sum() > 0
    assert table.grad[5].abs().sum() > 0


def test_widths_of_the_two_merges() -> None:
    condition = Condition(torch.tensor([1]))
    for merge, width in (("concatenate", 48), ("add", 32)):
        embedder = Embedder(with_fields(num_clusters=5, condition_merge=merge))
        assert embedder.width == width
        assert embed(embedder, torch.zeros(1), condition).vector.shape == (1, width)


def test_tokens_are_of_time_and_condition() -> None:
    guided = Embedder(with_fields(num_clusters=5, context_tokens=3))
    assert embed(guided, torch.zeros(2), Condition(torch.tensor([1, 2]))).tokens.shape == (2, 6, 32)
    unguided = Embedder(with_fields(context_tokens=3))
    assert embed(unguided, torch.zeros(2), None).tokens.shape == (2, 3, 32)
    assert embed(Embedder(SMALL), torch.zeros(2), None).tokens is None


def test_a_way_between_two_embeddings_begins_and_ends_at_them() -> None:
    one, other = (Embedded(vector=torch.randn(4, 6), mask=torch.rand(4, 1, 2, 2)) for _ in range(2))
    between = one.towards(other, torch.tensor([0.0, 1.0, 0.5, 0.25]))
    assert between.vector is not None and between.tokens is None
    assert torch.equal(between.vector[0], one.vector[0]) and torch.equal(between.vector[1], other.vector[1])
    torch.testing.assert_close(between.vector[2], (one.vector[2] + other.vector[2]) / 2)
    torch.testing.assert_close(between.mask[3], 0.75 * one.mask[3] + 0.25 * other.mask[3])
    rounded = Embedded(vector=one.vector.bfloat16()).towards(Embedded(other.vector.bfloat16()), torch.ones(4))
    assert torch.equal(rounded.vector, other.vector.bfloat16())
