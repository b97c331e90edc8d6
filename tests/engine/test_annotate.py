"""Features, clusters and controls of a prepared set, as `sgdm annotate` makes them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from engine import annotate, prepare
from engine.annotation_config import AnnotationConfig
from engine.config import Config
from engine.config_error import ConfigError
from sgdm.annotate.cluster_set import load_clusters
from sgdm.annotate.features import load_features
from sgdm.annotate.selfsup import OwnEncoder
from sgdm.annotate.shards import Shards
from sgdm.data.beton import check_beton


@pytest.fixture(scope="module")
def prepared(
    image_folder: Path, make_config: Callable[[Path], Config], tmp_path_factory: pytest.TempPathFactory
) -> Config:
    """96 images in 3 colours, each in a folder of its colour, which makes it the label."""
    folder = tmp_path_factory.mktemp("annotate")
    for path in image_folder.glob("[0-9]*.png"):
        target = folder / "images" / "abc"[int(path.stem) % 3] / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    config = make_config(folder)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, source=str(folder / "images")))
    prepare.run(config)
    return config


@pytest.fixture
def fresh(prepared: Config, tmp_path: Path) -> Config:
    """The prepared set in a folder of its own, without annotations."""
    shutil.copytree(prepared.data.folder, tmp_path / "data", ignore=shutil.ignore_patterns("annotations"))
    data = dataclasses.replace(prepared.data, folder=tmp_path / "data")
    return dataclasses.replace(prepared, run=tmp_path / "run", data=data)


def asking(config: Config, **fields: Any) -> Config:
    return dataclasses.replace(config, annotation=dataclasses.replace(config.annotation, **fields))


def digest(config: Config) -> str:
    return check_beton(config.data.folder / "train.beton").digest


def ids(config: Config) -> np.ndarray:
    return load_clusters(config.clusters_folder, digest(config)).clusters


def labels(config: Config) -> np.ndarray:
    return annotate.open_training_images(config, "cpu").labels  # type: ignore[arg-type]


def test_the_set_says_where_it_comes_from(fresh: Config) -> None:
    annotate.run(fresh)
    clusters = load_clusters(fresh.clusters_folder, digest(fresh))
    features = load_features(fresh.features_folder, digest(fresh))
    assert clusters.manifest.features_digest == features.manifest.digest == features.content_digest()
    assert clusters.manifest.method == "k-means" and clusters.manifest.encoder == features.manifest.encoder
    assert {
        "smallest",
        "largest",
        "empty",
        "tiny",
        "repaired",
        "purity",
        "nmi",
        "ari",
    } <= clusters.manifest.report.keys()
    assert clusters.manifest.report["purity"] == 1.0
    for cluster, rows in enumerate(clusters.nearest):
        assert set(clusters.clusters[rows[rows >= 0]]) == {cluster}
    assert "resize" in features.manifest.parameters and "input_size" in features.manifest.parameters


def test_several_numbers_of_clusters_come_of_one_pass_and_are_those_of_single_runs(
    fresh: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[int] = []
    encode = OwnEncoder.__call__

    def counted(encoder: OwnEncoder, images: Tensor) -> Tensor:
        seen.append(len(images))
        return encode(encoder, images)

    monkeypatch.setattr(OwnEncoder, "__call__", counted)
    many = asking(fresh, also_clusters=(2, 8))
    annotate.run(many)
    assert sum(seen) == 96
    for K in (2, 3, 8):
        alone = asking(fresh, num_clusters=K)
        assert sorted(set(ids(alone))) == list(range(K))
        capsys.readouterr()
        annotate.run(alone)
        assert "already whole, skipped" in capsys.readouterr().out
        before = ids(alone)
        shutil.rmtree(alone.clusters_folder)
        annotate.run(alone)
        assert np.array_equal(ids(alone), before)
    assert sum(seen) == 96, "features are extracted once"


def test_an_interrupted_extraction_goes_on_at_the_shard(fresh: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    config = asking(fresh, shard_images=10)
    annotate.run(config)
    whole = load_features(config.features_folder, digest(config))[:]
    shutil.rmtree(config.data.folder / "annotations")
    save, saved = Shards.save, []

    def interrupted(shards: Shards, number: int, arrays: Any) -> None:
        if len(saved) == 4:
            raise KeyboardInterrupt
        saved.append(number)
        save(shards, number, arrays)

    monkeypatch.setattr(Shards, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        annotate.run(config)
    monkeypatch.setattr(
        Shards, "save", lambda shards, number, arrays: (saved.append(number), save(shards, number, arrays))
    )
    annotate.run(config)
    assert sorted(saved) == list(range(10)), "no shard is made twice"
    assert np.array_equal(load_features(config.features_folder, digest(config))[:], whole)


def test_features_of_other_images_are_made_again(fresh: Config) -> None:
    annotate.run(fresh)
    before = load_features(fresh.features_folder, digest(fresh)).manifest
    source = fresh.data.folder.parent / "images"
    shutil.copytree(fresh.data.source, source)
    next(source.rglob("*.png")).unlink()
    changed = dataclasses.replace(fresh, data=dataclasses.replace(fresh.data, source=str(source)))
    prepare.run(changed)
    with pytest.raises(ValueError, match=f"{before.data_digest}.*{digest(changed)}"):
        load_features(changed.features_folder, digest(changed))
    annotate.run(changed)
    after = load_features(changed.features_folder, digest(changed)).manifest
    assert (before.count, after.count) == (96, 95)


def test_controls_act_and_need_no_encoder(fresh: Config) -> None:
    truth = labels(fresh)
    annotate.run(asking(fresh, clusters="labels", encoder="dino_of_dreams"))
    assert np.array_equal(ids(asking(fresh, clusters="labels")), truth)
    split = asking(fresh, clusters="split-labels", num_clusters=6)
    annotate.run(split)
    assert len(set(ids(split))) == 6
    assert all(len(set(truth[ids(split) == cluster])) == 1 for cluster in range(6))
    random = asking(fresh, clusters="random")
    annotate.run(random)
    report = load_clusters(random.clusters_folder, digest(random)).manifest.report
    assert report["nmi"] < 0.2 and not np.array_equal(ids(random), truth)
    again = dataclasses.replace(random, seed=random.seed + 1)
    annotate.run(again)
    assert not np.array_equal(ids(again), ids(random))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shard_images": 97}, "shard_images is 97, but there are only 96 images"),
        ({"also_clusters": (97,)}, r"num_clusters is 97.*96 images"),
        ({"clusters": "labels", "num_clusters": 4}, "num_clusters is 4, but the images have 3 labels"),
        ({"clusters": "split-labels", "num_clusters": 4}, "num_clusters is 4, but the images have 3 labels"),
        ({"encoder": "dino_of_dreams"}, "timm has no backbone 'dino_of_dreams'"),
    ],
)
def test_what_cannot_be_is_refused_by_name(fresh: Config, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        annotate.run(asking(fresh, **fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"also_clusters": (1,)}, "also_clusters"),
        ({"also_clusters": (5,), "num_clusters": 0}, "no pass over features"),
        ({"also_clusters": (5,), "clusters": "random"}, "no pass over features"),
        ({"shard_images": 0}, "shard_images is 0"),
    ],
)
def test_configurations_that_contradict_themselves(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AnnotationConfig(**fields)


def test_an_encoder_that_gives_no_numbers_is_refused_by_image(fresh: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = OwnEncoder.__call__

    def broken(encoder: OwnEncoder, images: Tensor) -> Tensor:
        features = encode(encoder, images).clone()
        features[3] = float("nan")
        return features

    monkeypatch.setattr(OwnEncoder, "__call__", broken)
    with pytest.raises(ValueError, match=r"pixels gives features that are no finite.* images 3:"):
        annotate.run(asking(fresh, shard_images=96))


def test_a_damaged_shard_is_named_when_it_is_read(fresh: Config) -> None:
    annotate.run(fresh)
    path = fresh.features_folder / "shard-00003.features.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"shard-00003\.features\.npy is missing or damaged"):
        annotate.run(asking(fresh, num_clusters=5))


def test_the_run_is_told_what_the_stage_made(fresh: Config) -> None:
    annotate.run(asking(fresh, also_clusters=(4,)))
    row = json.loads((fresh.run / "stages.json").read_text())["annotate"]
    assert row["images"] == 96 and "k-means-3" in row["result"] and "k-means-4" in row["result"]
