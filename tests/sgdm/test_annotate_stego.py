from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from sgdm.annotate import stego
from sgdm.annotate.fit import fit
from sgdm.annotate.segments import segment_agreement
from sgdm.annotate.stego import Stego, load_stego, save_stego, train_stego
from sgdm.annotate.stego_loss import OfPairs

CPU = torch.device("cpu")
BATCH = 32
BUDGET = BATCH * 120


class KillError(Exception):
    pass


class Colours:
    """Patches of 4x4 pixels; the feature is their mean colour, and some noise of the patch's own."""

    name, grid = "colours", (8, 8)

    def __init__(self, digest: str = "first") -> None:
        self.digest = digest

    def __call__(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(images.float() / 64 - 2, 4)


@cache
def scenes(count: int = 96) -> tuple[Tensor, np.ndarray]:
    """Squares of one of two colours on one of two others, noise on all; uint8 [N, 3, 32, 32], labels [N, 32, 32]."""
    random = np.random.default_rng(0)
    colours = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200], [200, 200, 60]])
    labels = np.empty((count, 32, 32), np.int64)
    for image in labels:
        image[:] = random.integers(2)
        y, x = 4 * random.integers(0, 5, 2)
        image[y : y + 16, x : x + 16] = 2 + random.integers(2)
    images = np.clip(colours[labels] + random.normal(0, 30, (count, 32, 32, 3)), 0, 255)
    return torch.from_numpy(images.astype(np.uint8)).permute(0, 3, 1, 2).contiguous(), labels


def train(**options: Any) -> Stego:
    defaults = {"num_segments": 4, "seed": 0, "images_budget": BUDGET, "shares": OfPairs(0.6, 0.6, 0.3)}
    return train_stego(options.pop("encoder", Colours()), scenes()[0], **{**defaults, **options})


@pytest.fixture(scope="module", autouse=True)
def small_steps() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stego, "POINTS", 25)
        patch.setattr(stego, "BATCH", BATCH)
        yield


@pytest.fixture(scope="module")
def trained(small_steps: None) -> Stego:
    return train()


def weights(found: Stego) -> dict[str, Tensor]:
    return found.network.state_dict()


def test_codes_are_alike_where_they_show_the_same_and_elsewhere_not(trained: Stego) -> None:
    images, labels = scenes()
    with torch.inference_mode():
        codes = F.normalize(trained.network.head(Colours()(images)), dim=1).permute(0, 2, 3, 1)
    shown = torch.from_numpy(labels[:, ::4, ::4])
    means = torch.stack([codes[shown == thing].mean(dim=0) for thing in range(4)])
    alike = means @ means.T
    assert alike.diagonal().min() > 0.9
    assert (alike - alike.diagonal().diag()).max() < 0.7


def test_things_become_segments(trained: Stego) -> None:
    images, labels = scenes()
    found = trained.scores(images, (32, 32)).argmax(dim=1)
    assert found.dtype == torch.int64
    confusion = np.bincount((found.numpy() * 4 + labels).ravel(), minlength=16).reshape(4, 4)
    _, accuracy = segment_agreement(confusion)
    assert accuracy > 0.8  # three of the four, at least: a centroid that is no code's nearest never learns


def test_scores_are_logarithms_of_probabilities_at_any_size(trained: Stego) -> None:
    images = scenes()[0][:3]
    scores = trained.scores(images, (20, 30))
    assert scores.shape == (3, 4, 20, 30) and scores.dtype == torch.float32
    torch.testing.assert_close(scores.exp().sum(dim=1), torch.ones(3, 20, 30))


def test_a_mirrored_image_has_mirrored_segments(trained: Stego) -> None:
    images = scenes()[0][:5]
    scores, mirrored = trained.scores(images, (32, 32)), trained.scores(images.flip(3), (32, 32))
    torch.testing.assert_close(mirrored.flip(3), scores, atol=1e-5, rtol=1e-5)


