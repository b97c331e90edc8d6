"""The sampler engine: one function for everything, which passes it makes, embeddings, precision."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from sgdm.conditions import Condition
from sgdm.diffusion.guidance import UNGUIDED, Guidance
from sgdm.diffusion.noise import NoiseSource
from sgdm.diffusion.objective import make_objective
from sgdm.diffusion.samplers import SAMPLERS
from sgdm.diffusion.sampling import Sampling, Step, evaluations
from sgdm.models.config import UNetConfig
from sgdm.models.embedding import Embedded
from sgdm.models.unet import UNet

NUM_CLUSTERS = 7
EPS = make_objective("eps")
CONDITION = Condition(cluster=torch.tensor([2, 0, 5]))
OTHER = Condition(cluster=torch.tensor([1, 6, 3]))


def source(images: int = 3) -> NoiseSource:
    return NoiseSource(0, range(images), (3, 8, 8), "cpu")


@dataclass
class Network:
    """Predicts an eps that depends on everything it is given; remembers the clusters of each call."""

    strength: float = 1.0
    calls: list[list[int] | None] = field(default_factory=list)

    def __call__(self, x: Tensor, time: Tensor, condition: Condition | None) -> Tensor:
        if condition is None:
            self.calls.append(None)
            return torch.sin(self.strength * x)
        assert condition.cluster is not None
        self.calls.append(condition.cluster.tolist())
        return torch.sin(self.strength * x + (condition.cluster + time / 1000).view(-1, 1, 1, 1))


@pytest.mark.parametrize(
    ("scale", "clusters"),
    [(0.0, [7, 7, 7]), (1.0, [2, 0, 5]), (2.0, [7, 7, 7, 2, 0, 5])],
)
def test_passes_of_guidance(scale: float, clusters: list[int]) -> None:
    network = Network()
    sample = Sampling(network, EPS, num_clusters=NUM_CLUSTERS)
    sample(CONDITION, source(), sampler="ddim", steps=2, guidance=Guidance(scale))
    assert network.calls == [clusters] * 2


def test_outside_its_interval_guidance_takes_one_pass_of_the_condition() -> None:
    network = Network()
    guidance = Guidance(2.0, interval=(0.5, 3.0))
    Sampling(network, EPS, num_clusters=NUM_CLUSTERS)(CONDITION, source(), sampler="ddim", steps=10, guidance=guidance)
    sigmas = EPS.sigma_grid(10)[:-1]
    own, both = [2, 0, 5], [7, 7, 7, 2, 0, 5]
    assert network.calls == [both if 0.5 < sigma <= 3.0 else own for sigma in sigmas]
    assert 0 < network.calls.count(both) < 10
    assert evaluations(EPS, sampler="ddim", steps=10, guidance=guidance) == 10 + network.calls.count(both)


@pytest.mark.parametrize(
    ("sampler", "guidance", "passes"),
    [
        ("ddim", UNGUIDED, 10),
        ("ddim", Guidance(0.0), 10),
        ("ddim", Guidance(3.0), 20),
        ("dpmpp", Guidance(3.0, (1e5, 1e6)), 10),
        ("heun", UNGUIDED, 19),
        ("heun", Guidance(3.0), 38),
    ],
)
def test_evaluations(sampler: str, guidance: Guidance, passes: int) -> None:
    assert evaluations(EPS, sampler=sampler, steps=10, guidance=guidance) == passes


def test_clipping_comes_after_guidance() -> None:
    """3 without and 1.5 with the condition: w = 4 gives 3 - 4 * 1.5 = -3, clipped -1. Clipped first, all were 1."""

    def network(x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        assert condition.cluster is not None
        return torch.where(condition.cluster == NUM_CLUSTERS, 3.0, 1.5).view(-1, 1, 1, 1).expand(x.shape)

    for clip, expected in ((True, -1), (False, -3)):
        sample = Sampling(network, make_objective("x0"), num_clusters=NUM_CLUSTERS, clip=clip)
        images = sample(CONDITION, source(), sampler="ddim", steps=1, guidance=Guidance(4.0))
        assert images.unique().tolist() == [expected]


def test_all_parts_of_a_condition_are_doubled_and_dropped() -> None:
    seen: list[Condition] = []

    def network(x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        seen.append(condition)
        return x

    condition = Condition(torch.tensor([1, 2]), torch.ones(2, 4), torch.ones(2, 1, 8, 8))
    sample = Sampling(network, EPS, num_clusters=NUM_CLUSTERS)
    sample(condition, source(2), sampler="ddim", steps=1, guidance=Guidance(3.0))
    cluster, attributes, mask = seen[0]
    assert cluster is not None
    assert attributes is not None
    assert mask is not None
    assert cluster.tolist() == [7, 7, 1, 2]
    assert attributes.mean(dim=1).tolist() == [0, 0, 1, 1]
    assert mask.mean(dim=(1, 2, 3)).tolist() == [0, 0, 1, 1]


def test_without_a_condition_there_is_no_classifier_free_guidance() -> None:
    network = Network()
    sample = Sampling(network, EPS)
    sample(None, source(), sampler="ddim", steps=2)
    assert network.calls == [None, None]
    with pytest.raises(ValueError, match=r"guidance_scale=2\.0 needs a condition"):
        sample(None, source(), sampler="ddim", steps=2, guidance=Guidance(2.0))


@pytest.mark.parametrize("condition", [None, CONDITION])
def test_autoguidance(condition: Condition | None) -> None:
    """One step returns the estimate: that of the network, of the weak one, or what lies beyond them."""
    network, weak = Network(), Network(strength=0.7)

    def images(sample: Sampling, scale: float) -> Tensor:
        return sample(condition, source(), sampler="ddim", steps=1, guidance=Guidance(scale))

    strong, faint = (images(Sampling(made, EPS, clip=False), 1.0) for made in (network, weak))
    network.calls.clear(), weak.calls.clear()
    sample = Sampling(network, EPS, weak=weak, clip=False)
    clusters = None if condition is None else [2, 0, 5]
    assert torch.equal(images(sample, 1.0), strong)
    assert (network.calls, weak.calls) == ([clusters], [])
    assert torch.equal(images(sample, 0.0), faint)
    assert (network.calls, weak.calls) == ([clusters], [clusters])
    torch.testing.assert_close(images(sample, 2.5), faint + 2.5 * (strong - faint))
    assert (network.calls, weak.calls) == ([clusters] * 2, [clusters] * 2)
    sample(condition, source(), sampler="ddim", steps=10, guidance=Guidance(2.5, (0.5, 3.0)))
    assert (len(network.calls), len(weak.calls)) == (
        12,
        2 + sum(0.5 < sigma <= 3.0 for sigma in EPS.sigma_grid(10)),
    )


def test_one_compiled_function_serves_all_samplers_steps_and_scales() -> None:
    torch._dynamo.reset()
    counter = CompileCounter()

    def network(x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        assert condition.cluster is not None
        return torch.sin(x + (condition.cluster + time / 1000).view(-1, 1, 1, 1))

    plain = Sampling(network, EPS, num_clusters=NUM_CLUSTERS)
    compiled = Sampling(
        network,
        EPS,
        num_clusters=NUM_CLUSTERS,
        compile=lambda step: torch.compile(step, backend=counter, fullgraph=True, dynamic=False),
    )
    for sampler in SAMPLERS:
        for steps in (2, 5):
            for guidance in (UNGUIDED, Guidance(0.0), Guidance(3.0), Guidance(2.0, (0.5, 3.0))):
                images, expected = (
                    sample(CONDITION, source(), sampler=sampler, steps=steps, guidance=guidance)
                    for sample in (compiled, plain)
                )
                torch.testing.assert_close(images, expected)
    assert counter.frame_count == 2, "that of one pass and that of guidance"


def unet(seed: int = 0, **changed: object) -> UNet:
    torch.manual_seed(seed)
    config = {
        "image_size": 8,
        "channels": 8,
        "channel_multipliers": (1, 2),
        "residual_blocks": 1,
        "attention_downsamples": (2,),
        "heads": 2,
        "num_clusters": NUM_CLUSTERS,
    }
    network = UNet(UNetConfig(**{**config, **changed}))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network.eval()


def test_another_network_of_the_same_shape_is_not_compiled_anew() -> None:
    """A sweep over averages of the weights compiles once."""
    torch._dynamo.reset()
    counter = CompileCounter()
    arguments = {"sampler": "ddim", "steps": 2, "guidance": Guidance(2.0)}
    for seed in range(3):
        network = unet(seed)
        compiled, plain = (
            Sampling(network, EPS, embed=network.embed, num_clusters=NUM_CLUSTERS, compile=compile)
            for compile in (lambda step: torch.compile(step, backend=counter, fullgraph=True, dynamic=False), as_it_is)
        )
        torch.testing.assert_close(compiled(CONDITION, source(), **arguments), plain(CONDITION, source(), **arguments))
    assert counter.frame_count == 1


def as_it_is(step: Step) -> Step:
    return step


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_a_condition_is_embedded_once_a_batch(scale: float) -> None:
    network = unet(context_tokens=2)
    arguments = {"sampler": "ddim", "steps": 4, "guidance": Guidance(scale)}
    expected = Sampling(network, EPS, num_clusters=NUM_CLUSTERS)(CONDITION, source(), **arguments)
    calls: list[int] = []
    network.embedder.condition.register_forward_hook(lambda *_: calls.append(1))

    sample = Sampling(network, EPS, embed=network.embed, num_clusters=NUM_CLUSTERS)
    torch.testing.assert_close(sample(CONDITION, source(), **arguments), expected, rtol=0, atol=1e-5)
    assert len(calls) == 1


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_way_between_two_clusters_begins_and_ends_at_them(scale: float) -> None:
    network = unet()
    sample = Sampling(network, EPS, embed=network.embed, num_clusters=NUM_CLUSTERS)
    arguments = {"sampler": "ddim", "steps": 3, "guidance": Guidance(scale)}

    def at(share: float) -> Tensor:
        return sample(CONDITION, source(), towards=(OTHER, torch.full((3,), share)), **arguments)

    start, end = (sample(condition, source(), **arguments) for condition in (CONDITION, OTHER))
    assert torch.equal(at(0.0), start) and torch.equal(at(1.0), end)
    middle = at(0.5)
    assert not torch.allclose(middle, start, atol=1e-3) and not torch.allclose(middle, end, atol=1e-3)


def test_a_way_between_clusters_needs_their_embedding() -> None:
    network = unet()
    embedding = Sampling(network, EPS, embed=network.embed)
    without = Sampling(network, EPS)
    half = Sampling(network, EPS, embed=network.embed, weak=network)
    for sample, condition in ((without, CONDITION), (half, CONDITION), (embedding, None)):
        with pytest.raises(ValueError, match="towards leads from one embedding to another: give a condition"):
            sample(condition, source(), sampler="ddim", steps=3, towards=(OTHER, torch.zeros(3)))


def test_autoguidance_by_a_smaller_network_with_an_embedding_of_its_own() -> None:
    network, weak = unet(), unet(channels=4, condition_merge="add")
    plain = Sampling(network, EPS, weak=weak)
    sample = Sampling(network, EPS, embed=network.embed, weak=weak, weak_embed=weak.embed)
    seen: list[type] = []
    weak.register_forward_pre_hook(lambda _, inputs: seen.append(type(inputs[2])))
    arguments = {"sampler": "dpmpp", "steps": 3, "guidance": Guidance(1.5)}
    torch.testing.assert_close(
        sample(CONDITION, source(), **arguments), plain(CONDITION, source(), **arguments), rtol=0, atol=1e-5
    )
    assert seen == [Embedded] * 3 + [Condition] * 3


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_a_network_in_bfloat16_leaves_the_state_in_float32(sampler: str) -> None:
    network = unet()
    arguments = {"sampler": sampler, "steps": 10, "guidance": Guidance(2.0)}
    make = {"objective": make_objective("v"), "embed": network.embed, "num_clusters": NUM_CLUSTERS}
    exact = Sampling(network, **make)(CONDITION, source(), **arguments)
    network.to(torch.bfloat16)
    images = Sampling(network, **make)(CONDITION, source(), **arguments)
    assert images.dtype == torch.float32
    assert not torch.equal(images, images.bfloat16().float())
    assert (images - exact).norm() / exact.norm() < 0.03


@pytest.mark.parametrize("schedule", ["sqrt_linear", "cosine"])
@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_float32_is_enough_from_the_most_noise_on(sampler: str, schedule: str) -> None:
    """The cosine schedule begins at a sigma of 2e4."""
    objective = make_objective("v", schedule)

    def network(x: Tensor, time: Tensor, condition: Condition | None) -> Tensor:
        return torch.tanh(x + time.view(-1, 1, 1, 1).to(x.dtype) / 1000)

    class Doubled(NoiseSource):
        def draw(self) -> Tensor:
            return super().draw().double()

    sample = Sampling(network, objective)
    images = sample(None, source(), sampler=sampler, steps=20)
    exact = sample(None, Doubled(0, range(3), (3, 8, 8), "cpu"), sampler=sampler, steps=20)
    assert exact.dtype == torch.float64
    assert (images - exact).abs().max() < 1e-3
