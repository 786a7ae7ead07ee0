"""What methods that compare the layers of the model share. Knows no method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from prunebench.backend import Backend


def count_layers(backend: Backend) -> int:
    """L, the index of the last layer: `hidden_states` has L + 1 entries, from the embeddings to the
    last layer after the final norm. Loads the model."""
    model: Any = backend.model()
    return int(model.config.get_text_config().num_hidden_layers)


def significant(values: np.ndarray, digits: int) -> np.ndarray:
    """Rounded to that many significant digits. NaN, infinities and zeros stay.

    Equal prefixes must tie, and float32 states differ in the last bits with the batch they are in.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        exponent = np.floor(np.log10(np.abs(values)))
    unit = 10.0 ** np.where(np.isfinite(exponent), exponent - digits + 1, 0.0)
    return np.where(np.isfinite(exponent), np.round(values / unit) * unit, values)
