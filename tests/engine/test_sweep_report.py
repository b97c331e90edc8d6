from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markupsafe import Markup

from engine import charts
from engine.sweep_report import sweep_section

NETWORK = "efficientnet-lite0 (ImageNet, 96 px)"
INCEPTION = "Inception-v3 2015-12-05 (clean-fid, 299 px)"
SCALES, STEPS, SAMPLERS = (0.0, 1.0, 2.0, 4.0), (18, 32, 50), ("ddim", "dpmpp")


def make_row(
    scale: float = 1.0, steps: int = 32, sampler: str = "ddim", seed: int = 0, **changes: Any
) -> dict[str, Any]:
    """Nearest to the reference at w = 2, 50 steps, dpmpp; seeds differ by 1."""
    distance = 20 + 8 * abs(scale - 2) + 90 / steps + 3 * (sampler == "ddim") + seed
    return {
        "key": f"{scale:g}-{steps}-{sampler}-{seed}-{len(changes)}",
        "guidance_scale": scale,
        "steps": steps,
        "sampler": sampler,
        "ema": 0.9999,
        "eta": 0.0,
        "interval_low": None,
        "interval_high": None,
        "seed": seed,
        "trained_images": 32000,
        "checkpoint": "0a1b2c3d",
        "guidance": "classifier-free",
        "subjects": "clusters by frequency",
        "protocol": "custom",
        "images": 1000,
        "reference": "val",
        "reference_images": 2000,
        "network": NETWORK,
        "frechet_distance": distance,
        "spatial_frechet_distance": distance / 2,
        "kernel_distance": distance / 100,
        "inception_score": 3 + scale,
        "precision": 0.5,
        "recall": 0.4,
        "density": 0.6,
        "coverage": 0.3,
        "backbone": None,
        "backbone_frechet_distance": None,
        "replica_share": 0.3,
        "evaluations": 2 * steps,
        "seconds": 10.0,
        "images_per_second": 100.0,
    } | changes


def grid(seeds: int = 1, **changes: Any) -> list[dict[str, Any]]:
    points = itertools.product(SCALES, STEPS, SAMPLERS, range(seeds))
    return [make_row(*point, **changes) for point in points]


