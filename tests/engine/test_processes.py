"""Several processes under the DeepSpeed launcher, on one machine."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from engine import annotate, checkpoint, prepare
from engine.annotation_config import SelfSupervisionConfig
from engine.config import Config, save_config
from engine.sampling_config import SweepConfig
from engine.sweep_results import read

ENGINE = Path(checkpoint.__file__).parent

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def launch(program: str, config: Config, processes: int, port: int) -> str:
    path = config.run.with_suffix(".yaml")
    save_config(config, path)
    command = [Path(sys.executable).with_name("deepspeed"), "--num_gpus", str(processes), "--master_port", str(port)]
    done = subprocess.run(
        [*command, ENGINE / f"{program}.py", "--config", path],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def losses(config: Config) -> list[float]:
    return [json.loads(line)["loss"] for line in (config.run / "log.jsonl").read_text().splitlines()]


@pytest.mark.skipif(torch.cuda.device_count() == 1, reason="two processes need two GPUs, or none")
def test_loss_and_samples_do_not_depend_on_the_number_of_processes(config: Config) -> None:
    prepare.run(config)
    annotate.run(config)
    runs = {}
    for name, processes, stage in (("one", 1, 0), ("two", 2, 0), ("sharded", 2, 1)):
        runs[name] = dataclasses.replace(
            config,
            run=config.run.with_name(name),
            training=dataclasses.replace(config.training, zero_stage=stage),
        )
        launch("train", runs[name], processes, port=29_610 + len(runs))
        launch("sample", runs[name], processes, port=29_620 + len(runs))
        sweep = SweepConfig(guidance="0,2", metric="kernel_distance", search="coarse-to-fine")
        launch("evaluate", dataclasses.replace(runs[name], sweep=sweep), processes, port=29_630 + len(runs))
    np.testing.assert_allclose(losses(runs["two"]), losses(runs["one"]), rtol=1e-4)
    np.testing.assert_allclose(losses(runs["sharded"]), losses(runs["one"]), rtol=1e-4)
    for name in ("two", "sharded"):
        for one, other in zip(read(runs["one"].run / "sweep.csv"), read(runs[name].run / "sweep.csv"), strict=True):
            for metric in ("kernel_distance", "inception_score", "spatial_frechet_distance"):
                assert one[metric] == other[metric] or other[metric] == pytest.approx(one[metric], rel=0.02)
        for file in ("guidance-0.npz", "guidance-2.npz"):
            with (
                np.load(runs["one"].run / "samples" / file) as expected,
                np.load(runs[name].run / "samples" / file) as found,
            ):
                np.testing.assert_array_equal(found["cluster"], expected["cluster"])
                assert np.abs(found["image"].astype(int) - expected["image"]).max() <= 1


@pytest.mark.skipif(torch.cuda.device_count() == 1, reason="two processes need two GPUs, or none")
def test_annotations_do_not_depend_on_the_number_of_processes(config: Config) -> None:
    annotation = dataclasses.replace(
        config.annotation,
        encoder="self-supervised",
        self_supervision=SelfSupervisionConfig(images=512),
        layout="boxes",
        shard_images=7,
    )
    one = dataclasses.replace(config, annotation=annotation)
    prepare.run(one)
    launch("annotate", one, 1, port=29_631)
    data = one.data.folder.with_name("two")
    # With the encoder of the one: what it learns depends on the number of threads.
    made = shutil.ignore_patterns("features-*", "k-means-*", "lost-boxes-*")
    shutil.copytree(one.data.folder, data, ignore=made)
    two = dataclasses.replace(one, run=one.run.with_name("two"), data=dataclasses.replace(one.data, folder=data))
    shown = launch("annotate", two, 2, port=29_632)
    assert shown.count("annotate: done") == 1
    for name in ("features_folder", "clusters_folder", "layout_folder"):
        first, second = getattr(one, name), getattr(two, name)
        arrays = sorted(path.name for path in first.glob("*.npy"))
        assert arrays and arrays == sorted(path.name for path in second.glob("*.npy"))
        for array in arrays:
            of_one, of_two = np.load(first / array), np.load(second / array)
            if array == "nearest.npy":  # images as near as each other to the last bits of their features
                of_one, of_two = np.sort(of_one, axis=1), np.sort(of_two, axis=1)
                assert (of_one == of_two).mean() > 0.75
            else:
                np.testing.assert_allclose(of_two, of_one, rtol=1e-2, atol=1e-3)
