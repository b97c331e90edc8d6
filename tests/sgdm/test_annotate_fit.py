from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sgdm.annotate.fit import fit, schedule, step_generator

STEPS = 200


class KillError(Exception):
    pass


class Student(nn.Module):
    """A line and an average of it that no gradient reaches."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.line = nn.Linear(3, 1)
        self.probe = nn.Linear(3, 1)
        self.average = nn.Linear(3, 1).requires_grad_(False)

    def loss(self, step: int, generator: torch.Generator) -> Tensor:
        x = torch.randn(16, 3, generator=generator)
        truth = x @ torch.tensor([[1.0], [-2.0], [0.5]])
        return (self.line(x) - truth).square().mean() + (self.probe(x) - truth).square().mean()

    def follow(self, step: int) -> None:
        self.average.weight.lerp_(self.line.weight, 0.1)


def train(student: Student, **options: object) -> dict[str, Tensor]:
    fit(student, student.loss, steps=STEPS, batch=16, learning_rate=0.1, seed=3, after_step=student.follow, **options)  # type: ignore[arg-type]
    return student.state_dict()


def test_it_learns_and_the_average_follows() -> None:
    state = train(Student())
    assert torch.allclose(state["line.weight"], torch.tensor([[1.0, -2.0, 0.5]]), atol=0.1)
    assert torch.allclose(state["average.weight"], state["line.weight"], atol=0.5)


@pytest.mark.parametrize(("cycles", "killed", "kept"), [(1, 77, 60), (2, 107, 100)])
def test_a_killed_run_goes_on_to_the_same_weights(tmp_path: Path, cycles: int, killed: int, kept: int) -> None:
    whole, checkpoint, images = train(Student(), cycles=cycles), tmp_path / "fit.pt", []

    def kill(step: int) -> None:
        Student.follow(student, step)
        if step == killed:
            raise KillError

    student = Student()
    student.follow = kill  # type: ignore[method-assign]
    with pytest.raises(KillError):
        train(student, cycles=cycles, checkpoint=checkpoint, steps_a_checkpoint=20)
    again = train(Student(), cycles=cycles, checkpoint=checkpoint, steps_a_checkpoint=20, advance=images.append)
    assert images[0] == kept * 16, "goes on from the last checkpoint"
    assert sum(images) == STEPS * 16
    assert all(torch.equal(again[name], whole[name]) for name in whole)


def test_submodules_may_have_a_rate_of_their_own() -> None:
    student, before = Student(), Student().state_dict()
    state = train(student, learning_rates={"probe": 0.0})
    assert torch.equal(state["probe.weight"], before["probe.weight"])
    assert not torch.equal(state["line.weight"], before["line.weight"])


def test_cycles_are_trainings_one_after_another() -> None:
    def learn(line: nn.Linear, steps: int, cycles: int) -> None:
        fit(line, lambda step, generator: (line(torch.ones(1, 3)) - 1).square().sum(), steps=steps, cycles=cycles,
            batch=1, learning_rate=0.1, momentum=0.5, seed=0)  # fmt: skip

    torch.manual_seed(0)
    once = nn.Linear(3, 1)
    twice = copy.deepcopy(once)
    learn(once, steps=20, cycles=2)
    learn(twice, steps=10, cycles=1)
    learn(twice, steps=10, cycles=1)
    assert torch.equal(once.weight, twice.weight)


def test_a_damaged_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    checkpoint = tmp_path / "fit.pt"
    checkpoint.write_bytes(b"nothing of ours")
    with pytest.raises(ValueError, match=r"fit\.pt is no checkpoint of this training"):
        train(Student(), checkpoint=checkpoint)
    torch.save({"steps": 1, "module": nn.Linear(2, 2).state_dict(), "optimizer": {}}, checkpoint)
    with pytest.raises(ValueError, match=r"fit\.pt is no checkpoint of this training"):
        train(Student(), checkpoint=checkpoint)


def test_a_loss_that_is_no_number_is_named() -> None:
    student = Student()
    with pytest.raises(ValueError, match="the loss is nan at step 0"):
        fit(student, lambda step, generator: student.line.weight.sum() * float("nan"), steps=2, batch=1,
            learning_rate=0.1, seed=0)  # fmt: skip


def test_the_schedule_rises_and_falls_to_nothing() -> None:
    shares = [schedule(step, 100) for step in range(100)]
    assert shares[0] == pytest.approx(0.1)
    assert max(shares) == shares[9] == shares[10] == 1
    assert shares[10:] == sorted(shares[10:], reverse=True)
    assert shares[-1] < 1e-3
    assert schedule(0, 1) == 1


def test_streams_of_steps_and_seeds_differ() -> None:
    cpu = torch.device("cpu")
    draws = {
        float(torch.rand((), generator=step_generator(seed, step, cpu))) for seed in range(20) for step in range(20)
    }
    assert len(draws) == 400
    assert torch.equal(*(torch.rand(4, generator=step_generator(5, 6, cpu)) for _ in range(2)))
