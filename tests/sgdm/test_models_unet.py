"""The UNet: sizes of the paper, start at zero, layout, gradients, dtypes, one graph, refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from kernels import group_norm_triton
from sgdm.conditions import Condition
from sgdm.models.config import UNetConfig
from sgdm.models.layers import Backends, Dropout, GroupNorm
from sgdm.models.unet import UNet

TINY = UNetConfig(
    image_size=8,
    channels=8,
    channel_multipliers=(1, 2),
    residual_blocks=1,
    attention_downsamples=(2,),
    heads=2,
    num_clusters=5,
)
# The paper's networks for boxes and segments (Pascal VOC, COCO).
SPATIAL = UNetConfig(dropout=0.0, resample_in_block=False, condition_merge="add", context_tokens=8)
VARIANTS = {
    "clusters": TINY,
    "unconditional": replace(TINY, num_clusters=None),
    "boxed": replace(TINY, mask_channels=1, resample_in_block=False, condition_merge="add", context_tokens=2),
    "segmented": replace(TINY, num_clusters=None, num_attributes=3, mask_channels=3, condition_merge="add"),
    "deeper": replace(TINY, channel_multipliers=(1, 2, 3), residual_blocks=2, attention_downsamples=(2, 4)),
    "patches": replace(TINY, patch_size=2, mask_channels=2),
    "unscaled": replace(TINY, scale_shift=False, head_channels=4),
}


def inputs(
    config: UNetConfig, B: int = 2, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Condition | None]:
    size = config.image_size
    condition = Condition(
        cluster=torch.arange(B) if config.num_clusters else None,
        attributes=torch.ones(B, config.num_attributes) if config.num_attributes else None,
        mask=torch.ones(B, config.mask_channels, size, size) if config.mask_channels else None,
    )
    x = torch.randn(B, config.in_channels, size, size, generator=generator)
    return x, torch.linspace(0, 999, B), condition if config.has_condition else None


def trained(config: UNetConfig, backends: Backends = Backends()) -> UNet:
    """A network whose weights are all random, so that nothing is zero by construction."""
    torch.manual_seed(0)
    network = UNet(config, backends)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network.eval()


def parameters_in_millions(config: UNetConfig) -> float:
    with torch.device("meta"):
        network = UNet(config)
    return sum(parameter.numel() for parameter in network.parameters()) / 1e6


def test_patches_are_the_network_of_their_pixels_as_channels() -> None:
    config = replace(TINY, image_size=16, patch_size=2)
    network = trained(config)
    unfolded = UNet(replace(config, image_size=8, patch_size=1, in_channels=12, out_channels=12)).eval()
    unfolded.load_state_dict(network.state_dict())
    x, time, condition = inputs(config)
    expected = unfolded(nn.functional.pixel_unshuffle(x, 2), time, condition)
    torch.testing.assert_close(network(x, time, condition), nn.functional.pixel_shuffle(expected, 2))


@pytest.mark.parametrize(
    ("num_clusters", "millions"), [(None, 70.5), (1_000, 74.3), (5_000, 75.3), (10_000, 76.6), (50_000, 86.8)]
)
def test_parameters_of_the_labelled_networks(num_clusters: int | None, millions: float) -> None:
    assert round(parameters_in_millions(UNetConfig(num_clusters=num_clusters)), 1) == millions


@pytest.mark.parametrize(
    "condition",
    [{"num_clusters": 100, "mask_channels": 1}, {"num_attributes": 21, "mask_channels": 21}, {"num_attributes": 27}],
)
def test_parameters_of_the_boxed_and_segmented_networks(condition: dict) -> None:
    assert parameters_in_millions(replace(SPATIAL, **condition)) == pytest.approx(63.3, abs=0.06)


def test_parameters_of_adm_at_64() -> None:
    """Dhariwal and Nichol's class-conditional ImageNet 64x64 network has 296 M parameters."""
    config = UNetConfig(
        channels=192,
        channel_multipliers=(1, 2, 3, 4),
        residual_blocks=3,
        attention_downsamples=(2, 4, 8),
        head_channels=64,
        num_clusters=1_000,
        condition_merge="add",
    )
    assert round(parameters_in_millions(config)) == 296


