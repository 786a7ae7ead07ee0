"""Chain of embeddings: the way of a state through the layers. Knows no method and no model.

Between neighbouring layers a state h changes in length and direction:

    M_l = |h_{l+1} - h_l| / |h_L - h_0|    and    A_l = angle(h_l, h_{l+1}) / angle(h_0, h_L),

as in arXiv 2410.13640 and the code of arXiv 2503.01422; h_0 is the embedding layer.
"""

from collections.abc import Iterable

import numpy as np


def chain(layers: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Magnitudes and angles `(L, ...)` of states that arrive layer by layer, each `(..., hidden)`
    float64, from the embeddings on."""
    arriving = iter(layers)
    first = last = next(arriving)
    magnitudes, angles = [], []
    for state in arriving:
        magnitudes.append(np.linalg.norm(state - last, axis=-1))
        angles.append(angle(last, state))
        last = state
    return (
        np.stack(magnitudes) / np.linalg.norm(last - first, axis=-1),
        np.stack(angles) / angle(first, last),
    )


def coe_r(layers: Iterable[np.ndarray]) -> np.ndarray:
    """F = mean over the layers of M_l - A_l: `(...)`."""
    magnitudes, angles = chain(layers)
    return (magnitudes - angles).mean(axis=0)


def coe_c(layers: Iterable[np.ndarray]) -> np.ndarray:
    """Modulus of the mean over the layers of M_l exp(i A_l): `(...)`."""
    magnitudes, angles = chain(layers)
    return np.abs((magnitudes * np.exp(1j * angles)).mean(axis=0))


def angle(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Angle between vectors along the last axis, in [0, pi]."""
    cosine = (a * b).sum(axis=-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
    return np.arccos(np.clip(cosine, -1.0, 1.0))
