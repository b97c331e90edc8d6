"""Recipes: functions that return a full configuration. A new experiment is a new function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from engine.annotation_config import AnnotationConfig
from engine.config import Config, DataConfig, DiffusionConfig, TrainingConfig
from engine.sampling_config import EvaluationConfig, SamplingConfig
from sgdm.models.config import UNetConfig


def quickstart() -> Config:
    """The whole road on Fashion-MNIST in a quarter of an hour: on two CPU cores, or more of everything on a GPU."""
    return _quickstart_gpu() if torch.cuda.is_available() else _quickstart_cpu()


def _quickstart_cpu() -> Config:
    return Config(
        run=Path("runs/quickstart"),
        data=DataConfig(source="fashion-mnist", folder=Path("data/fashion-mnist-32"), image_size=32),
        annotation=AnnotationConfig(num_clusters=100),
        model=UNetConfig(
            patch_size=2,
            channels=32,
            channel_multipliers=(1, 2, 3),
            residual_blocks=1,
            attention_downsamples=(2, 4),
            heads=4,
            dropout=0.0,
            resample_in_block=False,
        ),
        # A short run learns coarse shapes, which are decided at high noise: v at evenly spread steps shows it more of
        # that than the log-normal levels of EDM do.
        diffusion=DiffusionConfig(prediction="v", schedule="cosine"),
        training=TrainingConfig(
            images=32_000,
            batch_size=32,
            learning_rate=2e-3,
            warmup_images=2_000,
            cooldown_images=16_000,
            gradient_clip=1.0,
            ema_decays=(0.98, 0.995),
            log_images=640,
            checkpoint_images=8_000,
        ),
        sampling=SamplingConfig(images=1_000, sampler="dpmpp", steps=12),
        evaluation=EvaluationConfig(reference_images=2_000),
    )


def _quickstart_gpu() -> Config:
    return Config(
        run=Path("runs/quickstart"),
        data=DataConfig(source="fashion-mnist", folder=Path("data/fashion-mnist-32"), image_size=32),
        annotation=AnnotationConfig(num_clusters=100),
        model=UNetConfig(channels=128, channel_multipliers=(1, 2, 2), attention_downsamples=(4,), heads=4),
        diffusion=DiffusionConfig(prediction="edm"),
        training=TrainingConfig(
            images=2_000_000,
            batch_size=256,
            learning_rate=3e-4,
            warmup_images=50_000,
            cooldown_images=500_000,
            gradient_clip=1.0,
            ema_decays=(0.999, 0.9995),
            log_images=20_000,
            checkpoint_images=500_000,
        ),
        sampling=SamplingConfig(images=10_000, sampler="heun", steps=18),
        evaluation=EvaluationConfig(batch_size=500),
    )


def imagenet32() -> Config:
    """The paper's ImageNet run at 32 pixels (facts of the released code): give --data.source."""
    return Config(
        run=Path("runs/imagenet32"),
        data=DataConfig(source="imagenet", folder=Path("data/imagenet-32"), image_size=32),
        annotation=AnnotationConfig(num_clusters=10_000, encoder="vit_base_patch16_224.dino"),
        model=UNetConfig(),
        diffusion=DiffusionConfig(prediction="eps", schedule="sqrt_linear"),
        training=TrainingConfig(images=128_000_000, batch_size=128, learning_rate=3e-4, log_images=100_000),
    )


def imagenet64() -> Config:
    """The paper's ImageNet run at 64 pixels, K = 5,000: give --data.source."""
    return Config(
        run=Path("runs/imagenet64"),
        data=DataConfig(source="imagenet", folder=Path("data/imagenet-64"), image_size=64),
        annotation=AnnotationConfig(num_clusters=5_000, encoder="vit_base_patch16_224.dino"),
        model=UNetConfig(),
        diffusion=DiffusionConfig(prediction="eps", schedule="sqrt_linear"),
        training=TrainingConfig(images=128_000_000, batch_size=160, learning_rate=1e-4, log_images=100_000),
    )


RECIPES: dict[str, Callable[[], Config]] = {
    "quickstart": quickstart,
    "imagenet32": imagenet32,
    "imagenet64": imagenet64,
}