def test_operations_of_a_forward_pass() -> None:
    config = UNetConfig(num_clusters=5_000)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        UNet(config)(torch.zeros(1, 3, 64, 64), torch.zeros(1), Condition(torch.zeros(1, dtype=torch.long)))
    assert round(counter.get_total_flops() / 1e9, 1) == 79.3


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_starts_at_exactly_zero_and_learns_from_there(config: UNetConfig) -> None:
    network = UNet(config)
    x, time, condition = inputs(config)
    y = network(x, time, condition)
    assert torch.equal(y, torch.zeros(2, 3, 8, 8))
    (y - 1).square().mean().backward()
    assert network.output.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_parameter_has_a_gradient(config: UNetConfig) -> None:
    network = trained(config)
    network(*inputs(config)).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_activations_are_channels_last_and_weights_contiguous(config: UNetConfig) -> None:
    network = trained(config)
    assert all(parameter.is_contiguous() for parameter in network.parameters())
    seen = []

    def check(module: nn.Module, arguments: object, output: object) -> None:
        if isinstance(output, Tensor) and output.dim() == 4:
            seen.append(module)
            assert output.is_contiguous(memory_format=torch.channels_last), module

    for module in network.modules():
        module.register_forward_hook(check)
    network(*inputs(config))  # images come in plain NCHW
    assert len(seen) > 20


def test_time_cluster_attributes_and_mask_all_matter_and_samples_are_independent() -> None:
    config = replace(TINY, num_attributes=3, mask_channels=1)
    network = trained(config)
    x, time, condition = inputs(config)
    y = network(x, time, condition)
    changes = (
        (x, time + 0.5, condition),
        (x, time, condition._replace(cluster=condition.cluster + 1)),
        (x, time, condition._replace(attributes=condition.attributes * 0)),
        (x, time, condition._replace(mask=condition.mask * 0)),
    )
    for changed in changes:
        assert not torch.allclose(network(*changed), y)
    alone = network(x[1:], time[1:], Condition(*(part[1:] for part in condition)))
    torch.testing.assert_close(alone, y[1:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name, config in VARIANTS.items() if config.has_condition])
def test_an_embedded_condition_stands_for_the_condition(name: str) -> None:
    network = trained(VARIANTS[name])
    x, time, condition = inputs(VARIANTS[name])
    assert torch.equal(network(x, time, network.embed(condition)), network(x, time, condition))
    with pytest.raises(ValueError, match="this network is guided by"):
        network.embed(Condition())


def test_dropout_only_while_training() -> None:
    network = trained(TINY)
    x, time, condition = inputs(TINY)
    assert torch.equal(network(x, time, condition), network(x, time, condition))
    network.train()
    assert not torch.equal(network(x, time, condition), network(x, time, condition))


def test_bfloat16_weights_and_autocast_return_the_dtype_of_the_image() -> None:
    network = trained(TINY)
    x, time, condition = inputs(TINY)
    exact = network(x, time, condition)
    with torch.autocast("cpu", torch.bfloat16):
        autocast = network(x, time, condition)
    rounded = network.bfloat16()(x, time, condition)
    for y in (autocast, rounded):
        assert y.dtype == torch.float32
        assert (y - exact).norm() / exact.norm() < 0.05


@pytest.mark.parametrize("name", ["clusters", "boxed", "segmented"])
def test_traces_as_one_graph_while_training(name: str) -> None:
    """Dynamo alone, without a compiler behind it: what breaks a graph breaks it here."""
    torch._dynamo.reset()
    network = trained(replace(VARIANTS[name], dropout=0.1)).train()
    arguments = inputs(VARIANTS[name])
    traced = torch.compile(network, backend="eager", fullgraph=True, dynamic=False)
    assert not torch.equal(traced(*arguments), traced(*arguments)), "dropout"
    for module in network.modules():
        if isinstance(module, Dropout):
            module.p = 0.0
    torch.testing.assert_close(traced(*arguments), network(*arguments), rtol=1e-4, atol=1e-4)


