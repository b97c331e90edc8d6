from __future__ import annotations

import urllib.error
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import timm
import torch
from cleanfid.resize import build_resizer
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from sgdm.files import sha256_file
from sgdm.metrics import networks
from sgdm.metrics.networks import (
    INCEPTION_FILE,
    CleanInception,
    EfficientNetLite0,
    FeatureNetwork,
    TimmBackbone,
    WeightsUnavailable,
    load_network,
)

CPU = torch.device("cpu")
CLOTHES = {457, 652, 834}  # classes of ImageNet: bow tie, military uniform, suit


class Mixed6(nn.Module):
    """Its first branch puts out 192 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x


class Layers(nn.Module):
    """Named as the file's, with means in place of the convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.AdaptiveAvgPool2d(17)
        self.conv_1 = self.conv_2 = self.pool0 = self.conv_3 = self.conv_4 = self.pool1 = nn.Identity()
        self.mixed = self.mixed_1 = self.mixed_2 = self.mixed_3 = self.mixed_4 = self.mixed_5 = nn.Identity()
        self.mixed_6 = Mixed6()
        self.end = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 2048, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.mixed_6(self.conv(x)))


class StandIn(nn.Module):
    """The parts of the Inception file that are used."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = Layers()
        self.output = nn.Linear(2048, 1008)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


@pytest.fixture
def nothing_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(networks, "CLEAN_FID_FOLDER", tmp_path / "clean-fid")
    return tmp_path


@pytest.fixture
def stand_in(nothing_cached: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    torch.manual_seed(0)
    path = nothing_cached / INCEPTION_FILE
    torch.jit.script(StandIn()).save(str(path))
    monkeypatch.setattr(networks, "INCEPTION_SHA256", sha256_file(path))
    return path


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*arguments: object, **options: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)


@pytest.fixture(scope="module")
def efficientnet() -> FeatureNetwork:
    return load_network("efficientnet-lite0", None, CPU)


@pytest.fixture(scope="module")
def photograph() -> Tensor:
    """A portrait of Grace Hopper in the uniform of the navy: uint8 [1, 3, 512, 512]."""
    with Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg") as image:
        pixels = np.asarray(image.convert("RGB").crop((0, 0, 512, 512)))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]


def test_efficientnet_knows_what_is_in_a_photograph(efficientnet: FeatureNetwork, photograph: Tensor) -> None:
    features = efficientnet(photograph)
    probabilities = features.logits[0].softmax(dim=0)
    assert set(probabilities.topk(2).indices.tolist()) <= CLOTHES
    assert probabilities[sorted(CLOTHES)].sum() > 0.7


def test_efficientnet_features_are_those_its_classes_are_read_from(efficientnet: FeatureNetwork) -> None:
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    together = efficientnet(images)
    assert together.pool.shape == (3, efficientnet.dimension) and together.pool.dtype == torch.float32
    assert together.logits.shape == (3, efficientnet.num_classes) and together.logits.dtype == torch.float32
    alone = efficientnet(images[1:2])
    np.testing.assert_allclose(alone.pool[0], together.pool[1], atol=1e-4)
    assert isinstance(efficientnet, EfficientNetLite0)
    classifier = efficientnet.model.classifier
    expected = together.pool.clone() @ classifier.weight.T + classifier.bias
    np.testing.assert_allclose(together.logits, expected.detach(), atol=1e-3)


def test_names_state_weights_and_resize(efficientnet: FeatureNetwork) -> None:
    assert efficientnet.name == f"efficientnet-lite0 (ImageNet, {EfficientNetLite0.RESIZE} px)"
    assert "clean-fid" in CleanInception.name and "299 px" in CleanInception.name


@pytest.mark.parametrize("size", [32, 400])
def test_inception_sees_images_as_clean_fid_resizes_them(stand_in: Path, size: int) -> None:
    network = load_network("inception", stand_in, CPU)
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    resized = np.stack([build_resizer("clean")(image.permute(1, 2, 0).numpy()) for image in images])
    model = torch.jit.load(str(stand_in))
    with torch.inference_mode():
        pool = model.layers((torch.from_numpy(resized).permute(0, 3, 1, 2) - 128) / 128).flatten(1)
        logits = pool @ model.output.weight.T  # without the bias
    features = network(images)
    np.testing.assert_allclose(features.pool, pool.numpy(), atol=1e-5)
    np.testing.assert_allclose(features.logits, logits.numpy(), atol=1e-5)


@pytest.mark.usefixtures("no_network")
def test_automatic_choice_is_inception_where_the_file_is(stand_in: Path) -> None:
    assert isinstance(load_network("auto", None, CPU), EfficientNetLite0)
    assert isinstance(load_network("auto", stand_in, CPU), CleanInception)
    cached = networks.CLEAN_FID_FOLDER / INCEPTION_FILE
    cached.parent.mkdir()
    cached.write_bytes(stand_in.read_bytes())
    assert isinstance(load_network("auto", None, CPU), CleanInception)
    assert isinstance(load_network("inception", None, CPU), CleanInception)


@pytest.mark.usefixtures("no_network")
def test_missing_weights_name_the_ways_out_and_leave_nothing(nothing_cached: Path) -> None:
    with pytest.raises(
        WeightsUnavailable, match=r"no route to host.*path of a copy.*put the file at.*efficientnet-lite0"
    ):
        load_network("inception", None, CPU)
    assert not list(nothing_cached.rglob("*.pt"))
    with pytest.raises(WeightsUnavailable, match="there is no file"):
        load_network("inception", nothing_cached / "nothing.pt", CPU)


def test_a_file_other_than_the_known_one_is_not_run(nothing_cached: Path) -> None:
    other = nothing_cached / INCEPTION_FILE
    other.write_bytes(b"half of a download")
    for name in ("inception", "auto"):
        with pytest.raises(ValueError, match="SHA-256"):
            load_network(name, other, CPU)


def test_download_is_checked_and_kept(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def serve(url: str, timeout: float) -> object:
        opened.append(url)
        return stand_in.open("rb")

    monkeypatch.setattr("urllib.request.urlopen", serve)
    assert isinstance(load_network("inception", None, CPU), CleanInception)
    assert isinstance(load_network("inception", None, CPU), CleanInception)
    assert len(opened) == 1


def test_unknown_names_and_needless_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'vgg'; there are inception, efficientnet-lite0 and auto"):
        load_network("vgg", None, CPU)
    with pytest.raises(ValueError, match="brings its own weights"):
        load_network("efficientnet-lite0", tmp_path / "weights.pt", CPU)


def test_spatial_features_are_channels_of_a_map(efficientnet: FeatureNetwork, stand_in: Path) -> None:
    """What is in one corner of an image does not show at the opposite one, where the map sees less than the whole."""
    images = torch.randint(0, 256, (2, 3, 299, 299), dtype=torch.uint8)
    images[1] = images[0]
    images[1, :, :20, :20] = 255 - images[1, :, :20, :20]
    inception = load_network("inception", stand_in, CPU)
    for network, side in ((efficientnet, 6), (inception, 17)):
        spatial = network(images).spatial
        assert spatial is not None and spatial.shape == (2, network.spatial_dimension)
        changed = (spatial[0] - spatial[1]).abs().view(-1, side, side).mean(dim=0)
        assert changed[0, 0] > 3 * changed[-1, -1]
    assert changed[-1, -1] == 0
    assert (efficientnet.spatial_dimension, inception.spatial_dimension) == (2016, 2023)


def test_a_backbone_of_timm_judges_by_its_pooled_features(tmp_path: Path) -> None:
    name = "vit_tiny_patch16_224.augreg_in21k"
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    judge = TimmBackbone(name, tmp_path / "weights.safetensors", CPU)
    digest = sha256_file(tmp_path / "weights.safetensors")
    assert judge.name == f"{name} ({digest[:8]}, 224x224 px)" and judge.dimension == 192
    features = judge(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8))
    assert features.pool.shape == (2, 192) and features.logits is None and features.spatial is None
