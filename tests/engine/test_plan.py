from __future__ import annotations

import dataclasses

import pytest

from engine import plan
from engine.memory import Activations
from engine.plan import GPUS, find_gpu, step_time, traffic
from engine.recipes import imagenet64

PARAMETERS = 1_000_000


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the trace of activations."""
    monkeypatch.setattr(plan, "trace_activations", lambda config, device: Activations(100e6, 200e6))
    monkeypatch.setattr(plan, "trace_for_gpu", lambda config: Activations(100e6, 200e6))


@pytest.mark.parametrize(
    ("stage", "accumulation", "sent"),
    [(0, 1, 2), (0, 4, 2), (1, 1, 3), (1, 4, 3), (2, 1, 3), (2, 4, 9), (3, 1, 2), (3, 4, 8)],
)
def test_bytes_sent_in_units_of_the_weights(stage: int, accumulation: int, sent: int) -> None:
    weights = 4 * PARAMETERS * 7 / 8  # a ring of 8 sends all but an eighth
    assert traffic(stage, PARAMETERS, 8, accumulation).total == pytest.approx(sent * weights)
    assert traffic(stage, PARAMETERS, 1, accumulation).total == 0


def test_weights_too_many_to_be_kept_are_gathered_twice() -> None:
    many = 600_000_000
    assert traffic(3, many, 8, 1).all_gather == pytest.approx(2 * 4 * many * 7 / 8)


def test_stages_1_to_3_hide_what_they_send_behind_what_they_compute() -> None:
    config = imagenet64()
    times = [step_time(config, GPUS["h100"], 0.5, stage, PARAMETERS, 8, 1) for stage in range(4)]
    for time in times:
        assert time.compute > time.communication > 0 and time.optimizer > 0
    assert [time.total - time.compute - time.optimizer for time in times] == pytest.approx(
        [times[0].communication, 0, 0, 0]
    )


def test_more_than_a_node_is_as_fast_as_its_network() -> None:
    config, gpu = imagenet64(), GPUS["h100"]
    inside, outside = (step_time(config, gpu, 0.5, 0, PARAMETERS, gpus, 1).communication for gpus in (8, 16))
    assert outside / inside == pytest.approx(gpu.link / gpu.network * (15 / 16) / (7 / 8))


def test_what_is_said(quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    plan.main(["imagenet64", "--gpus", "256", "--gpu", "h100", "--training.batch-size", "1000"])
    said = capsys.readouterr().out
    assert "256 x h100, 1024 images a step, 4 a GPU" in said  # the next batch that divides
    assert "auto chooses ZeRO 0" in said and "PREDICTIONS: 50 % of 989 TFLOP/s assumed" in said
    assert [line.split()[0] for line in said.splitlines() if "1 x 4" in line] == ["0", "1", "2", "3"]


def test_where_not_one_image_fits(
    quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(GPUS, "h100", dataclasses.replace(GPUS["h100"], memory=0.6e9))
    plan.main(["imagenet64", "--gpus", "16"])
    assert capsys.readouterr().out.count("none fits") == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "8", "--gpu", "h10"], "nearest: h100"),
        (["--gpus", "0"], "--gpus is 0"),
        (["--gpus", "8", "--reached", "2"], "--reached is 2"),
        (["imagenet65", "--gpus", "8"], "nearest: imagenet64"),
    ],
)
def test_errors_name_the_way_out(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        plan.main(arguments)
    assert message in capsys.readouterr().err


def test_a_link_of_ones_own() -> None:
    assert find_gpu("a100", imagenet64(), 1e9).network == 1e9


def test_tf32_is_half_as_fast() -> None:
    config = imagenet64()
    fp32 = dataclasses.replace(config, training=dataclasses.replace(config.training, precision="fp32"))
    assert find_gpu("h100", fp32, None).matmul == find_gpu("h100", config, None).matmul / 2


def test_this_machine_is_measured(quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        plan.main(["quickstart", "--gpus", "2", "--gpu", "this"])
    assert "give --link" in capsys.readouterr().err
    plan.main(["quickstart", "--gpus", "1", "--gpu", "this"])
    assert "measured just now" in capsys.readouterr().out
