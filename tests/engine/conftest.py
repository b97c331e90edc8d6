from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from engine.annotation_config import AnnotationConfig
from engine.config import Config, DataConfig, TrainingConfig
from engine.sampling_config import EvaluationConfig, SamplingConfig
from sgdm.models.config import UNetConfig


@pytest.fixture(autouse=True)
def keep_the_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program ends its process group with itself. Here the process goes on, and DeepSpeed with the group it knows."""
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)


@pytest.fixture(autouse=True)
def keep_signals_and_environment() -> Iterator[None]:
    """A program that was asked to stop ignores signals from then on; one that is alone gives itself a launcher's
    environment, which launchers that are tested next would pass on."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    environment = dict(os.environ)
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 images of 20 x 20 pixels in 3 colours, a file that is no image among them."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for number in range(96):
        pixels = random.integers(0, 60, (20, 20, 3))
        pixels[..., number % 3] += 180
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:03}.png")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="session")
def make_config(image_folder: Path) -> Callable[[Path], Config]:
    """A configuration in a folder of its own: a whole run in seconds."""

    def make(folder: Path) -> Config:
        return Config(
            run=folder / "run",
            data=DataConfig(source=str(image_folder), folder=folder / "data", image_size=16),
            annotation=AnnotationConfig(num_clusters=3, encoder="pixels"),
            model=UNetConfig(
                channels=8,
                channel_multipliers=(1, 2),
                residual_blocks=1,
                attention_downsamples=(2,),
                heads=2,
                dropout=0.0,
            ),
            training=TrainingConfig(
                images=64,
                batch_size=16,
                accumulation=1,  # to be found, it takes a trace of a second: see test_memory.py
                warmup_images=16,
                ema_decays=(0.9, 0.15),
                log_images=16,
                checkpoint_images=32,
                compile="off",
            ),
            sampling=SamplingConfig(guidance_scales=(0.0, 2.0), images=12, sampler="dpmpp", steps=2, batch_size=8),
            evaluation=EvaluationConfig(network="efficientnet-lite0", reference_images=48),
        )

    return make


@pytest.fixture
def config(make_config: Callable[[Path], Config], tmp_path: Path) -> Config:
    return make_config(tmp_path)
