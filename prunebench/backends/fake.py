"""A whole engine without a trained model: paths cost microseconds, everything can be asked for.

For tests. Paths are pseudo-random text, one token per byte; states come from a tiny model with
random weights that really reads those tokens. It refuses to be realistic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import numpy as np

from prunebench.backend import Backend, Internals, ModelSpec, ReaderWeights
from prunebench.backends._stored import StoredSession
from prunebench.grading import Style, as_style, grade
from prunebench.types import Capability, Problem, TokenStats, Trace

if TYPE_CHECKING:
    import torch

    from prunebench.backends._engine import Engine


END = 256
VOCAB = 257
_TOP = 20


@dataclass(kw_only=True)
class FakeBackend(Backend):
    """Deterministic paths from (seed, problem, index).

    About `accuracy` of the paths are right; right ones are a little surer of themselves. Lengths
    run from about 20 to 200 tokens.

    Parameters
    ----------
    accuracy : expected share of right paths, in [0, 1].
    """

    accuracy: float = 0.5

    def __post_init__(self) -> None:
        self._engine: Engine | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_engine": None}

    def bind(self, spec: ModelSpec, seed: int) -> None:
        super().bind(spec, seed)
        self._style = as_style(spec.answer or Style.LINE)

    @property
    def provides(self) -> frozenset[Capability]:
        """All that an engine can give; the rest is the dataset's, the mode's or a server's."""
        others = {Capability.ENDPOINT, Capability.STEP_CHECK, Capability.OUTCOME}
        return frozenset(Capability) - others

    def identity(self) -> dict[str, Any]:
        return {"engine": "fake", "version": 2, "accuracy": self.accuracy}

    # ---- paths

    def open(self, problem: Problem, indices: Sequence[int]) -> StoredSession:
        text = (self.spec.prompt or "{question}\n").replace("{question}", problem.question)
        traces = [self._trace(problem, int(index)) for index in indices]
        return StoredSession(problem, _tokens(text), traces, decode=self.decode, encode=self.encode)

    def decode(self, token_ids: np.ndarray) -> str:
        return bytes(int(i) for i in token_ids if i != END).decode("utf-8", errors="replace")

    def tokenize(self, text: str) -> np.ndarray:
        return _tokens(text)

    @property
    def start_token(self) -> int:
        return END

    def _trace(self, problem: Problem, index: int) -> Trace:
        rng = np.random.default_rng([self.seed, index, *problem.id.encode()])
        right = rng.random() < self.accuracy
        text = _text(rng, problem.answer if right else _wrong(rng, problem.answer), self._style)
        ids = np.append(_tokens(text), np.int32(END))
        stopped = len(ids) <= self.spec.sampling.max_new_tokens
        ids = ids[: self.spec.sampling.max_new_tokens]
        text = self.decode(ids)
        answer, correct = grade(text, problem.answer, self._style) if stopped else (None, False)
        return Trace(
            index=index,
            token_ids=ids,
            text=text,
            stats=_stats(rng, len(ids), right),
            stopped=stopped,
            answer=answer,
            correct=correct,
        )

    # ---- states

    def _loaded(self) -> Engine:
        if self._engine is None:
            import torch
            from transformers import Qwen2Config, Qwen2ForCausalLM

            from prunebench.backends._engine import Engine

            config = Qwen2Config(
                vocab_size=VOCAB,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=2,
                max_position_embeddings=1024,
                bos_token_id=None,
                eos_token_id=END,
            )
            config._attn_implementation = "sdpa"
            with torch.random.fork_rng(devices=[]):  # the caller's random state is not ours
                torch.manual_seed(self.seed)
                model = Qwen2ForCausalLM(config)
            self._engine = Engine(model, [END])
        return self._engine

    def encode(self, prompt_ids: np.ndarray, prefixes: Sequence[np.ndarray]) -> Internals:
        return self._loaded().encode(prompt_ids, prefixes)

    def load_adapter(self, name: str, folder: FilePath) -> None:
        self._loaded().load_adapter(name, folder)

    def load_reader(self, name: str, weights: ReaderWeights) -> None:
        self._loaded().load_reader(name, weights)

    def model(self) -> torch.nn.Module:
        return self._loaded().model

    def close(self) -> None:
        self._engine = None


def _tokens(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32)


def _wrong(rng: np.random.Generator, gold: str) -> str:
    """A wrong answer of the same kind; a few values come up often, as real mistakes do."""
    slip = int(rng.integers(1, 6))
    if gold.strip().isalpha():
        return "ABCD"[("ABCD".find(gold.strip().upper()) + slip % 3 + 1) % 4]
    try:
        return str(int(gold) + slip)
    except ValueError:
        return str(slip)


_CONNECTIVES = ("", "So ", "Then ", "Now ", "Hence ")
_TURNS = ("Wait, ", "Alternatively, ", "Let me check. ", "Hmm, ")


def _text(rng: np.random.Generator, answer: str, style: str) -> str:
    """Some lines of arithmetic, in one to four thoughts, then the answer."""
    parts = []
    for line in range(int(rng.integers(1, 13))):
        a, b = (int(x) for x in rng.integers(2, 60, size=2))
        op, value = (("+", a + b), ("-", a - b), ("*", a * b))[rng.integers(3)]
        if line and rng.random() < 0.2:
            parts.append("\n" + _TURNS[rng.integers(len(_TURNS))])
        parts.append(f"{_CONNECTIVES[rng.integers(len(_CONNECTIVES))]}{a}{op}{b}={value}.\n")
    match style:
        case Style.LINE:
            parts.append(f"A{answer}")
        case Style.CHOICE:
            parts.append(f'"ANSWER": "{answer}"')
        case _:
            parts.append(f"\\boxed{{{answer}}}")
    return "".join(parts)


def _stats(rng: np.random.Generator, n: int, right: bool) -> TokenStats:
    """Statistics that a distribution over `VOCAB` tokens could have: the mean of the 20 largest
    log-probabilities is at most -log 20, and that of all at most -log VOCAB."""
    unsure = np.exp(rng.normal(-0.2 if right else 0.1, 0.3) + rng.normal(0, 0.6, size=n))
    noise = np.exp(rng.normal(0, 0.2, size=(3, n)))
    return TokenStats(
        logprobs=(-0.3 * unsure * noise[0]).astype(np.float32),
        top_logprobs=(-np.log(_TOP) - 4 * noise[1] / unsure).astype(np.float32),
        entropy=np.minimum(0.5 * unsure * noise[2], np.log(VOCAB)).astype(np.float32),
        max_logprobs=(-0.2 * unsure * noise[0]).astype(np.float32),
        top_mass=np.exp(-0.05 * unsure * noise[1]).astype(np.float32),
        top_entropy=np.minimum(0.4 * unsure * noise[2], np.log(_TOP)).astype(np.float32),
        sum_logprobs=(-VOCAB * (np.log(VOCAB) + 5 / unsure)).astype(np.float32),
        vocab_size=VOCAB,
    )
