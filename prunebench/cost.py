"""What judging costs: tokens, calls, money and seconds, added up where they are spent.

Whoever runs tokens on behalf of a method writes into the ledger; authors of methods count nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a method spent beside generating the paths themselves.

    Attributes
    ----------
    verifier_tokens : tokens read or written only to judge, by the generating model, a reward model
        or a server.
    probe_tokens : tokens that the generating model sampled to probe a prefix; they count as
        generator tokens.
    prompt_tokens, completion_tokens : those of `verifier_tokens` that a server was sent and wrote,
        as it reports them; NaN when it does not.
    calls : requests to a server, retries and failed ones included.
    failed_calls : those among them that brought no usable answer.
    cached_calls : answers that came from the disk cache: their tokens and money are counted, since
        that is what the method costs, but nobody paid again and no time was measured.
    money : in the currency of the endpoint's prices, see `priced`; NaN when it is not known.
    seconds : wall time of `score`, NaN when it was not measured.
    """

    verifier_tokens: float = 0.0
    probe_tokens: float = 0.0
    prompt_tokens: float = 0.0
    completion_tokens: float = 0.0
    calls: float = 0.0
    failed_calls: float = 0.0
    cached_calls: float = 0.0
    money: float = 0.0
    seconds: float = 0.0

    @property
    def requests(self) -> float:
        """Calls, those that the cache answered included: what the method takes without one."""
        return self.calls + self.cached_calls

    def priced(self, prompt: float | None, completion: float | None) -> Cost:
        """The same with its money, at prices per million tokens. Scores are stored without, so that
        a new price needs no new score."""
        parts = ((self.prompt_tokens, prompt), (self.completion_tokens, completion))
        money = sum(n * (math.nan if price is None else price) for n, price in parts if n)
        return replace(self, money=money / 1e6)

    def __add__(self, other: Cost) -> Cost:
        return Cost(**{n: getattr(self, n) + getattr(other, n) for n in COST_FIELDS})

    def times(self, factor: float) -> Cost:
        """This cost, scaled."""
        return Cost(**{n: getattr(self, n) * factor for n in COST_FIELDS})


COST_FIELDS = tuple(f.name for f in fields(Cost))


class Ledger:
    """Adds up costs; `spent` is the total since the last `take`."""

    def __init__(self) -> None:
        self.spent = Cost()

    def add(self, **amounts: float) -> None:
        """Write down amounts by the names of `Cost`."""
        self.spent += Cost(**amounts)

    def take(self) -> Cost:
        """What was spent since the last time, and begin anew: an amount that is not known must
        not spoil the sums of others."""
        spent, self.spent = self.spent, Cost()
        return spent
