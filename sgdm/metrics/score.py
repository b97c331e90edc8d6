"""Inception Score: are single images of a clear class, and all of them of many classes?"""

from __future__ import annotations

import numpy as np
from scipy.special import log_softmax, logsumexp


def inception_score(logits: np.ndarray, splits: int = 10, seed: int = 0) -> tuple[float, float]:
    """Mean and standard deviation, over `splits`, of exp E KL(p(class | image) || p(class)).

    logits: [N, C]. Images are shuffled first, because a sorted set would put its classes into different splits. A split
    of few images gives a low score (it cannot exceed their number). Salimans et al., arXiv 1606.03498.
    """
    if not np.isfinite(logits).all():
        raise ValueError("logits hold NaN or infinite values; look at the images they come from")
    if not 1 <= splits <= len(logits):
        raise ValueError(f"{len(logits)} images cannot be split into {splits} parts; choose 1 to {len(logits)} splits")
    order = np.random.RandomState(seed).permutation(len(logits))
    scores = []
    for part in range(splits):
        chosen = order[part * len(logits) // splits : (part + 1) * len(logits) // splits]
        log_given = log_softmax(logits[chosen].astype(np.float64), axis=1)
        log_marginal = logsumexp(log_given, axis=0) - np.log(len(chosen))
        divergence = (np.exp(log_given) * (log_given - log_marginal)).sum(axis=1)
        scores.append(np.exp(divergence.mean()))
    return float(np.mean(scores)), float(np.std(scores))
