"""The sampling case: every peer draws the same images of the same noise, and the amount of work is right."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks import sampling
from benchmarks.cases import CASES
from benchmarks.comparison import Comparison
from benchmarks.run import run
from benchmarks.stock import stock_network
from benchmarks.unet import TINY, trained
from engine.compilation import Compilation
from engine.peak import forward_flops
from sgdm.conditions import Condition
from sgdm.models.unet import UNet

CPU = torch.device("cpu")


class Given:
    def __init__(self, noise: Tensor) -> None:
        self.noise = noise

    def draw(self) -> Tensor:
        return self.noise


def quick() -> Comparison:
    (comparison,) = CASES["sampling"].comparisons(CPU, True)
    return comparison


def test_all_loops_draw_the_same_images() -> None:
    pytest.importorskip("diffusers")
    torch.manual_seed(0)
    network = trained(UNet(TINY)).eval()
    noise, cluster, null = torch.randn(2, 3, 16, 16), torch.tensor([3, 8]), torch.full((2,), 10)
    ours = sampling.engine(network, Compilation("off"))(Condition(cluster), Given(noise), 5)
    naive = sampling.naive(stock_network(network).eval(), noise, cluster, null, 5)
    diffusers = sampling.guided_by_diffusers(network, noise, cluster, null, 5)
    assert ours.std() > 0.1
    torch.testing.assert_close(naive, ours, rtol=0, atol=1e-3)
    torch.testing.assert_close(diffusers, ours, rtol=0, atol=1e-3)


def test_the_work_is_two_passes_an_image_and_step() -> None:
    comparison = quick()
    assert comparison.images == 2 and comparison.flops == 2 * 2 * 2 * forward_flops(TINY)
    assert list(comparison.peers) == [
        sampling.NAIVE,
        sampling.DIFFUSERS,
        sampling.DIFFUSERS_COMPILED,
        sampling.OURS,
    ]


def test_eager_peers_draw_a_batch() -> None:
    pytest.importorskip("diffusers")
    comparison = quick()
    for name in (sampling.NAIVE, sampling.DIFFUSERS):
        images = comparison.peers[name]()()
        assert isinstance(images, Tensor) and images.shape == (2, 3, 16, 16) and images.isfinite().all()


@pytest.mark.slow
def test_no_peer_fails() -> None:
    pytest.importorskip("diffusers")
    report = run([CASES["sampling"]], CPU, quick=True, seconds=0.05, out=None)
    (comparison,) = report["cases"][0]["comparisons"]
    assert not {peer: figures["error"] for peer, figures in comparison["peers"].items() if "error" in figures}
