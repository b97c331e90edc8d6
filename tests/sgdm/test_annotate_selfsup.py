from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sgdm.annotate import selfsup
from sgdm.annotate.agreement import purity as purity_of
from sgdm.annotate.clusters import fit_clusters
from sgdm.annotate.selfsup import (
    OwnEncoder,
    fit_whitened_pixels,
    load_encoder,
    save_encoder,
    train_encoder,
)
from sgdm.annotate.spectral import commute_time_embedding, nearest_neighbours

CPU = torch.device("cpu")
FASHION = Path("/usr/share/datasets/fashion-mnist")


def shapes(count: int, size: int = 32, seed: int = 0) -> tuple[Tensor, np.ndarray]:
    """Bars and rings of any colour, at any place, over noise: colour and place say nothing about the shape."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, count)
    y, x = np.mgrid[:size, :size] / size
    images = np.empty((count, 3, size, size))
    for image, label in zip(images, labels, strict=True):
        centre_x, centre_y = random.uniform(0.35, 0.65, 2)
        radius = np.hypot(x - centre_x, y - centre_y)
        drawn = [np.abs(x - centre_x) < 0.1, np.abs(y - centre_y) < 0.1, np.abs(radius - 0.25) < 0.07][label]
        colour, background = random.uniform(150, 255, 3), random.uniform(0, 80, 3)
        image[:] = np.where(drawn, colour[:, None, None], background[:, None, None])
    return torch.from_numpy(np.clip(images + random.normal(0, 20, images.shape), 0, 255).astype(np.uint8)), labels


def purity(features: np.ndarray, labels: np.ndarray, num_clusters: int, seeds: int = 3) -> float:
    return float(
        np.mean([purity_of(fit_clusters(features, [num_clusters], seed=seed)[0].ids, labels) for seed in range(seeds)])
    )


@pytest.fixture(scope="module")
def trained() -> OwnEncoder:
    return train_encoder(shapes(600)[0], seed=0, images_budget=10_000, device=CPU)


def test_whitening_gives_the_components_one_variance() -> None:
    images = shapes(500)[0]
    encoder = fit_whitened_pixels(images, seed=0, device=CPU, dimension=20, whitening=1.0)
    covariance = np.cov(encoder(images).numpy().T)
    assert covariance == pytest.approx(np.eye(20), abs=1e-3)
    half = np.cov(fit_whitened_pixels(images, seed=0, device=CPU, dimension=20)(images).numpy().T)
    plain = np.cov(fit_whitened_pixels(images, seed=0, device=CPU, dimension=20, whitening=0.0)(images).numpy().T)
    assert np.diag(half) ** 2 == pytest.approx(np.diag(plain), rel=1e-3)


def test_grey_images_keep_only_the_dimensions_they_have() -> None:
    grey = torch.zeros(100, 3, 32, 32, dtype=torch.uint8)
    grey[:, :, :16] = torch.arange(100, dtype=torch.uint8)[:, None, None, None]
    assert fit_whitened_pixels(grey, seed=0, device=CPU).dimension == 1


def test_the_encoder_groups_shapes_that_pixels_do_not(trained: OwnEncoder) -> None:
    images, labels = shapes(600)
    pixels = purity(images.flatten(1).numpy().astype(np.float32), labels, 3)
    assert purity(trained(images).numpy(), labels, 3) > max(0.6, pixels + 0.1)


def test_the_seed_decides_and_time_is_counted_in_images(trained: OwnEncoder) -> None:
    images, _ = shapes(128)
    seen: list[int] = []
    first = train_encoder(images, seed=1, images_budget=512, device=CPU, advance=seen.append)
    again = train_encoder(images, seed=1, images_budget=512, device=CPU)
    other = train_encoder(images, seed=2, images_budget=512, device=CPU)
    assert sum(seen) == 512
    assert first.digest == again.digest
    assert torch.equal(first(images), again(images))
    assert first.digest != other.digest


def test_training_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train_encoder(shapes(64)[0], seed=0, images_budget=128, device=CPU)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("size", [28, 64])
def test_any_image_size_and_any_kind_of_array(size: int) -> None:
    images, _ = shapes(80, size)
    encoder = train_encoder(images.numpy(), seed=0, images_budget=160, device=CPU)
    features = encoder(images)
    assert features.shape == (80, encoder.dimension) and features.dtype == torch.float32


def test_a_feature_does_not_depend_on_the_batch(trained: OwnEncoder) -> None:
    images, _ = shapes(40)
    torch.testing.assert_close(
        torch.cat([trained(images[:7]), trained(images[7:])]), trained(images), atol=1e-5, rtol=1e-4
    )


def test_save_and_load(trained: OwnEncoder, tmp_path: Path) -> None:
    images, _ = shapes(64)
    vit = train_encoder(images, network="vit", seed=0, images_budget=64, device=CPU)
    for encoder in (trained, vit, fit_whitened_pixels(images, seed=0, device=CPU)):
        save_encoder(encoder, tmp_path / "encoder.safetensors")
        loaded = load_encoder(tmp_path / "encoder.safetensors", CPU)
        assert loaded.objective == encoder.objective
        assert (loaded.name, loaded.digest, loaded.dimension) == (encoder.name, encoder.digest, encoder.dimension)
        assert torch.equal(loaded(images), encoder(images))


def test_files_of_something_else_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    with pytest.raises(ValueError, match=r"encoder\.safetensors holds no encoder of ours"):
        load_encoder(path, CPU)
    path.write_bytes(b"noise")
    with pytest.raises(ValueError, match="holds no encoder of ours"):
        load_encoder(path, CPU)
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="holds no encoder of ours"):
        load_encoder(path, CPU)
    for about, reason in (
        ({"network": "pixels", "dimension": "3"}, r"project\.weight"),
        ({"network": "perceptron", "dimension": "3"}, "perceptron"),
        ({"network": "convnet", "dimension": "many"}, "many"),
        ({"network": "vit"}, "dimension"),
    ):
        save_file({"project.bias": torch.zeros(3)}, path, metadata=about)
        with pytest.raises(ValueError, match=rf"encoder\.safetensors holds no encoder of ours.*{reason}"):
            load_encoder(path, CPU)


def test_too_few_images_and_wrong_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"cannot learn from 63 images.*at least 64"):
        train_encoder(shapes(63)[0], seed=0, images_budget=100, device=CPU)
    with pytest.raises(ValueError, match="all images are the same"):
        train_encoder(torch.full((64, 3, 32, 32), 7, dtype=torch.uint8), seed=0, images_budget=100, device=CPU)
    with pytest.raises(ValueError, match=r"uint8 \[B, 3, H, W\]; these are torch\.float32 \[64, 3, 32, 32\]"):
        train_encoder(torch.zeros(64, 3, 32, 32), seed=0, images_budget=100, device=CPU)


def test_nearest_neighbours_by_cosine() -> None:
    points = np.array([[1, 0], [5, 0.1], [0, 1], [0.1, 9]], np.float32)
    assert nearest_neighbours(points, 1).tolist() == [[1], [0], [3], [2]]


def test_distances_are_commute_times() -> None:
    # Commute time between i and j: proportional to (e_i - e_j)^T L^+ (e_i - e_j) with the graph Laplacian L.
    random = np.random.default_rng(0)
    links = nearest_neighbours(random.normal(size=(100, 3)).astype(np.float32), 6)
    graph = np.zeros((100, 100))
    np.add.at(graph, (np.repeat(np.arange(100), 6), links.ravel()), 1)
    graph += graph.T
    inverse = np.linalg.pinv(np.diag(graph.sum(axis=0)) - graph)
    diagonal = np.diag(inverse)
    commute_time = diagonal[:, None] + diagonal[None] - 2 * inverse
    embedding = commute_time_embedding(links, 90, seed=0)
    distance = ((embedding[:, None] - embedding[None]) ** 2).sum(axis=2)
    assert np.corrcoef(distance.ravel(), commute_time.ravel())[0, 1] > 0.99
    assert np.median(distance / np.maximum(commute_time, 1e-9)) == pytest.approx(1, abs=0.1)


def test_identical_images_and_separate_parts_have_finite_coordinates() -> None:
    points = np.repeat(np.eye(4, dtype=np.float32), 30, axis=0)  # four groups of copies, without links between
    embedding = commute_time_embedding(nearest_neighbours(points, 5), 8, seed=0)
    assert np.isfinite(embedding).all()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not FASHION.is_dir(), reason="Debian package dataset-fashion-mnist is not installed")
def test_clusters_of_fashion_mnist_are_purer_than_those_of_pixels() -> None:
    with gzip.open(FASHION / "train-images-idx3-ubyte.gz") as file:
        grey = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)[:20_000]
    with gzip.open(FASHION / "train-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)[:20_000].astype(np.int64)
    images = torch.from_numpy(np.repeat(grey, 3, axis=1))
    encoder = train_encoder(images, seed=0, images_budget=80_000, device=CPU)
    features = torch.cat([encoder(batch) for batch in images.split(1000)]).numpy()
    pixels = selfsup.at_size(images)[:, 0].flatten(1).numpy().astype(np.float32)
    for num_clusters in (10, 100):
        assert purity(features, labels, num_clusters) > purity(pixels, labels, num_clusters) + 0.01
