"""Slim-SC with thoughts: paths that share a thought with another path are pruned.

Formula: S_i = -max over j != i of m_ij, where m_ij = max over the thoughts a of prefix i and b of
prefix j of cos(e_a, e_b), and e is the embedding of a thought.

Source: "Slim-SC: Thought Pruning for Efficient Scaling with Self-Consistency", arXiv 2509.13990
(https://arxiv.org/abs/2509.13990). Thoughts are opened by pivot phrases and hold 25 tokens or more;
the embeddings are those of `sentence-transformers/all-mpnet-base-v2`.
Ours: the paper compares each new thought with a threshold while the paths run and drops one path of
a pair; here all thoughts up to the checkpoint count, there is no threshold, and both paths of a
pair score equally low. The default embedding is TF-IDF over the words between white space, which
needs no model. A restated question at the beginning is left out. The pivot phrases are our list
(`methods/_steps.py`), a thought has 20 words or more, and a text without a pivot phrase is one
thought; a sentence encoder reads a thought up to its own limit (384 tokens for that model) and no
further, so that long thoughts want `unit=step`. `keep=similar` reverses the sign, the control;
`similarity=mean` averages m_ij over j.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from prunebench.errors import ConfigError, ModelNotFound
from prunebench.method import Context, PathGroup, SignalGenerator, SignalType

from ._similarity import best_match, tfidf, to_the_others
from ._steps import split_steps, split_thoughts, step_mark_of, strip_question
from .slim_sc import Keep, Similarity


class Unit(Enum):
    """What a path is cut into."""

    thought = "thought"
    step = "step"


@dataclass(kw_only=True)
class SlimSCEmbed(SignalGenerator):
    """Higher = keep: no thought like one of another path (or, with `keep=similar`, such a one).

    In [-1, 0] with `tfidf`, in [-1, 1] with a sentence encoder; `keep=similar` changes the sign.
    A path without company scores 0. A prefix without a word scores NaN and is compared with none.
    Time is quadratic in the number of thoughts of all paths, memory in the number of paths.

    Attributes
    ----------
    keep : `different` is the method, `similar` the control.
    similarity : `max` or `mean` over the other paths.
    unit : cut at pivot phrases (`thought`) or at `step_mark` (`step`). Short steps are often equal
        word for word, so that all paths tie unless `similarity=mean`.
    least_words : a thought of fewer words goes on past the next pivot phrase.
    step_mark : separator of steps; empty takes a blank line if a path of the group has one, else
        a line break.
    embedder : `tfidf`, or the id or folder of a sentence-transformers model on this machine.
    """

    type = SignalType.I
    paper = "arXiv 2509.13990, https://arxiv.org/abs/2509.13990"

    keep: Keep = Keep.different
    similarity: Similarity = Similarity.max
    unit: Unit = Unit.thought
    least_words: int = 20
    step_mark: str = ""
    embedder: str = "tfidf"

    def __post_init__(self) -> None:
        if self.least_words < 1:
            raise ConfigError(
                "The 'least_words' parameter of SlimSCEmbed must be at least 1. "
                f"Got {self.least_words!r} instead."
            )
        self.encoder_: Any = None
        self.ledger_: Any = None

    def setup(self, context: Context) -> None:
        self.ledger_ = context.ledger
        if self.embedder != "tfidf":
            self.encoder_ = _sentence_encoder(self.embedder)

    def close(self) -> None:
        self.encoder_ = None

    def score(self, group: PathGroup) -> np.ndarray:
        texts = [strip_question(path.text, group.question) for path in group.paths]
        mark = step_mark_of(texts, self.step_mark)
        units = [
            split_steps(text, mark)
            if self.unit is Unit.step
            else split_thoughts(text, least_words=self.least_words)
            for text in texts
        ]
        scored = [i for i, own in enumerate(units) if own]
        scores = np.full(len(group), np.nan)
        if scored:
            vectors = self.embed([unit for i in scored for unit in units[i]])
            paths = best_match(vectors, [len(units[i]) for i in scored])
            scores[scored] = to_the_others(paths, mean=self.similarity is Similarity.mean)
        return scores if self.keep is Keep.similar else 0.0 - scores  # no -0.0

    def embed(self, texts: list[str]) -> Any:
        """One row of length 1 per text, sparse or dense."""
        if self.embedder == "tfidf":
            return tfidf(texts)
        unique = sorted(set(texts))  # the batches, and so the last bits, do not depend on the order
        tokens = self.encoder_.tokenizer(
            unique, truncation=True, max_length=self.encoder_.max_seq_length
        )["input_ids"]
        self.ledger_.add(verifier_tokens=sum(map(len, tokens)))
        rows = self.encoder_.encode(unique, show_progress_bar=False).astype(np.float64)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        row_of = dict(zip(unique, rows, strict=True))
        return np.array([row_of[text] for text in texts])


def _sentence_encoder(name: str) -> Any:
    try:
        from sentence_transformers import SentenceTransformer  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(
            f"method.embedder={name} needs the package sentence-transformers: "
            "'pip install sentence-transformers', or use method.embedder=tfidf."
        ) from error
    try:
        return SentenceTransformer(name, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelNotFound(
            f"The sentence encoder {name!r} is not on this machine ({error}). Download it with "
            f"'hf download {name}', or point 'method.embedder=' at its folder."
        ) from error