def test_one_graph_on_a_gpu_with_every_norm_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU that is not there: shapes, strides and operators are traced, and nothing is computed."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    torch._dynamo.reset()
    graphs = []

    def keep(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    with FakeTensorMode(), torch.device("cuda"), torch.no_grad():
        network = UNet(TINY, Backends(attention="math")).eval()  # to choose another, torch asks the GPU
        x, time, condition = inputs(TINY)
        y = torch.compile(network, backend=keep, fullgraph=True, dynamic=False)(x, time, condition)
    norms = sum(isinstance(module, GroupNorm) for module in network.modules())
    targets = [str(node.target) for graph in graphs for node in graph.graph.nodes]
    assert len(graphs) == 1 and norms > 10
    assert targets.count("sgdm.group_norm.default") == norms
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.skipif(not group_norm_triton.INTERPRETED, reason="Triton's interpreter is off, for there is a GPU")
@pytest.mark.parametrize("name", ["clusters", "boxed"])
def test_triton_and_plain_norms_make_one_network(name: str) -> None:
    config = replace(VARIANTS[name], dropout=0.0)
    plain, fused = trained(config), trained(config, Backends(group_norm="triton"))
    assert plain.state_dict().keys() == fused.state_dict().keys()
    torch._dynamo.reset()
    compiled = torch.compile(fused, backend="aot_eager", fullgraph=True, dynamic=False)
    assert compiled.state_dict().keys() == {f"_orig_mod.{key}" for key in plain.state_dict()}
    results = []
    for network, call in ((plain, plain), (fused, fused), (fused, compiled)):
        network.zero_grad()
        y = call(*inputs(config, generator=torch.Generator().manual_seed(0)))
        y.square().mean().backward()
        results.append([y, *(parameter.grad.clone() for parameter in network.parameters())])
    for result in results[1:]:
        for actual, expected in zip(result, results[0], strict=True):
            assert (actual - expected).norm() <= 1e-4 * expected.norm() + 1e-6


@pytest.mark.slow
@pytest.mark.timeout(900)  # compiling dozens of C++ kernels
def test_compiles_as_one_graph_and_stays_channels_last() -> None:
    torch._dynamo.reset()
    network = trained(replace(TINY, residual_blocks=1, dropout=0.0))
    arguments = inputs(TINY)
    expected = network(*arguments)
    expected.square().sum().backward()
    gradients = [parameter.grad.clone() for parameter in network.parameters()]
    network.zero_grad()

    compiled = torch.compile(network, fullgraph=True, dynamic=False)
    actual = compiled(*arguments)
    actual.square().sum().backward()
    assert actual.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": torch.zeros(2, 3, 9, 9)}, r"x has shape \[2, 3, 9, 9\]; this network takes \[2, 3, 8, 8\]"),
        ({"x": torch.zeros(2, 1, 8, 8)}, r"x has shape \[2, 1, 8, 8\]"),
        ({"time": torch.zeros(3)}, r"time has shape \[3\]; this network takes \[2\]"),
        ({"condition": None}, "guided by cluster; give it a Condition with cluster"),
        ({"condition": Condition(torch.zeros(3, dtype=torch.long))}, r"condition.cluster has shape \[3\]"),
        (
            {"condition": Condition(torch.zeros(2, dtype=torch.long), mask=torch.zeros(2, 1, 8, 8))},
            "not guided by mask; give it a Condition without mask",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_named(changed: dict, message: str) -> None:
    x, time, condition = inputs(TINY)
    arguments = {"x": x, "time": time, "condition": condition, **changed}
    with pytest.raises(ValueError, match=message):
        UNet(TINY)(**arguments)


def test_unconditional_network_refuses_clusters() -> None:
    network = UNet(VARIANTS["unconditional"])
    with pytest.raises(ValueError, match="not guided by cluster"):
        network(torch.zeros(1, 3, 8, 8), torch.zeros(1), Condition(torch.zeros(1, dtype=torch.long)))
