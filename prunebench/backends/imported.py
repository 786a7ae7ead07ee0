"""Stands where an engine stands when paths were made elsewhere: it runs nothing.

What methods can read is what the paths hold. `bank=NAME` chooses it and fills in its fields; it
reads no file but a tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from prunebench.backend import Backend, Session
from prunebench.errors import ConfigError, MissingInput
from prunebench.types import Capability, Problem, Trace


@dataclass(kw_only=True)
class ImportedBackend(Backend):
    """No engine: paths come from an imported bank. All fields are set by `bank=NAME`.

    Parameters
    ----------
    name : of the bank.
    source : the file that was imported.
    holds : capabilities that its paths open.
    n_paths : how many paths each problem has.
    tokenizer : the `tokenizer.json` that was named at the import, empty for none.
    """

    parallel_fill: ClassVar[bool] = False

    name: str = ""
    source: str = ""
    holds: list[str] = field(default_factory=list)
    n_paths: int = 0
    tokenizer: str = ""

    @property
    def provides(self) -> frozenset[Capability]:
        return frozenset(Capability(name) for name in self.holds)

    def identity(self) -> dict[str, Any]:
        if not self.name:
            raise ConfigError(
                "'backend=imported' needs the name of a bank: give bank=NAME instead."
            )
        return {"imported": self.name}

    def open(self, problem: Problem, indices: Sequence[int]) -> Session:
        raise ConfigError(
            f"The paths of the imported bank {self.name!r} are complete, and nothing here can run "
            f"their model. Use mode=replay."
        )

    def generate(
        self, problems: Sequence[Problem], indices: Sequence[int]
    ) -> Iterator[tuple[Problem, np.ndarray, list[Trace]]]:
        n_wanted = max(indices) + 1
        if n_wanted > self.n_paths:
            raise ConfigError(
                f"The 'n_paths' and 'pool_size' parameters must be at most {self.n_paths}, the "
                f"paths per problem that the imported bank {self.name!r} holds. Got {n_wanted} "
                f"instead."
            )
        raise ConfigError(
            f"The imported bank {self.name!r} has lost paths of problem {problems[0].id!r}, which "
            f"nothing here can make again. Delete its folder and import {self.source} again."
        )

    def decode(self, token_ids: np.ndarray) -> str:
        if not self.tokenizer:
            raise MissingInput("the tokenizer of the paths (tokenizer= of 'prunebench import')")
        return self._tokenizer.decode(token_ids.tolist(), skip_special_tokens=True)

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        return Tokenizer.from_file(self.tokenizer)
