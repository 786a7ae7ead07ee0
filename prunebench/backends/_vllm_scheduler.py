"""A scheduler of vLLM that lets requests wait at a number of generated tokens.

A path that waits keeps its cache blocks and takes no part in the computation, so that prefixes can
be checked while nothing moves. When memory runs out, waiting paths give theirs up first, and are
computed again when they go on. Knows requests; knows no method and no problem.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

import time
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler


class Holding:
    """Adds `hold` to a scheduler."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._goals: dict[str, int] = {}

    def hold(self: Any, request_ids: list[str], n_tokens: int | None) -> None:
        """Let these requests wait once they have `n_tokens` generated tokens; None lets them go."""
        for request_id in request_ids:
            if n_tokens is None:
                self._goals.pop(request_id, None)
            else:
                self._goals[request_id] = n_tokens

    def _waits(self, request: Any) -> bool:
        goal = self._goals.get(request.request_id)
        if goal is None:
            return False
        return request.num_output_tokens + request.num_output_placeholders >= goal

    def schedule(self: Any, *args: Any, **kwargs: Any) -> Any:
        most = self.max_num_running_reqs
        if not self._goals and len(self.running) <= most:
            return super().schedule(*args, **kwargs)
        free = [request for request in self.running if not self._waits(request)]
        # Places of waiting requests are given to others, so that more may be free than fit.
        aside = [request for request in self.running if self._waits(request)] + free[most:]
        self.running = free[:most]
        parked = [request for request in self.waiting if self._waits(request)]
        self.waiting.remove_requests(parked)
        try:
            output = super().schedule(*args, **kwargs)
        finally:
            self.running += aside
            for request in reversed(parked):
                self.waiting.prepend_request(request)
        if not output.total_num_scheduled_tokens and aside and len(self.waiting) > len(parked):
            victim = self.running.pop()  # its memory is there in the next step
            self._preempt_request(victim, time.monotonic())
        return output

    def _free_request(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        self._goals.pop(request.request_id, None)
        return super()._free_request(request, *args, **kwargs)


class HoldingScheduler(Holding, Scheduler):
    """The scheduler of vLLM, with `hold`."""


class HoldingAsyncScheduler(Holding, AsyncScheduler):
    """The scheduler that plans one step ahead, with `hold`."""
