"""Matches what a method requires with what engine, dataset and mode provide, before loading."""

from __future__ import annotations

from collections.abc import Sequence

from prunebench.errors import Incompatible
from prunebench.types import Capability

ENGINE_REQUIRES = frozenset({Capability.CONTINUE})
"""Launch-Check-Resume itself must be able to continue a prefix (online mode)."""

_REMEDY = {
    Capability.OUTCOME: "only mode=replay knows how a path ends",
    Capability.STEP_CHECK: "only dataset=arithmetic and arithmetic_hard know the truth of a step",
    Capability.ENDPOINT: "name the server that judges with endpoint=local or another one of "
    "'prunebench list endpoints'",
    Capability.EARLY_ANSWERS: "only imported paths may hold them (docs/traces.md)",
    Capability.CONTINUE: "the engine must be able to resume a path",
}


OF_ENGINES = frozenset(Capability) - {
    Capability.OUTCOME,
    Capability.STEP_CHECK,
    Capability.ENDPOINT,
    Capability.EARLY_ANSWERS,
}
"""What an engine can give; the rest comes from mode, dataset, endpoint or imported paths."""


def verdict(lacking: Sequence[str]) -> str:
    """One place of the table of methods and engines."""
    return f"needs {', '.join(lacking)}" if lacking else "yes"


def missing(requires: frozenset[Capability], provides: frozenset[Capability]) -> list[Capability]:
    """What is required and not provided, in the order of `Capability`."""
    return [c for c in Capability if c in requires and c not in provides]


def check(
    method: str,
    requires: frozenset[Capability],
    *,
    backend: str,
    provides: frozenset[Capability],
    providers: dict[str, frozenset[Capability]],
) -> None:
    """Raise `Incompatible`, naming both sides and what to use instead.

    `providers` maps every known backend to what it provides, for the remedy.
    """
    lacking = missing(requires, provides)
    if not lacking:
        return
    remedies = [f"{c.value}: {_REMEDY[c]}" for c in lacking if c in _REMEDY]
    able = [name for name, has in providers.items() if not missing(requires - _REMEDY.keys(), has)]
    if backend not in able and able:
        remedies.append(f"try backend={able[0]}")
    raise Incompatible(
        f"The method {method!r} (requires: {_names(requires)}) cannot run on backend {backend!r} "
        f"(provides: {_names(provides)}). Missing: {_names(lacking)}. "
        + "; ".join(remedies).capitalize()
        + ".",
        lacking=[c.value for c in lacking],
    )


def _names(capabilities) -> str:
    return ", ".join(c.value for c in Capability if c in capabilities) or "nothing"
