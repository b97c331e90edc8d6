"""Cluster ids that are made, not found: controls that say what guidance by clusters is worth.

random: as many ids as clusters, but nothing in them. labels: what people know. split-labels: labels, each divided at
random into several ids, so that as many ids as clusters say no more than labels do.
"""

from __future__ import annotations

import numpy as np

from sgdm.annotate.names import Control


def control_ids(control: Control, labels: np.ndarray, num_clusters: int, seed: int) -> np.ndarray:
    """int32 [N], 0 .. K-1: the ids of a control, for images whose labels are int [N], -1 where there is none.

    The ids of `random`, and of the images of a label in `split-labels`, are as frequent as each other, give or take
    an image. `labels` numbers the labels that occur, ascending. ValueError where K does not suit the labels, and
    where an id would stay without an image.
    """
    random = np.random.default_rng(seed)
    if control == "random":
        if not 1 <= num_clusters <= len(labels):
            raise ValueError(
                f"{num_clusters} random ids cannot be given to {len(labels)} images: choose num_clusters between 1 and "
                f"{len(labels)}"
            )
        return random.permutation(len(labels)).astype(np.int32) % num_clusters
    numbers, num_labels = _numbered(control, labels)
    if control == "labels":
        if num_clusters != num_labels:
            raise ValueError(
                f"num_clusters is {num_clusters}, but the images have {num_labels} labels: choose {num_labels} for the "
                "control labels"
            )
        return numbers
    return _split(numbers, num_labels, num_clusters, random)


def _split(numbers: np.ndarray, num_labels: int, num_clusters: int, random: np.random.Generator) -> np.ndarray:
    parts, rest = divmod(num_clusters, num_labels)
    if rest or not parts:
        raise ValueError(
            f"num_clusters is {num_clusters}, but the images have {num_labels} labels: choose a multiple of "
            f"{num_labels} for the control split-labels"
        )
    counts = np.bincount(numbers)
    if counts.min() < parts:
        raise ValueError(
            f"num_clusters is {num_clusters}, {parts} for each of {num_labels} labels, but a label has only "
            f"{counts.min()} images: choose at most {num_labels * int(counts.min())} for the control split-labels"
        )
    shuffled = random.permutation(len(numbers))
    by_label = shuffled[np.argsort(numbers[shuffled], kind="stable")]
    place = np.arange(len(numbers)) - np.repeat(np.cumsum(counts) - counts, counts)
    ids = np.empty(len(numbers), np.int32)
    ids[by_label] = numbers[by_label] * parts + place % parts
    return ids


def _numbered(control: Control, labels: np.ndarray) -> tuple[np.ndarray, int]:
    """int32 [N], 0 .. L-1, and L."""
    without = int((labels < 0).sum())
    if without:
        raise ValueError(
            f"{without} of {len(labels)} images have no label: the control {control} needs them all, random needs none"
        )
    present, numbers = np.unique(labels, return_inverse=True)
    return numbers.astype(np.int32), len(present)
