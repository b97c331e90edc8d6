"""Commute-time embedding of points: what k nearest neighbours say about clusters at every scale.

A random walk over a neighbour graph takes long between clusters and little time within one. With eigenvectors
psi_i and eigenvalues lambda_i of the walk, the time that it takes from a point to another and back is the squared
distance between psi_i / sqrt(1 - lambda_i) (Qiu and Hancock, Clustering and embedding using commute times, PAMI
2007). Its first coordinates tell few large clusters apart, later and shorter ones the parts of these.
"""

from __future__ import annotations

import faiss
import numpy as np
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, eigsh

SMALLEST_GAP = 1e-3  # of an eigenvalue to 1: parts without any link would be infinitely far from each other
TOLERANCE = 1e-3  # relative, of eigenvalues: clusters do not feel a smaller one


def nearest_neighbours(points: np.ndarray, neighbours: int) -> np.ndarray:
    """int64 [N, neighbours]: for each of float32 points [N, D], the others with the largest cosine to it."""
    unit = np.ascontiguousarray(points, np.float32).copy()
    faiss.normalize_L2(unit)
    index: faiss.Index = faiss.IndexFlatIP(unit.shape[1])
    if faiss.get_num_gpus() > 0:
        index = faiss.index_cpu_to_all_gpus(index)
    index.add(unit)
    # The first is the point itself, or a copy of it, which is as good a neighbour as any.
    return index.search(unit, neighbours + 1)[1][:, 1:]


def commute_time_embedding(links: np.ndarray, dimension: int, seed: int) -> np.ndarray:
    """float32 [N, dimension]: the commute-time coordinates of N points, from their nearest neighbours [N, k]."""
    count, neighbours = links.shape
    rows = np.repeat(np.arange(count), neighbours)
    directed = sparse.csr_matrix((np.ones(links.size, np.float32), (rows, links.ravel())), (count, count))
    graph = directed + directed.T
    root_degree = np.sqrt(np.asarray(graph.sum(axis=1), np.float32)).ravel()
    scale = sparse.diags(1 / root_degree)
    walk = (scale @ graph @ scale).tocsr()
    # The first eigenvector is known, and tells nothing: it is taken out, so that the others are found.
    trivial = root_degree / np.linalg.norm(root_degree)
    operator = LinearOperator(
        walk.shape, lambda vector: walk @ vector.ravel() - trivial * (trivial @ vector.ravel()), dtype=np.float32
    )
    start = np.random.default_rng(seed).standard_normal(count, np.float32)
    eigenvalues, eigenvectors = eigsh(operator, k=dimension, which="LA", v0=start, tol=TOLERANCE)
    order = np.argsort(-eigenvalues)
    gaps = np.maximum(1 - eigenvalues[order], SMALLEST_GAP)
    return (eigenvectors[:, order] / root_degree[:, None] / np.sqrt(gaps)).astype(np.float32)
