"""An engine whose tokens come from disk.

Replay and online evaluation go through the same sessions; here the paths are complete already, and
states at the checkpoint are rebuilt by the engine that made the paths, if a method asks for them.
Knows no file format: a callable looks the traces up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import numpy as np

from prunebench.backend import Backend, Internals, ReaderWeights
from prunebench.backends._stored import StoredSession
from prunebench.errors import ConfigError
from prunebench.types import Capability, Problem, Trace

if TYPE_CHECKING:
    import torch

Lookup = Callable[[Problem], tuple[np.ndarray, list[Trace]]]


@dataclass(kw_only=True)
class ReplayBackend(Backend):
    """Replays stored traces.

    Parameters
    ----------
    lookup : `(prompt_ids, traces)` of a problem, as the trace bank holds them.
    source : the engine that can run the model again.
    stored : statistics that the traces hold, beside what `source` provides.
    """

    lookup: Lookup
    source: Backend
    stored: frozenset[Capability] = frozenset()

    @property
    def provides(self) -> frozenset[Capability]:
        return self.stored | self.source.provides

    def identity(self) -> dict[str, Any]:
        return self.source.identity()

    def open(self, problem: Problem, indices: Sequence[int]) -> StoredSession:
        prompt_ids, traces = self.lookup(problem)
        by_index = {trace.index: trace for trace in traces}
        missing = [i for i in indices if i not in by_index]
        if missing:
            raise ConfigError(
                f"The trace bank must hold path {missing[0]} of problem {problem.id}. It holds "
                f"{len(by_index)} of the {len(indices)} paths asked for; generate more paths first."
            )
        chosen = [by_index[i] for i in indices]
        return StoredSession(problem, prompt_ids, chosen, decode=self.decode, encode=self.encode)

    def decode(self, token_ids: np.ndarray) -> str:
        return self.source.decode(token_ids)

    def tokenize(self, text: str) -> np.ndarray:
        return self.source.tokenize(text)

    @property
    def start_token(self) -> int:
        return self.source.start_token

    def encode(self, prompt_ids: np.ndarray, prefixes: Sequence[np.ndarray]) -> Internals:
        return self.source.encode(prompt_ids, prefixes)

    def load_adapter(self, name: str, folder: FilePath) -> None:
        self.source.load_adapter(name, folder)

    def load_reader(self, name: str, weights: ReaderWeights) -> None:
        self.source.load_reader(name, weights)

    def expect(self, requires: frozenset[Capability]) -> None:
        self.source.expect(requires)

    def model(self) -> torch.nn.Module:
        return self.source.model()

    def close(self) -> None:
        self.source.close()
