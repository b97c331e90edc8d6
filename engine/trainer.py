"""The training run: batches in, weights and their averages out. Time is counted in images seen."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import torch
from torch import Tensor, nn

from engine import checkpoint
from engine.compilation import Compilation, CompileReport, choose, compile_report
from engine.config import Config
from engine.distributed import Ranks, computes_in_bf16
from engine.ema import Averages
from engine.telemetry import progress, say
from sgdm.conditions import flip_images, make_condition
from sgdm.data.guides import Drawn, Guides, guided, one_ahead
from sgdm.data.loader import Batch, Loader
from sgdm.diffusion.noise import training_noise
from sgdm.diffusion.objective import Objective, make_objective
from sgdm.files import atomic_write
from sgdm.models.unet import UNet


class DivergedError(ValueError):
    """The loss is no longer finite."""


class TrainingStep(nn.Module):
    """Stored images and their random numbers to a loss: the module that DeepSpeed holds, and that is compiled whole."""

    def __init__(self, network: UNet, objective: Objective, bf16: bool, compilation: Compilation) -> None:
        super().__init__()
        self.network = network
        self.objective = objective
        self.bf16 = bf16
        # The inside is compiled and not the module: DeepSpeed hangs hooks on the module that dynamo cannot trace.
        self._compiled_loss = compilation(self._loss)

    def forward(
        self, image: Tensor, drawn: Drawn, dropped: Tensor, flipped: Tensor | None, noise: Tensor, uniform: Tensor
    ) -> Tensor:
        """image uint8 [B,3,H,W], the guides drawn for it, dropped and flipped bool [B], noise float32 [B,3,H,W],
        uniform float32 [B] -> mean loss, float32."""
        return self._compiled_loss(image, drawn, dropped, flipped, noise, uniform)

    def _loss(
        self, image: Tensor, drawn: Drawn, dropped: Tensor, flipped: Tensor | None, noise: Tensor, uniform: Tensor
    ) -> Tensor:
        clean = image.to(torch.float32) / 127.5 - 1
        config = self.network.config
        condition = make_condition(drawn.cluster, drawn.layout, config.num_attributes)
        if flipped is not None:
            clean = flip_images(clean, flipped)
            condition = None if condition is None else condition.flip(flipped)
        if condition is not None:
            condition = condition.drop(dropped, config.num_clusters)
        with torch.autocast(image.device.type, torch.bfloat16, enabled=self.bf16):
            loss = self.objective.loss(self.network, clean, condition, noise, uniform)
        return loss.mean()


def learning_rate(config: Config, images: int) -> float:
    """Linear warm-up from 0, constant, linear cool-down to 0 at the end."""
    training = config.training
    rise = min(1.0, (images + training.batch_size) / training.warmup_images) if training.warmup_images else 1.0
    left = max(training.images - images, 0)
    fall = min(1.0, left / training.cooldown_images) if training.cooldown_images else 1.0
    return training.learning_rate * min(rise, fall)


def deepspeed_config(config: Config, world_size: int) -> dict[str, Any]:
    training = config.training
    return {
        "train_batch_size": training.batch_size,
        "train_micro_batch_size_per_gpu": training.batch_size // (world_size * training.accumulation),
        "gradient_accumulation_steps": training.accumulation,
        "gradient_clipping": training.gradient_clip,
        "zero_optimization": {
            "stage": training.zero_stage,
            # The default of 5e8 elements holds a whole UNet, so that nothing would overlap with the backward pass.
            "reduce_bucket_size": 20_000_000,
            "allgather_bucket_size": 20_000_000,
        },
        "steps_per_print": 2**31,
        "zero_allow_untested_optimizer": True,
    }


class Trainer:
    """One training run. All processes build it alike."""

    def __init__(
        self,
        config: Config,
        loader: Loader,
        guides: Guides,
        trained_on: dict[str, str | None],
        ranks: Ranks,
    ) -> None:
        """trained_on: see Guidance.trained_on."""
        training = config.training
        parts = ranks.world_size * training.accumulation
        if training.batch_size % parts:
            raise ValueError(
                f"training.batch_size {training.batch_size} does not divide into {ranks.world_size} processes "
                f"times training.accumulation {training.accumulation}: give a multiple of {parts}, or fewer processes "
                "(deepspeed --include localhost:0,1)"
            )
        self.config, self.loader, self.guides, self.ranks = config, loader, guides, ranks
        self.trained_on = trained_on
        self.local_batch = training.batch_size // ranks.world_size
        self.micro_batch = training.batch_size // parts
        torch.manual_seed(config.seed)  # the initial weights
        if ranks.device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = True
            torch.backends.cudnn.allow_tf32 = True
            torch.backends.cudnn.benchmark = True
        network = UNet(config.network, training.backends).to(ranks.device)
        self.averages = Averages(network, training.ema_decays)
        bf16 = computes_in_bf16(config.training.precision, ranks.device)
        objective = make_objective(
            config.diffusion.prediction, config.diffusion.schedule, config.diffusion.min_snr_gamma
        )
        self.compilation = choose(training.compile, ranks.device, training.accumulation)
        self.compile_report: CompileReport | None = None
        step = TrainingStep(network, objective, bf16, self.compilation)
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay, fused=True
        )
        self.engine, *_ = deepspeed.initialize(
            model=step.to(ranks.device), optimizer=optimizer, config=deepspeed_config(config, ranks.world_size)
        )
        self.images = 0
        parameters = sum(parameter.numel() for parameter in network.parameters())
        if ranks.first:
            say(
                f"train: {parameters / 1e6:.2f} M parameters, {ranks.world_size} process(es) on {ranks.device.type}, "
                f"ZeRO {training.zero_stage}, {'bf16' if bf16 else 'fp32'}, "
                f"{f'compiled ({self.compilation.choice})' if self.compilation.compiles else 'eager'}"
            )
            if self.compilation.note:
                say(f"train: {self.compilation.note}")

    def resume(self) -> None:
        """Goes on from the newest whole checkpoint, if there is one."""
        last = checkpoint.newest(self.config.run)
        if last is not None:
            self.images = checkpoint.load(last, self.engine, self.averages, self.config, self.ranks)
            if self.ranks.first:
                say(f"train: going on from {last}")

    def train(self) -> Path:
        """Runs to training.images; returns the last checkpoint."""
        training = self.config.training
        log = _Log(self.config.run / "log.jsonl", self.images) if self.ranks.first else None
        loss_sum = torch.zeros((), device=self.ranks.device)
        logged = saved = self.images
        batches = one_ahead(guided(self.loader.train(self.images), self.guides))
        waited = 0.0
        with progress("train", training.images, self.images, visible=self.ranks.first) as advance:
            while self.images < training.images:
                started = time.monotonic()
                batch, drawn = next(batches)
                waited += time.monotonic() - started
                loss_sum += self._step(batch, drawn) * training.batch_size
                if self.compilation.compiles and self.compile_report is None:
                    self.compile_report = compile_report()
                    if self.ranks.first:
                        say(f"train: compiled {self.compile_report}")
                self.images += training.batch_size
                advance(training.batch_size)
                saves = self.images - saved >= training.checkpoint_images or self.images >= training.images
                # A loss that is not finite is found here, before its weights could become the last good checkpoint.
                if self.images - logged >= training.log_images or saves:
                    loss = self._mean_loss(loss_sum, self.images - logged)
                    if log:
                        log.write(self.images, loss, learning_rate(self.config, self.images), waited, self.ranks.device)
                    logged, waited = self.images, 0.0
                if saves:
                    last = self._save()
                    saved = self.images
        return last

    def _step(self, batch: Batch, drawn: Drawn) -> Tensor:
        """One optimizer step over this process's part of the global batch; the mean loss, still on the device."""
        training, ranks = self.config.training, self.ranks
        # Dropout: another mask on every process and at every step, and the same one after a resume.
        seeds = np.random.SeedSequence((self.config.seed, self.images, ranks.rank))
        torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0]))
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.images)
        first_image = self.images + ranks.rank * self.local_batch
        shape = (3, *batch.image.shape[2:])
        noise, uniform, drop, flip = training_noise(
            self.config.seed, first_image, self.local_batch, shape, ranks.device
        )
        dropped = drop < self.config.diffusion.condition_dropout
        flipped = flip < 0.5 if training.flip else None
        loss_sum = torch.zeros((), device=ranks.device)
        for micro in range(training.accumulation):
            rows = slice(micro * self.micro_batch, (micro + 1) * self.micro_batch)
            loss = self.engine(
                batch.image[rows],
                Drawn(*(None if part is None else part[rows] for part in drawn)),
                dropped[rows],
                None if flipped is None else flipped[rows],
                noise[rows],
                uniform[rows],
            )
            self.engine.backward(loss)
            self.engine.step()
            loss_sum += loss.detach()
        self.averages.update()
        return loss_sum / training.accumulation

    def _mean_loss(self, loss_sum: Tensor, images: int) -> float:
        """The mean loss of all processes since the last log line; the one host sync, a log interval."""
        torch.distributed.all_reduce(loss_sum)
        loss = float(loss_sum) / (images * self.ranks.world_size)
        loss_sum.zero_()
        if not math.isfinite(loss):
            last = checkpoint.newest(self.config.run)
            raise DivergedError(
                f"the loss is {loss} at {self.images:,} images; the last checkpoint, {last or 'none yet'}, is kept: "
                "lower training.learning_rate or set training.gradient_clip and run again"
            )
        return loss

    def _save(self) -> Path:
        return checkpoint.save(self.config, self.engine, self.averages, self.images, self.trained_on, self.ranks)


class _Log:
    """log.jsonl: a line an interval. Lines past the checkpoint that a run resumes from are dropped."""

    def __init__(self, path: Path, images: int) -> None:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        rows = [row for line in lines if (row := _parsed(line)) and row["images"] <= images]
        self.path = path
        self.images = images
        self.seconds = float(rows[-1]["seconds"]) if rows else 0.0
        self.last = time.monotonic()
        with atomic_write(path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def write(self, images: int, loss: float, rate: float, waited: float, device: torch.device) -> None:
        """`waited`: seconds since the last line for which the step had no batch."""
        now = time.monotonic()
        interval, self.last = now - self.last, now
        self.seconds += interval
        row = {
            "images": images,
            "seconds": round(self.seconds, 3),
            "loss": loss,
            "images_per_second": round((images - self.images) / interval, 2),
            "learning_rate": rate,
            "loader_share": round(waited / interval, 4),
        }
        if device.type == "cuda":
            row["memory_gb"] = round(torch.cuda.max_memory_allocated(device) / 1e9, 3)
        self.images = images
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        return dict(json.loads(line))
    except ValueError:  # the line that a kill cut short
        return None