def test_the_probe_learns_from_the_head_but_the_head_not_from_the_probe(trained: Stego) -> None:
    other = weights(train(num_segments=7))
    for name, tensor in weights(trained).items():
        assert name.startswith("probe") or torch.equal(other[name], tensor)


def test_a_killed_training_goes_on_to_the_same_weights(
    trained: Stego, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stego, "fit", partial(fit, steps_a_checkpoint=40))
    checkpoint, seen = tmp_path / "stego.pt", 0

    def kill(images: int) -> None:
        nonlocal seen
        seen += images
        if seen > BUDGET // 2:
            raise KillError

    with pytest.raises(KillError):
        train(checkpoint=checkpoint, advance=kill)
    assert checkpoint.is_file()
    torch.manual_seed(1234)  # the global generator has no say
    images: list[int] = []
    again = train(checkpoint=checkpoint, advance=images.append)
    assert images[0] == 40 * BATCH and sum(images) == BUDGET
    assert again.digest == trained.digest
    assert all(torch.equal(tensor, weights(trained)[name]) for name, tensor in weights(again).items())


def test_it_is_kept_and_found_again(trained: Stego, tmp_path: Path) -> None:
    path, images = tmp_path / "stego.safetensors", scenes()[0][:4]
    save_stego(trained, path)
    found = load_stego(path, Colours(), CPU)
    assert found.digest == trained.digest and found.num_segments == 4
    assert torch.equal(found.scores(images, (32, 32)), trained.scores(images, (32, 32)))


def test_what_is_damaged_or_of_another_encoder_is_refused_by_name(trained: Stego, tmp_path: Path) -> None:
    path = tmp_path / "stego.safetensors"
    with pytest.raises(ValueError, match=r"stego\.safetensors holds no STEGO of ours"):
        load_stego(path, Colours(), CPU)
    save_stego(trained, path)
    with pytest.raises(ValueError, match=r"over colours \(first\), not over colours \(second\)"):
        load_stego(path, Colours("second"), CPU)
    tensors = load_file(path)
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"stego\.safetensors holds no STEGO of ours"):
        load_stego(path, Colours(), CPU)
    save_stego(trained, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"stego\.safetensors holds no STEGO of ours"):
        load_stego(path, Colours(), CPU)


def test_digests_tell_encoders_and_weights_apart(trained: Stego) -> None:
    assert Stego(Colours("second"), trained.network).digest != trained.digest
    assert train(images_budget=BATCH).digest != trained.digest


def test_all_in_one_segment_is_an_error_with_a_way_out() -> None:
    grey = torch.full((20, 3, 32, 32), 128, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"100\.0% of all patches ended in one of 4 segments: let fewer pairs"):
        train_stego(Colours(), grey, num_segments=4, seed=0, images_budget=BATCH)
    assert train_stego(Colours(), grey, num_segments=1, seed=0, images_budget=BATCH).num_segments == 1


def test_shifts_may_be_given_in_place_of_shares() -> None:
    half = OfPairs(0.5, 0.5, 0.5)
    given = train(images_budget=BATCH, shifts=half)
    assert given.digest == train(images_budget=BATCH, shifts=half, shares=OfPairs(0.0, 0.0, 0.0)).digest
    assert given.digest != train(images_budget=BATCH).digest


def test_neighbours_may_be_found_by_features_of_whole_images() -> None:
    asked = []

    def embed(images: Tensor) -> Tensor:
        asked.append(len(images))
        return images.float().mean(dim=(2, 3))

    train(embed=embed, images_budget=BATCH)
    assert sum(asked) == len(scenes()[0])


def test_more_images_than_memory_holds_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Counting(Colours):
        def __call__(self, images: Tensor) -> Tensor:
            asked.append(len(images))
            return super().__call__(images)

    monkeypatch.setattr(stego, "CACHE", 20 * 2 * 3 * 8 * 8)
    train(encoder=Counting(), images_budget=BATCH)
    assert sum(asked) <= 20 + 1  # one more tells the size of features


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ValueError, match="7 images do not have 7 neighbours"):
        train_stego(Colours(), scenes()[0][:7], num_segments=2, seed=0, images_budget=BATCH)
