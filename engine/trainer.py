"""The training run: batches in, weights and their averages out. Time is counted in images seen."""

from __future__ import annotations

import json
import math
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import deepspeed
import numpy as np
import torch
from torch import Tensor

from engine import checkpoint, snapshots
from engine.agreement import GO_ON, SAVE_AND_STOP, Agreement
from engine.averages import Averages, length_name
from engine.checkpoint import Counters, Saver
from engine.collectives import timed_collectives
from engine.compilation import CompileReport, choose, compile_report
from engine.config import Config, to_plain
from engine.config_error import ConfigError
from engine.distributed import Ranks, computes_in_bf16
from engine.memory import find_accumulation, free_bytes
from engine.meters import Meters
from engine.optimizer import GuardedAdamW
from engine.peak import peak_images_per_second
from engine.profiling import profiled
from engine.run_log import Row, RunLog, summary
from engine.shards import make_shards
from engine.skipped import SkippedSteps
from engine.step import TrainingStep
from engine.stopping import Stop, Stopping
from engine.telemetry import progress, say
from engine.zero import check_stage, choose_stage, deepspeed_config, guards_itself, least_device_bytes
from sgdm.data.guides import Drawn, Guides, guided, one_ahead
from sgdm.data.loader import Batch, Loader
from sgdm.diffusion.noise import training_noise
from sgdm.diffusion.objective import make_objective
from sgdm.models.unet import UNet

LEAST_LEARNING_RATE_FACTOR = 1 / 16
"""Below it a run that diverges is beyond halving its learning rate."""


class DivergedError(ValueError):
    """Steps without a finite gradient, again and again."""


