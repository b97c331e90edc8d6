"""The training run: batches in, weights and their averages out. Time is counted in images seen."""

from __future__ import annotations

import json
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import torch
from torch import Tensor

from engine import checkpoint
from engine.averages import Averages
from engine.checkpoint import Counters, Saver
from engine.compilation import CompileReport, choose, compile_report
from engine.config import Config, ConfigError
from engine.distributed import Ranks, computes_in_bf16
from engine.optimizer import GuardedAdamW
from engine.record import Interval, Record
from engine.shards import make_shards
from engine.step import TrainingStep
from engine.telemetry import progress, say
from engine.zero import check_stage, choose_stage, deepspeed_config, device_bytes, guards_itself
from sgdm.data.guides import Drawn, Guides, guided, one_ahead
from sgdm.data.loader import Batch, Loader
from sgdm.diffusion.noise import training_noise
from sgdm.diffusion.objective import make_objective
from sgdm.files import atomic_write
from sgdm.models.unet import UNet

LEAST_LEARNING_RATE_FACTOR = 1 / 16
"""Below it a run that diverges is beyond halving its learning rate."""


class DivergedError(ValueError):
    """Steps without a finite gradient, again and again."""


def learning_rate(config: Config, images: int) -> float:
    """Linear warm-up from 0, constant, linear cool-down to 0 at the end."""
    training = config.training
    rise = min(1.0, (images + training.batch_size) / training.warmup_images) if training.warmup_images else 1.0
    left = max(training.images - images, 0)
    fall = min(1.0, left / training.cooldown_images) if training.cooldown_images else 1.0
    return training.learning_rate * min(rise, fall)


