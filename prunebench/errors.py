"""Every error a user can meet. The message says what was wrong, what was given and what to do.

The command line prints such an error as one sentence and exits with `exit_code`; anything else
that escapes is a bug of prunebench and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PrunebenchError(Exception):
    """Base class. `exit_code` 2: the request was wrong; 1: the request failed while it ran."""

    exit_code = 1


class ConfigError(PrunebenchError):
    """A value or a combination of values in the configuration cannot work."""

    exit_code = 2


class UnknownName(ConfigError):
    """A method, model, dataset, backend or option that does not exist."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join(map(repr, near))}?" if near else ""
        listing = f"Known: {', '.join(known)}." if known else "None is registered."
        super().__init__(" ".join(filter(None, [f"Unknown {kind} {name!r}.", hint, listing])))


class Incompatible(ConfigError):
    """A method needs something that the backend, dataset or mode does not provide: `lacking`."""

    def __init__(self, message: str, lacking: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.lacking = tuple(lacking)


class NotTrained(ConfigError):
    """A learnable method has no trained weights for this model."""


class ModelNotFound(ConfigError):
    """The model's files are not on this machine."""


class DamagedFile(PrunebenchError):
    """A file exists but cannot be read as what it should be."""


class BankMismatch(ConfigError):
    """A trace bank was filled under another configuration."""


class UndeclaredCapability(PrunebenchError):
    """A method read data that its `requires` does not name."""


class ContractViolation(PrunebenchError):
    """A method returned something other than one float64 per path."""


class EndpointError(PrunebenchError):
    """A server cannot answer any request: it is not there, refuses the key or lacks the model."""


class Unavailable(Exception):
    """Something outside did not answer this time; asking again may help. The problem at hand fails
    with this reason, and nothing of it is stored as a score."""


class MissingInput(Exception):
    """A method asked for what the traces do not hold. Asking again gives the same."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{NOT_AVAILABLE} {what}")


NOT_AVAILABLE = "not available: needs"
"""How the reason begins when traces lack what a method needs."""


class ConformanceError(PrunebenchError):
    """`prunebench check` found faults in a method; the message lists them."""