class Drawn:
    """The charts that a section asks for, by title without the network and by axis."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: dict[tuple[str, str], tuple[charts.Across, list[charts.Line], float]] = {}
        monkeypatch.setattr(charts, "lines_chart", self._draw)

    def _draw(self, title: str, across: charts.Across, lines: list[charts.Line], best: float, _: bool) -> Markup:
        self.calls[title.split(" (")[0], across.name] = across, list(lines), best
        return Markup("<svg></svg>")

    def lines(self, title: str, axis: str) -> list[charts.Line]:
        return self.calls[title, axis][1]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    return Drawn(monkeypatch)


def test_every_axis_of_several_values_has_its_charts_through_the_best_point(drawn: Drawn) -> None:
    (group,) = sweep_section(grid(), {})
    assert [axis["name"] for axis in group["axes"]] == ["guidance scale w", "steps", "sampler"]
    titles = ("Fréchet distance", "Kernel distance", "Inception-style score", "Fidelity and diversity")
    assert set(drawn.calls) == {(title, axis["name"]) for title in titles for axis in group["axes"]}
    own = drawn.lines("Fréchet distance", "guidance scale w")[0]
    assert own.places == list(SCALES)
    assert own.values == [make_row(scale, 50, "dpmpp")["frechet_distance"] for scale in SCALES]
    across, _, best = drawn.calls["Kernel distance", "steps"]
    assert best == 50 and list(across.ticks.values()) == ["18", "32", "50"] and across.joined
    across, _, best = drawn.calls["Kernel distance", "sampler"]
    assert across.ticks == {0: "ddim", 1: "dpmpp"} and best == 1 and not across.joined


def test_the_best_point_is_told_in_words(drawn: Drawn) -> None:
    (group,) = sweep_section(grid(), {})
    assert group["best"]["words"] == "w = 2, 50 steps, dpmpp, EMA 0.9999, eta 0, guided everywhere"
    assert group["best"]["value"] == pytest.approx(21.8) and group["best"]["name"] == "Fréchet distance"
    assert group["fixed"] == "EMA 0.9999, eta 0, guided everywhere"
    provenance = f"{NETWORK} features, 1,000 samples against 2,000 val images, protocol custom"
    conditions = (
        "After 32,000 training images (checkpoint 0a1b2c3d); asked for clusters by frequency; guidance classifier-free"
    )
    assert (group["provenance"], group["conditions"]) == (provenance, conditions)
    assert group["count"] == 24 and len(group["table"]["rows"]) == 10


def test_the_context_is_the_other_axis_that_matters_most_and_pale(drawn: Drawn) -> None:
    sweep_section(grid(), {})
    lines = drawn.lines("Fréchet distance", "guidance scale w")  # 3.2 along the steps, 3 along the samplers
    assert [line.name for line in lines] == ["50 steps", "18 steps", "32 steps"]
    assert [line.pale for line in lines] == [False, True, True]
    lines = drawn.lines("Fréchet distance", "steps")  # 16 along the guidance scale
    assert [line.name for line in lines] == ["w = 2", "w = 0", "w = 1", "w = 4"]
    assert len(drawn.lines("Inception-style score", "steps")) == 1
    rows = [make_row(scale, steps) for scale in range(9) for steps in STEPS]
    sweep_section([row | {"guidance_scale": float(row["guidance_scale"])} for row in rows], {})
    assert [line.name for line in drawn.lines("Fréchet distance", "steps")] == ["w = 2", "w = 0", "w = 1", "w = 3"]


def test_bars_over_seeds_only_where_there_are_several(drawn: Drawn) -> None:
    (group,) = sweep_section(grid(seeds=1), {})
    assert not any(line.deviations for _, lines, _ in drawn.calls.values() for line in lines)
    assert "bars" not in group["axes"][0]["figures"][0][1] and group["best"]["deviation"] is None
    assert "±" not in str(group["table"])
    (group,) = sweep_section(grid(seeds=3), {})
    own, *context = drawn.lines("Fréchet distance", "steps")
    assert own.deviations == pytest.approx([1, 1, 1]) and not any(line.deviations for line in context)
    assert own.values[2] == pytest.approx(21.8 + 1)  # the mean of the seeds
    assert "bars: standard deviation over 3 seeds" in group["axes"][0]["figures"][0][1]
    assert (group["best"]["deviation"], group["best"]["seeds"]) == (pytest.approx(1), 3)
    assert group["table"]["rows"][0][1][0][0] == "22.80 ± 1.00"
    mixed = [*grid(), make_row(2.0, 50, "dpmpp", seed=1)]
    (group,) = sweep_section(mixed, {})
    assert np.isnan(drawn.lines("Fréchet distance", "steps")[0].deviations).tolist() == [True, True, False]
    assert "over 1 to 2 seeds" in group["axes"][1]["figures"][0][1]


@pytest.mark.parametrize(
    "other",
    [
        {"network": INCEPTION},
        {"images": 50000},
        {"reference": "train"},
        {"reference_images": 900},
        {"backbone": "dino"},
        {"trained_images": 64000},
        {"checkpoint": "ffffffff"},
        {"guidance": "autoguidance by other"},
        {"subjects": "all clusters alike"},
    ],
)
def test_rows_of_another_judge_are_another_group(drawn: Drawn, other: dict[str, Any]) -> None:
    rows = [make_row(scale) for scale in SCALES]
    far = [make_row(scale, frechet_distance=1.0 + scale, **other) for scale in (0.0, 1.0)]
    first, second = sweep_section([*rows[:2], *far, *rows[2:]], {})
    assert (first["count"], second["count"]) == (4, 2)
    assert first["best"]["words"].startswith("w = 2,") and second["best"]["words"].startswith("w = 0,")
    assert (
        second["best"]["value"] == 1.0
        and first["provenance"] + first["conditions"] != second["provenance"] + second["conditions"]
    )


def test_only_distances_of_inception_are_called_fid(drawn: Drawn) -> None:
    both = [make_row(0.0), make_row(1.0), make_row(0.0, network=INCEPTION), make_row(1.0, network=INCEPTION)]
    ours, inception = sweep_section(both, {})
    assert (ours["best"]["name"], inception["best"]["name"]) == ("Fréchet distance", "FID")
    assert "FID" not in str(ours["table"]) and "FID" in str(inception["table"]["headings"])
    backbone = {"backbone": "dino-s", "backbone_frechet_distance": 500.0}
    (group,) = sweep_section([make_row(scale, **backbone) for scale in SCALES], {})
    assert ("Fréchet distance, dino-s", "↓") in group["table"]["headings"]
    assert group["conditions"].endswith("; backbone dino-s")


def test_two_protocols_of_one_judge_are_named_together(drawn: Drawn) -> None:
    (group,) = sweep_section([make_row(0.0), make_row(2.0, protocol="paper")], {})
    assert "protocols custom and paper" in group["provenance"]


def test_without_a_frechet_distance_the_kernel_distance_ranks_and_the_reason_is_told(drawn: Drawn) -> None:
    rows = grid(frechet_distance=None, spatial_frechet_distance=None, reference_images=900)
    (group,) = sweep_section(rows, {})
    assert group["best"]["name"] == "Kernel distance" and group["best"]["words"].startswith("w = 2, 50 steps, dpmpp")
    assert "900 real images" in group["note"]
    assert ("Fréchet distance", "steps") not in drawn.calls and len(drawn.lines("Kernel distance", "steps")) == 4
    assert not any("Fréchet" in name for name, _ in group["table"]["headings"])
    assert sweep_section(grid(), {})[0]["note"] == ""


def test_holes_of_a_search_are_left_out(drawn: Drawn) -> None:
    rows = [row for row in grid() if not (row["guidance_scale"] == 1 and row["steps"] != 18)]
    sweep_section(rows, {})
    own = drawn.lines("Fréchet distance", "guidance scale w")[0]
    assert own.places == [0, 2, 4] and len(own.values) == 3
    assert drawn.lines("Fréchet distance", "guidance scale w")[1].places == list(SCALES)


def test_where_a_search_left_the_best_point_alone_the_best_at_each_value_is_drawn(drawn: Drawn) -> None:
    rows = [make_row(0.0, 18), make_row(4.0, 18), make_row(0.0, 32), make_row(2.0, 50)]
    (group,) = sweep_section(rows, {})
    (own,) = drawn.lines("Fréchet distance", "guidance scale w")
    assert own.places == [0, 2, 4]
    assert own.values == [rows[2]["frechet_distance"], rows[3]["frechet_distance"], rows[1]["frechet_distance"]]
    assert "best found at each value" in group["axes"][0]["figures"][0][1]


def test_intervals_and_averages_are_axes_too(drawn: Drawn) -> None:
    rows = [make_row(ema=ema) for ema in (0.9999, 0.999)]
    rows += [make_row(interval_low=low, interval_high=5.0, key=str(low)) for low in (1.5, 0.25)]
    (group,) = sweep_section(rows, {})
    assert [axis["name"] for axis in group["axes"]] == ["average of the weights", "guidance interval"]
    across, _, _ = drawn.calls["Kernel distance", "guidance interval"]
    assert across.ticks == {0: "everywhere", 1: "σ 0.25–5", 2: "σ 1.5–5"} and not across.joined
    legend = [line.name for line in drawn.lines("Fréchet distance", "average of the weights")]
    assert legend == ["everywhere", "σ 0.25–5", "σ 1.5–5"]
    across, _, _ = drawn.calls["Kernel distance", "average of the weights"]
    assert across.ticks == {0: "0.999", 1: "0.9999"} and across.joined


def test_many_steps_are_drawn_on_a_logarithmic_axis(drawn: Drawn) -> None:
    sweep_section([make_row(steps=steps) for steps in (10, 50, 250)], {})
    assert drawn.calls["Kernel distance", "steps"][0].logarithmic
    sweep_section([make_row(steps=steps) for steps in STEPS], {})
    assert not drawn.calls["Kernel distance", "steps"][0].logarithmic


def test_the_best_of_a_column_is_marked_where_it_tells_something(drawn: Drawn) -> None:
    (group,) = sweep_section([make_row(scale, precision=0.5 + scale / 10) for scale in SCALES], {})
    marked = {
        name: [label for label, cells in group["table"]["rows"] if cells[column][1]]
        for column, (name, _) in enumerate(group["table"]["headings"])
    }
    assert marked["Fréchet distance"] == marked["Kernel distance"] == ["w = 2"]
    assert marked["Precision"] == ["w = 4"]  # more is better
    assert marked["Recall"] == marked["Evaluations an image"] == []  # all are equal


def test_a_single_point_is_a_table_without_charts(drawn: Drawn) -> None:
    (group,) = sweep_section([make_row()], {})
    assert group["axes"] == [] and not drawn.calls and group["count"] == 1
    assert group["table"]["rows"][0][0].startswith("w = 1, 32 steps, ddim")


def test_panels_show_the_extremes_of_guidance_and_the_fewest_steps(drawn: Drawn, tmp_path: Path) -> None:
    rows = grid(seeds=2)
    grids = {row["key"]: tmp_path / f"{row['key']}.npz" for row in rows}
    for path in grids.values():
        np.savez(path, image=np.zeros((70, 8, 8, 3), np.uint8))
    (group,) = sweep_section(rows, grids)
    told = [(panel["name"], panel["words"]) for panel in group["panels"]]
    assert told == [
        ("Best", "w = 2, 50 steps, dpmpp"),
        ("Least guidance", "w = 0, 50 steps, dpmpp"),
        ("Most guidance", "w = 4, 50 steps, dpmpp"),
        ("Fewest steps", "w = 2, 18 steps, dpmpp"),
    ]
    assert [panel["best"] for panel in group["panels"]] == [True, False, False, False]
    (group,) = sweep_section([row for row in rows if row["guidance_scale"] <= 2], grids)
    assert [panel["name"] for panel in group["panels"]] == ["Best, most guidance", "Least guidance", "Fewest steps"]
    del grids["0-50-dpmpp-0-0"]
    (group,) = sweep_section(rows, grids)
    assert "Least guidance" not in [panel["name"] for panel in group["panels"]]


def paths(figure: Markup) -> int:
    return len(re.findall("<path", figure))


def test_a_chart_has_bars_rings_and_lines_as_asked() -> None:
    across = charts.Across("w", {0: "0", 1: "1"})
    line, barred = charts.Line("a", [0, 1], [3, 2.37]), charts.Line("a", [0, 1], [3, 2.37], [0.5, float("nan")])
    plain = charts.lines_chart("T", across, [line])
    assert paths(charts.lines_chart("T", across, [barred])) > paths(plain)
    ringed = charts.lines_chart("T", across, [line], best=1)
    assert "var(--ink)" in ringed.replace("fill: var(--ink)", "") and ">2.37<" in ringed and ">2.37<" not in plain
    points = charts.lines_chart("T", charts.Across("w", {0: "0", 1: "1"}, joined=False), [line])
    assert paths(points) == paths(plain) - 1
    named = charts.lines_chart("T", across, [line, charts.Line("other", [0], [4], pale=True)])
    assert ">other<" in named and "opacity: 0.55" in named and ">a<" not in plain