def local_batch(batch_size: int, accumulation: int, world_size: int) -> int:
    """Images of a global batch that each process has. ConfigError where it does not divide."""
    parts = world_size * accumulation
    if batch_size % parts:
        raise ConfigError(
            f"training.batch_size {batch_size} does not divide into {world_size} processes times "
            f"training.accumulation {accumulation}: give a multiple of {parts}, or fewer processes "
            "(deepspeed --include localhost:0,1)"
        )
    return batch_size // world_size


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
        self.config, self.loader, self.guides, self.ranks = config, loader, guides, ranks
        torch.manual_seed(config.seed)  # the initial weights
        if ranks.device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = True
            torch.backends.cudnn.allow_tf32 = True
            torch.backends.cudnn.benchmark = True
        network = UNet(config.network, training.backends).to(ranks.device)
        network.keeps_activations = not training.activation_checkpointing
        parameters = sum(parameter.numel() for parameter in network.parameters())
        self.stage, reason = choose_stage(training, parameters, ranks.world_size, device_bytes(ranks.device))
        check_stage(training, self.stage)
        self.accumulation = training.accumulation or 1
        self.local_batch = local_batch(training.batch_size, self.accumulation, ranks.world_size)
        self.micro_batch = self.local_batch // self.accumulation
        bf16 = computes_in_bf16(training.precision, ranks.device)
        self.compilation = choose(training.compile, ranks.device, self.accumulation)
        self.compile_report: CompileReport | None = None
        objective = make_objective(
            config.diffusion.prediction, config.diffusion.schedule, config.diffusion.min_snr_gamma
        )
        step = TrainingStep(network, objective, bf16, self.compilation, by_block=self.stage == 3)
        self.guarded = guards_itself(training, self.stage)
        self.engine, *_ = deepspeed.initialize(
            model=step.to(ranks.device),
            optimizer=self._make_optimizer(network),
            config=deepspeed_config(training, self.stage, self.micro_batch, self.accumulation, ranks),
        )
        self.shards = make_shards(network, self.engine, ranks)
        self.averages = Averages(self.shards.masters, training.ema_decays)
        self.saver = Saver(config, trained_on, ranks)
        self.counters = Counters()
        self._record = Record()
        if ranks.first:
            say(
                f"train: {parameters / 1e6:.2f} M parameters, {ranks.world_size} process(es) on {ranks.device.type}, "
                f"{self.accumulation} x {self.micro_batch} images each a step, {'bf16' if bf16 else 'fp32'}, "
                f"{f'compiled ({self.compilation.choice})' if self.compilation.compiles else 'eager'}"
            )
            say(f"train: ZeRO {self.stage}: {reason}")
            if self.compilation.note:
                say(f"train: {self.compilation.note}")

    def _make_optimizer(self, network: UNet) -> torch.optim.AdamW:
        training = self.config.training
        if not self.guarded:  # DeepSpeed clips and skips
            return torch.optim.AdamW(
                network.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay, fused=True
            )
        return GuardedAdamW(
            network.parameters(),
            learning_rate=training.learning_rate,
            weight_decay=training.weight_decay,
            gradient_clip=training.gradient_clip,
            sum_over_shards=torch.distributed.all_reduce if self.stage else None,
        )

    def resume(self) -> None:
        """Goes on from the newest whole checkpoint, if there is one."""
        last, self.counters, damaged = checkpoint.load_newest(self.config, self.shards, self.averages, self.ranks)
        if self.ranks.first:
            for line in damaged:
                say(f"train: {line}: going on from the one before it")
            if last is not None:
                say(f"train: going on from {last}")

    @property
    def images(self) -> int:
        """Seen so far."""
        return self.counters.images

    def train(self) -> Path:
        """Runs to training.images; returns the last checkpoint."""
        training = self.config.training
        log = _Log(self.config.run / "log.jsonl", self.images) if self.ranks.first else None
        logged = saved = self.images
        losses: list[float] = []
        batches = self._batches()
        waited = 0.0
        with progress("train", training.images, self.images, visible=self.ranks.first) as advance:
            while self.images < training.images:
                started = time.monotonic()
                batch, drawn = next(batches)
                waited += time.monotonic() - started
                self._record.add(self.images, *self._step(batch, drawn))
                if self.compilation.compiles and self.compile_report is None:
                    self.compile_report = compile_report()
                    if self.ranks.first:
                        say(f"train: compiled {self.compile_report}")
                self.counters.images += training.batch_size
                advance(training.batch_size)
                self.saver.check()
                saves = self.images - saved >= training.checkpoint_images or self.images >= training.images
                if not saves and self.images - logged < training.log_images:
                    continue
                interval = self._read_record()
                if interval.in_a_row >= training.skipped_in_a_row:
                    self._diverged(interval.in_a_row)
                    batches.close()
                    batches, logged, saved, losses = self._batches(), self.images, self.images, []
                    continue
                losses += interval.losses
                if log:
                    rate = learning_rate(self.config, self.images) * self.counters.learning_rate_factor
                    log.write(self.images, interval, rate, waited, self.ranks.device)
                logged, waited = self.images, 0.0
                if saves:
                    self.counters.loss = float(np.mean(losses)) if losses else None
                    last = self.saver.save(self.shards, self.averages, self.counters)
                    saved, losses = self.images, []
        self.saver.wait()
        self.ranks.wait()  # what the first process completes is of all
        return last

    def _batches(self) -> Generator[tuple[Batch, Drawn], None, None]:
        return one_ahead(guided(self.loader.train(self.images), self.guides))

    def _step(self, batch: Batch, drawn: Drawn) -> tuple[Tensor, Tensor | float, Tensor | float]:
        """One optimizer step over this process's part of the global batch: its mean loss, the norm of the gradient of
        the global batch, and 1 where the step was left out; on the device."""
        training, ranks = self.config.training, self.ranks
        # Dropout: another mask on every process and at every step, and the same one after a resume.
        seeds = np.random.SeedSequence((self.config.seed, self.images, ranks.rank))
        torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0]))
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.images) * self.counters.learning_rate_factor
        part = slice(ranks.rank * self.local_batch, (ranks.rank + 1) * self.local_batch)
        noise, uniform, drop, flip = training_noise(
            self.config.seed,
            self.images,
            training.batch_size,
            part,
            (3, *batch.image.shape[2:]),
            ranks.device,
        )
        dropped = drop < self.config.diffusion.condition_dropout
        flipped = flip < 0.5 if training.flip else None
        loss_sum = torch.zeros((), device=ranks.device)
        for micro in range(self.accumulation):
            rows = slice(micro * self.micro_batch, (micro + 1) * self.micro_batch)
            losses = self.engine(
                batch.image[rows],
                Drawn(*(None if part is None else part[rows] for part in drawn)),
                dropped[rows],
                None if flipped is None else flipped[rows],
                noise[rows],
                uniform[rows],
            )
            loss = losses.mean()
            self.engine.backward(loss)
            self.engine.step()
            loss_sum += loss.detach()
        self.averages.update()
        return loss_sum / self.accumulation, *self._gradient()

    def _gradient(self) -> tuple[Tensor | float, Tensor | float]:
        """Norm of the last gradient, and 1 where it was not finite and its step left out."""
        if self.guarded:
            optimizer = getattr(self.engine.optimizer, "optimizer", self.engine.optimizer)
            return optimizer.gradient_norm, optimizer.skipped
        return self.engine.get_global_grad_norm(), float(self.engine.optimizer.overflow)

    def _read_record(self) -> Interval:
        """The steps since the last log line; the one host sync, a log interval."""
        interval = self._record.read(self.ranks)
        if interval.skipped and self.ranks.first:
            self._tell_skipped(interval)
        return interval

    def _tell_skipped(self, interval: Interval) -> None:
        """Which images were in the batches without a finite gradient: a line a step in skipped.jsonl."""
        path = self.config.run / "skipped.jsonl"
        with path.open("a", encoding="utf-8") as file:
            for images in interval.skipped:
                ids = self.loader.global_rows(images).tolist()
                file.write(json.dumps({"images": images, "ids": ids}) + "\n")
        say(
            f"train: {len(interval.skipped)} step(s) without a finite gradient were left out up to {self.images:,} "
            f"images; {path} has the ids of their images"
        )

    def _diverged(self, in_a_row: int) -> None:
        """Back to the last checkpoint at half the learning rate, or the end."""
        training, first = self.config.training, self.ranks.first
        factor = self.counters.learning_rate_factor / 2
        self.saver.wait()
        self.ranks.wait()
        last = checkpoint.newest(self.config.run)
        what = f"{in_a_row} steps in a row had no finite gradient at {self.images:,} images"
        if training.when_diverging == "stop" or last is None or factor < LEAST_LEARNING_RATE_FACTOR:
            raise DivergedError(
                f"{what}; the last checkpoint, {last or 'none yet'}, is kept, and {self.config.run / 'skipped.jsonl'} "
                "has the ids of the images: lower training.learning_rate or set training.gradient_clip and run again"
            )
        if first:
            say(f"train: {what}: back to {last} at {factor:g} of the learning rate")
        self.resume()
        self.counters.learning_rate_factor = factor


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

    def write(self, images: int, interval: Interval, rate: float, waited: float, device: torch.device) -> None:
        """`waited`: seconds since the last line for which the step had no batch."""
        now = time.monotonic()
        seconds, self.last = now - self.last, now
        self.seconds += seconds
        row = {
            "images": images,
            "seconds": round(self.seconds, 3),
            "loss": interval.loss,
            "images_per_second": round((images - self.images) / seconds, 2),
            "learning_rate": rate,
            "loader_share": round(waited / seconds, 4),
            "gradient_norm": interval.gradient_norm,
            "skipped_steps": len(interval.skipped),
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
