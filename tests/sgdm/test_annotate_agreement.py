from __future__ import annotations

import numpy as np
import pytest

from sgdm.annotate.agreement import cluster_report, purity


def test_report_of_a_table_done_by_hand() -> None:
    ids = np.array([0, 0, 0, 1, 1, 1], np.int32)
    labels = np.array([0, 0, 1, 1, 1, -1])
    report = cluster_report(ids, 3, labels, repaired=2)
    assert report["empty"] == report["tiny"] == 1
    assert report["largest"] == 3 and report["smallest"] == 0 and report["median"] == 3
    assert report["repaired"] == 2
    assert report["labelled"] == 5
    assert report["purity"] == pytest.approx(4 / 5)
    # Entropies of (3, 2) / 5 both, and their mutual information, in nats.
    entropy = -(0.6 * np.log(0.6) + 0.4 * np.log(0.4))
    mutual = 0.4 * np.log(0.4 / 0.6**1 / 0.4) + 0.2 * np.log(0.2 / 0.6 / 0.6) + 0.4 * np.log(0.4 / 0.4 / 0.6)
    assert report["nmi"] == pytest.approx(mutual / entropy)
    # Of the 10 pairs 2 are together in both, 4 in the one and 4 in the other; 1.6 are by chance.
    assert report["ari"] == pytest.approx((2 - 1.6) / (4 - 1.6))


def test_without_labels_there_is_no_agreement() -> None:
    ids = np.array([0, 0, 1])
    assert not {"purity", "nmi", "ari"} & cluster_report(ids, 2, np.full(3, -1)).keys()
    assert not {"purity", "nmi", "ari"} & cluster_report(ids, 2).keys()


def test_purity_of_ids_and_labels_that_are_far_apart() -> None:
    assert purity(np.array([7, 7, 99_999]), np.array([10**9, 3, 3])) == pytest.approx(2 / 3)
