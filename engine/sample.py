"""Draw images with averaged weights at every guidance scale: samples/guidance-<w> in the run folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engine import distributed, exports, telemetry
from engine.batches import Batches, share
from engine.config import Config
from engine.console import run_program
from engine.distributed import Ranks
from engine.drawing import Painter, Trained, average_folder, open_run
from engine.guidance import make_guides
from engine.layout_file import read_layouts
from engine.points import Point, points
from engine.sampling_config import SweepConfig
from engine.sheets import image_sheet, layout_lines, layout_sheet
from engine.subjects import Subjects, choose_subjects, example_subjects, tell
from sgdm.files import atomic_write, fingerprint, sha256_file
from sgdm.models.pretrained import WEIGHTS
from sgdm.progress import Advance

WAY = 9
"""Images on the way from one cluster to another, both ends among them."""
WAYS = 8
"""Ways of a page, each from noise of its own."""


class Samples(NamedTuple):
    """The samples of one guidance scale, drawn or to be drawn."""

    point: Point
    stem: Path
    """Their path, without what the format adds."""
    key: str
    """Digest of everything that decides them."""

    @property
    def examples(self) -> Path:
        """Images of a few layouts several times over, where layouts guide."""
        return self.stem.with_name(f"{self.stem.name}-examples.npz")


def plan_samples(config: Config, trained: Trained) -> list[Samples]:
    """ValueError where the average that is to draw is not there."""
    alone = dataclasses.replace(config, sweep=SweepConfig())
    planned: list[Samples] = []
    asked = points(alone)
    weights = sha256_file(average_folder(config, trained, asked[0].ema) / WEIGHTS)  # one average draws them all
    for point in asked:
        key = trained.key(point, weights)
        stem = config.run / "samples" / f"guidance-{point.guidance_scale:g}"
        planned.append(Samples(point, stem, fingerprint(key, config.sampling.images)))
    return planned


def run(config: Config) -> None:
    trained = open_run(config)
    planned = plan_samples(config, trained)
    if config.sampling.layout is not None:
        draw_layouts(config, trained, planned, config.sampling.layout)
        return
    if config.sampling.interpolate is not None:
        draw_interpolation(config, trained, planned, *config.sampling.interpolate)
        return
    format, images = config.sampling.format, config.sampling.images
    missing = [samples for samples in planned if exports.find(format, samples.stem, samples.key) is None]
    ranks = distributed.join()
    if not missing:
        if ranks.first:
            telemetry.skip("sample", config.run / "samples")
        return
    with telemetry.stage(config, "sample", visible=ranks.first) as record:
        painter = Painter(config, trained, images, ranks)
        subjects = choose_subjects(config, trained.guidance, images, config.seed, ranks.device)
        examples = example_subjects(config, trained.guidance, ranks.device)
        with telemetry.progress("sample", images * len(missing), visible=ranks.first) as advance:
            for samples in missing:
                painter.use(average_folder(config, trained, samples.point.ema))
                batches = Batches(samples.stem.with_name(f".{samples.stem.name}"), images, samples.key)
                draw_batches(painter, samples.point, subjects, batches, ranks, advance)
                if ranks.first:
                    if examples is not None:
                        _write_examples(painter, samples, examples)
                    exports.export(format, samples.stem, batches, samples.key)
                    batches.remove()
                ranks.wait()
        record.images, record.result = images * len(missing), str(config.run / "samples")


def draw_batches(
    painter: Painter, point: Point, subjects: Subjects | None, batches: Batches, ranks: Ranks, advance: Advance
) -> None:
    """Draws what is not there yet, each process its batches; all are there when it returns."""
    if ranks.first:
        batches.begin()
    ranks.wait()
    missing = batches.missing()
    ranks.wait()  # all have looked before one writes
    advance(batches.count - len(missing))
    for numbers, together in share(missing, painter.batch_size, ranks.rank, ranks.world_size):
        pixels = painter.draw(point, subjects, numbers).permute(0, 2, 3, 1).cpu().numpy()
        batches.write(numbers, {"image": pixels, **tell(subjects, numbers)})
        advance(together)
    ranks.wait()


def _write_examples(painter: Painter, samples: Samples, examples: Subjects) -> None:
    # Numbers after those of the samples: the noise is another.
    numbers = np.arange(len(examples.rows))
    pixels = draw_all(painter, samples.point, examples, numbers)
    with atomic_write(samples.examples) as temporary:
        np.savez(temporary, allow_pickle=False, image=pixels, **tell(examples, numbers))


def draw_all(
    painter: Painter,
    point: Point,
    subjects: Subjects | None,
    numbers: NDArray[np.int64],
    towards: tuple[int, NDArray[np.float32]] | None = None,
) -> NDArray[np.uint8]:
    """The images of these numbers, uint8 [n, H, W, 3], by this process alone. `towards`: see Painter.draw."""
    parts = []
    for start in range(0, len(numbers), painter.batch_size):
        some = slice(start, start + painter.batch_size)
        aim = None if towards is None else (towards[0], towards[1][some])
        parts.append(painter.draw(point, subjects, numbers[some], aim).permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(parts)


def draw_layouts(config: Config, trained: Trained, planned: list[Samples], path: Path) -> None:
    """Images for the layouts of a file, a page of them for every guidance scale."""
    if trained.guidance.layout is None:
        raise ValueError(
            f"{config.run} is not guided by layouts (annotation.layout is none), so {path} cannot be drawn: "
            "train a run with --annotation.layout boxes or segments"
        )
    by_hand = read_layouts(path, config)
    ranks = distributed.join()
    if not ranks.first:
        return
    guides = make_guides(config, by_hand.clusters, by_hand.polygons, ranks.device)
    subjects = Subjects(guides, np.repeat(np.arange(len(by_hand.counts)), by_hand.counts))
    numbers = np.arange(len(subjects.rows))
    painter = Painter(config, trained, len(numbers), distributed.alone(ranks.device))
    with telemetry.progress("sample, layouts", len(numbers) * len(planned)) as advance:
        for samples in planned:
            painter.use(average_folder(config, trained, samples.point.ema))
            pixels = draw_all(painter, samples.point, subjects, numbers)
            advance(len(numbers))
            told = tell(subjects, numbers)
            stem = samples.stem.with_name(f"{path.stem}-{samples.point.guidance_scale:g}")
            with atomic_write(stem.with_name(f"{stem.name}.npz")) as temporary:
                np.savez(temporary, allow_pickle=False, image=pixels, **told)
            page = layout_sheet(layout_lines(told["layout"], pixels, told["row"], config.segments))
            _write_page(stem, page)


def draw_interpolation(config: Config, trained: Trained, planned: list[Samples], first: int, last: int) -> None:
    """Images on the way from one cluster to another, a page for every guidance scale: a line from each noise."""
    if trained.guidance.clusters is None or trained.guidance.layout is not None:
        raise ValueError(
            f"{config.run} is not guided by clusters alone (annotation.layout is {config.annotation.layout}, "
            f"num_clusters {config.annotation.num_clusters}), so there is no way from cluster {first} to {last}: "
            "train a run with --annotation.layout none and --annotation.num-clusters"
        )
    ranks = distributed.join()
    if not ranks.first:
        return
    numbers = np.repeat(np.arange(WAYS), WAY)
    shares = np.tile(np.linspace(0, 1, WAY, dtype=np.float32), WAYS)
    subjects = Subjects(make_guides(config, np.full(WAYS, first), None, ranks.device), np.arange(WAYS))
    painter = Painter(config, trained, len(numbers), distributed.alone(ranks.device))
    with telemetry.progress("sample, interpolation", len(numbers) * len(planned)) as advance:
        for samples in planned:
            painter.use(average_folder(config, trained, samples.point.ema))
            pixels = draw_all(painter, samples.point, subjects, numbers, (last, shares))
            advance(len(numbers))
            stem = samples.stem.with_name(f"clusters-{first}-to-{last}-{samples.point.guidance_scale:g}")
            _write_page(stem, image_sheet(pixels, WAY))


def _write_page(stem: Path, page: NDArray[np.uint8]) -> None:
    path = stem.with_name(f"{stem.name}.png")
    with atomic_write(path) as temporary:
        Image.fromarray(page).save(temporary, format="png")
    telemetry.say(f"sample: {path}")


def main() -> None:
    run_program("sample", run)


if __name__ == "__main__":
    main()
