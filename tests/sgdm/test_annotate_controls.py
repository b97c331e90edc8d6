from __future__ import annotations

import numpy as np
import pytest

from sgdm.annotate.agreement import cluster_report
from sgdm.annotate.controls import Control, control_ids

LABELS = np.random.default_rng(0).choice([3, 5, 6, 9], 6000, p=[0.4, 0.3, 0.2, 0.1])


def test_random_ids_know_nothing_of_labels() -> None:
    ids = control_ids("random", LABELS, 40, seed=0)
    report = cluster_report(ids, 40, LABELS)
    assert report["nmi"] < 0.01
    assert abs(report["ari"]) < 0.001
    assert report["purity"] == pytest.approx(0.4, abs=0.03), "the commonest label's share"
    assert report["smallest"] == report["largest"] == 150
    assert cluster_report(control_ids("random", LABELS, 41, seed=0), 41)["smallest"] == 146


def test_labels_are_the_ids() -> None:
    ids = control_ids("labels", LABELS, 4, seed=0)
    report = cluster_report(ids, 4, LABELS)
    assert report["nmi"] == report["ari"] == report["purity"] == pytest.approx(1)
    assert [set(LABELS[ids == number]) for number in range(4)] == [{3}, {5}, {6}, {9}]


def test_split_labels_are_pure_and_tell_no_more() -> None:
    ids = control_ids("split-labels", LABELS, 20, seed=0)
    report = cluster_report(ids, 20, LABELS)
    assert report["purity"] == 1
    assert 0.4 < report["nmi"] < 0.7
    assert report["empty"] == 0
    for number, label in enumerate((3, 5, 6, 9)):
        sizes = np.bincount(ids[label == LABELS], minlength=20)
        assert sizes[5 * number : 5 * number + 5].sum() == sizes.sum()
        assert np.ptp(sizes[5 * number : 5 * number + 5]) <= 1
    # At random: neighbours in the data set are no more often together than others.
    same = (ids[1:] == ids[:-1])[LABELS[1:] == LABELS[:-1]]
    assert same.mean() == pytest.approx(1 / 5, abs=0.03)


@pytest.mark.parametrize("control", ["random", "split-labels"])
def test_the_seed_decides(control: Control) -> None:
    first, again, other = (control_ids(control, LABELS, 20, seed) for seed in (0, 0, 1))
    assert first.dtype == np.int32
    assert np.array_equal(first, again)
    assert (first != other).mean() > 0.5


def test_images_without_a_label_are_counted() -> None:
    labels = LABELS.copy()
    labels[:7] = -1
    for control in ("labels", "split-labels"):
        with pytest.raises(ValueError, match=f"7 of 6000 images have no label: the control {control} needs them"):
            control_ids(control, labels, 4, seed=0)  # type: ignore[arg-type]
    assert len(control_ids("random", labels, 4, seed=0)) == 6000


@pytest.mark.parametrize(
    ("control", "num_clusters", "said"),
    [
        ("labels", 5, "num_clusters is 5, but the images have 4 labels: choose 4"),
        ("split-labels", 10, "num_clusters is 10, but the images have 4 labels: choose a multiple of 4"),
        ("split-labels", 0, "num_clusters is 0, but the images have 4 labels"),
        ("split-labels", 4000, "1000 for each of 4 labels, but a label has only .* images: choose at most"),
        ("random", 6001, "6001 random ids cannot be given to 6000 images"),
    ],
)
def test_what_does_not_fit_is_refused(control: Control, num_clusters: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        control_ids(control, LABELS, num_clusters, seed=0)
