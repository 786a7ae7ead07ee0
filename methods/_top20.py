"""Entropy from the sums over the 20 most likely tokens. Knows no method."""

import numpy as np


def renormalised_entropy(entropy: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """Entropy of p / mass, float64, from the truncated sums `entropy` = -sum p log p and `mass` =
    sum p, in nats."""
    mass = mass.astype(np.float64)
    return entropy / mass + np.log(mass)