class _DivergingError(Exception):
    """As many in a row as training.skipped_in_a_row."""


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
        self.stage, reason = choose_stage(training, parameters, ranks.world_size, least_device_bytes(ranks))
        check_stage(training, self.stage)
        self.accumulation = training.accumulation or self._find_accumulation(parameters)
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
        self.averages = Averages(self.shards.masters, training.ema_decays, training.ema_lengths)
        self.trained_on = trained_on
        self.saver = Saver(config, trained_on, ranks)
        self.counters = Counters(accumulation=self.accumulation)
        self.meters = Meters(ranks.device, traced=training.profile is not None)
        self.peak = peak_images_per_second(config.network, ranks.device, bf16) * ranks.world_size
        self._skipped = SkippedSteps()
        if ranks.first:
            say(
                f"train: {parameters / 1e6:.2f} M parameters, {ranks.world_size} process(es) on {ranks.device.type}, "
                f"{self.accumulation} x {self.micro_batch} images each a step, {'bf16' if bf16 else 'fp32'}, "
                f"{f'compiled ({self.compilation.choice})' if self.compilation.compiles else 'eager'}"
            )
            say(f"train: ZeRO {self.stage}: {reason}")
            if self.compilation.note:
                say(f"train: {self.compilation.note}")

    def _find_accumulation(self, parameters: int) -> int:
        """That of the last checkpoint, so that a run goes on bit for bit; else what the memory allows."""
        last = checkpoint.newest(self.config.run)
        before = None if last is None else checkpoint.accumulation_of(last, self.ranks.world_size)
        free = free_bytes(self.ranks)
        return before or find_accumulation(self.config, parameters, self.stage, self.ranks, free)

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
        last, self.counters, damaged = checkpoint.load_newest(
            self.config, self.shards, self.averages, self.trained_on, self.ranks
        )
        if self.ranks.first:
            for line in damaged:
                say(f"train: {line}: going on from the one before it")
            if last is not None:
                say(f"train: going on from {last}")
            snapshots.forget_after(self.config.run, self.images)
        self.counters.accumulation = self.accumulation

    @property
    def images(self) -> int:
        """Seen so far."""
        return self.counters.images

    @property
    def _finished(self) -> bool:
        return self.images >= self.config.training.images

    def train(self, stopping: Stopping, agreement: Agreement) -> Path:
        """Runs to training.images; returns the last checkpoint. Raises Stop where it is asked to, when all is saved."""
        while True:
            try:
                with ExitStack() as stack:
                    return self._train(stack, stopping, agreement)
            except _DivergingError as error:
                self._roll_back(str(error))

    def _train(self, stack: ExitStack, stopping: Stopping, agreement: Agreement) -> Path:
        training, ranks = self.config.training, self.ranks
        log = None
        if ranks.first:
            plain = to_plain(self.config) if training.wandb else None
            log = stack.enter_context(RunLog(self.config.run, self.images, self.peak, ranks.device, plain))
        step_done = stack.enter_context(profiled(training.profiled_steps, self.config.run, ranks))
        stack.enter_context(timed_collectives(self.meters))
        advance = stack.enter_context(progress("train", training.images, self.images, visible=ranks.first))
        saved = self.images
        losses: list[float] = []
        batches = one_ahead(guided(self.loader.train(self.images), self.guides))
        stack.callback(batches.close)
        while not self._finished:
            if agreement.agree(SAVE_AND_STOP if stopping.asked else GO_ON) == SAVE_AND_STOP:
                if self.images > saved:
                    self._log_interval(log)
                    self._save(losses)
                self._stop(stopping.asked)
            with self.meters.range("data"):
                batch, drawn = next(batches)
            self._step(batch, drawn)
            step_done()
            self.counters.images += training.batch_size
            self.saver.check()
            saves = self._is_due(training.checkpoint_images)
            if saves or self._is_due(training.log_images):
                row = self._log_interval(log)
                if row is not None:
                    losses.append(row["loss"])
                    advance.suffix = summary(row) if log is not None else ""
            advance(training.batch_size)
            if self.averages.lengths and self._is_due(training.snapshot_images):
                self._take_snapshot()
            if saves:
                last = self._save(losses)
                saved, losses = self.images, []
        self.saver.wait()
        ranks.wait()  # what the first process completes is of all
        return last

    def _log_interval(self, log: RunLog | None) -> Row | None:
        """The line of the steps since the last one, None where all of them were left out; the one host sync."""
        reading = self.meters.read(torch.distributed.all_reduce if self.ranks.world_size > 1 else None)
        self._check_skipped()
        if not math.isfinite(reading["loss"]):
            return None
        return reading if log is None else log.write(self.images, self._last_rate, reading)

    def _save(self, losses: list[float]) -> Path:
        """losses: of the lines since the checkpoint before."""
        self.counters.loss = float(np.mean(losses)) if losses else None
        return self.saver.save(self.shards, self.averages, self.counters)

    def _is_due(self, every: int) -> bool:
        """Whether the last step came to a multiple of `every` images, or to the end: no matter where a start was."""
        return self.images // every != (self.images - self.config.training.batch_size) // every or self._finished

    def _step(self, batch: Batch, drawn: Drawn) -> None:
        """One optimizer step over this process's part of the global batch."""
        training, ranks = self.config.training, self.ranks
        # Dropout: another mask on every process and at every step, and the same one after a resume.
        seeds = np.random.SeedSequence((self.config.seed, self.images, ranks.rank))
        torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0]))
        self._last_rate = learning_rate(self.config, self.images) * self.counters.learning_rate_factor
        for group in self.engine.optimizer.param_groups:
            group["lr"] = self._last_rate
        first_image = self.images + ranks.rank * self.local_batch
        shape = (3, *batch.image.shape[2:])
        noise, uniform, drop, flip = training_noise(
            self.config.seed, first_image, self.local_batch, shape, ranks.device
        )
        dropped = drop < self.config.diffusion.condition_dropout
        flipped = flip < 0.5 if training.flip else None
        for micro in range(self.accumulation):
            rows = slice(micro * self.micro_batch, (micro + 1) * self.micro_batch)
            with self.meters.range("forward"):
                losses = self.engine(
                    batch.image[rows],
                    Drawn(*(None if part is None else part[rows] for part in drawn)),
                    dropped[rows],
                    None if flipped is None else flipped[rows],
                    noise[rows],
                    uniform[rows],
                )
                self.meters.add(losses, uniform[rows])
            with self.meters.range("backward"):
                self.engine.backward(losses.mean())
            with self.meters.range("optimizer"):
                self.engine.step()
            self._report_compilation()
        with self.meters.range("optimizer"):
            self.averages.update(self.images + training.batch_size)
        gradient_norm, skipped = self._gradient()
        self.meters.step(gradient_norm, skipped)
        self._skipped.add(self.images, skipped)

    def _report_compilation(self) -> None:
        """After the first step, what compiling took."""
        if self.compilation.compiles and self.compile_report is None:
            self.compile_report = compile_report()
            if self.ranks.first:
                say(f"train: compiled {self.compile_report}")

    def _gradient(self) -> tuple[Tensor, Tensor]:
        """Norm of the last gradient, float32, and whether its step was left out, bool; scalars on the device."""
        if self.guarded:
            optimizer = getattr(self.engine.optimizer, "optimizer", self.engine.optimizer)
            return optimizer.gradient_norm, optimizer.skipped
        # DeepSpeed knows on the host.
        norm = torch.as_tensor(self.engine.get_global_grad_norm(), dtype=torch.float32, device=self.ranks.device)
        return norm, torch.tensor(self.engine.optimizer.overflow, device=self.ranks.device)

    def _check_skipped(self) -> None:
        skipped = self._skipped.read()
        if skipped.images and self.ranks.first:
            self._tell_skipped(skipped.images)
        if skipped.in_a_row >= self.config.training.skipped_in_a_row:
            raise _DivergingError(f"{skipped.in_a_row} steps in a row had no finite gradient at {self.images:,} images")

    def _tell_skipped(self, skipped: list[int]) -> None:
        """Which images were in the batches without a finite gradient: a line a step in skipped.jsonl."""
        path = self.config.run / "skipped.jsonl"
        with path.open("a", encoding="utf-8") as file:
            for images in skipped:
                ids = self.loader.global_rows(images).tolist()
                file.write(json.dumps({"images": images, "ids": ids}) + "\n")
        say(
            f"train: {len(skipped)} step(s) without a finite gradient were left out up to {self.images:,} "
            f"images; {path} has the ids of their images"
        )

    def _take_snapshot(self) -> None:
        """For averages that are made after training (sgdm ema)."""
        networks = {}
        for length in self.averages.lengths:
            tensors = checkpoint.gather(self.shards, self.averages.shards[length_name(length)], 0, self.ranks)
            if self.ranks.first:
                networks[length] = checkpoint.make_network(self.config, tensors)
        if self.ranks.first:
            snapshots.save(self.config.run, self.images, networks)

    def _stop(self, signal: str | None) -> NoReturn:
        """Leaves with the status that asks to be started again."""
        self.saver.wait()
        self.ranks.wait()
        raise Stop(
            f"asked to stop ({signal or 'another process was'}) at {self.images:,} images; saved in "
            f"{checkpoint.newest(self.config.run)}: the same command goes on"
        )

    def _roll_back(self, what: str) -> None:
        """To the last checkpoint, at half the learning rate; DivergedError where that is not to be, or of no use."""
        training = self.config.training
        factor = self.counters.learning_rate_factor / 2
        self.saver.wait()
        self.ranks.wait()
        last = checkpoint.newest(self.config.run)
        if training.when_diverging == "stop" or last is None or factor < LEAST_LEARNING_RATE_FACTOR:
            raise DivergedError(
                f"{what}; the last checkpoint, {last or 'none yet'}, is kept, and {self.config.run / 'skipped.jsonl'} "
                "has the ids of the images: lower training.learning_rate or set training.gradient_clip and run again"
            )
        if self.ranks.first:
            say(f"train: {what}: back to {last} at {factor:g} of the learning rate")
        self._skipped = SkippedSteps()
        self.resume()
        self.counters.learning_rate_factor = factor
