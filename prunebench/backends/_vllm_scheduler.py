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
        if not self._goals:
            return super().schedule(*args, **kwargs)
        aside = [request for request in self.running if self._waits(request)]
        if aside:
            self.running = [request for request in self.running if not self._waits(request)]
        parked = [request for request in self.waiting if self._waits(request)]
        self.waiting.remove_requests(parked)
        output = super().schedule(*args, **kwargs)
        self.running += aside
        if not output.total_num_scheduled_tokens and aside and len(self.waiting):
            victim = self.running.pop()  # its memory is there in the next step
            self._preempt_request(victim, time.monotonic())
        for request in reversed(parked):
            self.waiting.prepend_request(request)
        return output

    def finish_requests(self: Any, request_ids: Any, *args: Any, **kwargs: Any) -> Any:
        ids = [request_ids] if isinstance(request_ids, str) else request_ids
        ids = list(self._goals) if ids is None else list(ids)
        for request_id in ids:
            self._goals.pop(request_id, None)
        return super().finish_requests(None if request_ids is None else ids, *args, **kwargs)


class HoldingScheduler(Holding, Scheduler):
    """The scheduler of vLLM, with `hold`."""


class HoldingAsyncScheduler(Holding, AsyncScheduler):
    """The scheduler that plans one step ahead, with `hold`."""
