from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.subjects import balanced_clusters, draw_clusters

FREQUENCIES = np.array([0.5, 0.0, 0.3, 0.2])


def test_clusters_are_drawn_by_their_frequency() -> None:
    shares = np.bincount(draw_clusters(FREQUENCIES, 20_000, seed=0), minlength=4) / 20_000
    np.testing.assert_allclose(shares, FREQUENCIES, atol=0.02)


@given(images=st.integers(1, 100), seed=st.integers(0, 100))
def test_balanced_clusters_come_equally_often(images: int, seed: int) -> None:
    counts = np.bincount(balanced_clusters(FREQUENCIES, images, seed), minlength=4)[[0, 2, 3]]
    assert counts.sum() == images and counts.max() - counts.min() <= 1


def test_an_image_keeps_its_cluster_however_many_there_are() -> None:
    for draw in (draw_clusters, balanced_clusters):
        many = draw(FREQUENCIES, 50, seed=3)
        np.testing.assert_array_equal(draw(FREQUENCIES, 20, seed=3), many[:20])
        assert (draw(FREQUENCIES, 50, seed=4) != many).any()
