"""The text heuristics, against hand calculations and second implementations.

That they keep the contract (order, determinism, empty prefixes) is checked by the conformance suite
in `test_methods.py`.
"""

from __future__ import annotations

import itertools
import math
import sys
import types
import zlib
from collections import Counter

import numpy as np
import pytest
import scipy.cluster.hierarchy
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics.pairwise import cosine_similarity

from prunebench.backends.fake import FakeBackend
from prunebench.errors import ConfigError, ModelNotFound
from prunebench.method import Context, PathGroup, SignalGenerator
from prunebench.methods import slim_sc_greedy
from prunebench.methods._similarity import best_match, farthest_first, nearest_first, tfidf_cosine
from prunebench.methods._steps import (
    complete_steps,
    count_pivots,
    split_steps,
    split_thoughts,
    step_mark_of,
    strip_question,
)
from prunebench.methods.backtracks import Backtracks, What
from prunebench.methods.backtracks import Keep as KeepTurns
from prunebench.methods.polr import Keep as KeepCluster
from prunebench.methods.polr import PoLR
from prunebench.methods.repetition import Keep as KeepRepetition
from prunebench.methods.repetition import Measure, Repetition
from prunebench.methods.slim_sc import Keep, Similarity
from prunebench.methods.slim_sc_embed import SlimSCEmbed, Unit
from prunebench.methods.slim_sc_greedy import SlimSCGreedy
from prunebench.types import Problem, TokenStats, Trace, view

VARIANTS = [
    SlimSCEmbed(),
    SlimSCEmbed(unit=Unit.step, similarity=Similarity.mean),
    SlimSCEmbed(keep=Keep.similar),
    SlimSCGreedy(),
    SlimSCGreedy(measure=slim_sc_greedy.Measure.tfidf, keep=Keep.similar),
    PoLR(),
    PoLR(keep=KeepCluster.smallest),
    *(Repetition(measure=measure) for measure in Measure),
    Backtracks(),
    Backtracks(what=What.steps, per_token=True),
]


def group_of(*texts: str, question: str = "1+1", tokens: list[list[int]] | None = None):
    """A group of finished paths with these texts; one token per character unless given."""
    ids = tokens or [[ord(c) for c in text] for text in texts]
    traces = [
        Trace(
            index=i,
            token_ids=np.array(ids[i], np.int32),
            text=text,
            stats=TokenStats(),
            stopped=True,
            answer=None,
            correct=False,
        )
        for i, text in enumerate(texts)
    ]
    return view(
        Problem(id="p", question=question, answer="2"),
        np.zeros(1, np.int32),
        traces,
        4096,
        decode=lambda ids: "",
        granted=frozenset(),
        seed=0,
    )


def random_texts(n: int, seed: int = 0, n_words: int = 30) -> list[str]:
    rng = np.random.default_rng(seed)
    words = [f"w{k}" for k in range(25)]
    return [" ".join(rng.choice(words, rng.integers(3, n_words))) for _ in range(n)]


def plain_tfidf_cosine(texts: list[str]) -> np.ndarray:
    """From the textbook: dictionaries and loops."""
    counts = [Counter(text.lower().split()) for text in texts]
    n_with = Counter(word for count in counts for word in count)
    idf = {word: math.log((1 + len(texts)) / (1 + n)) + 1 for word, n in n_with.items()}
    vectors = [{word: n * idf[word] for word, n in count.items()} for count in counts]
    norms = [math.sqrt(sum(x * x for x in v.values())) or 1.0 for v in vectors]

    def cos(i: int, j: int) -> float:
        shared = sum(x * vectors[j].get(word, 0.0) for word, x in vectors[i].items())
        return shared / (norms[i] * norms[j])

    n = len(texts)
    return np.array([[cos(i, j) for j in range(n)] for i in range(n)])


# --- every method -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", VARIANTS, ids=repr)
def test_odd_texts_are_scored_and_empty_ones_are_not(method: SignalGenerator) -> None:
    texts = ["7*11=77.\n", "7*11=77.\n77+3=80.\n", "ça… 数学 — ½ 🙂", "\ud83d lone", "!", ""]
    scores = method.score(group_of(*texts))
    assert scores.dtype == np.float64
    assert np.isfinite(scores[:-1]).all()
    assert np.isnan(scores[-1])
    assert np.isfinite(method.score(group_of("7*11=77.\n"))).all()
    assert method.score(group_of()).shape == (0,)
    assert np.isnan(method.score(group_of("", ""))).all()


CONTROLS = [
    (SlimSCEmbed(), SlimSCEmbed(keep=Keep.similar)),
    (PoLR(), PoLR(keep=KeepCluster.smallest)),
    (Backtracks(), Backtracks(keep=KeepTurns.more)),
    *(
        (Repetition(measure=m), Repetition(measure=m, keep=KeepRepetition.repetitive))
        for m in Measure
    ),
]


@pytest.mark.parametrize(("method", "control"), CONTROLS, ids=repr)
def test_the_control_reverses_the_ranking(method: SignalGenerator, control) -> None:
    group = group_of("wait a b c\nwait a b", "But a b", "d e e e e e e e e e", "x x x x x")
    scores = method.score(group)
    assert len(set(scores.tolist())) > 1
    assert np.array_equal(control.score(group), -scores)


# --- steps and thoughts -----------------------------------------------------------------------


def test_steps_end_at_the_mark() -> None:
    assert split_steps("a\n\n\n b\nc \n\n", "\n\n") == ["a", "b\nc"]
    assert split_steps("a\n\n\n b\nc \n\n", "\n") == ["a", "b", "c"]
    assert split_steps(" \n ", "\n") == []
    assert complete_steps("a\nb\nc=", "\n") == (["a", "b"], "c=")
    assert complete_steps("a\nb\n", "\n") == (["a", "b"], "")
    assert complete_steps("a", "\n") == ([], "a")


def test_one_mark_serves_the_whole_group() -> None:
    assert step_mark_of(["a\nb", "a\n\nb"]) == "\n\n"
    assert step_mark_of(["a\nb", "c\n\n"]) == "\n"  # a blank line at the end parts nothing
    assert step_mark_of([]) == "\n"
    assert step_mark_of(["a\n\nb"], r"\n") == "\n"
    assert step_mark_of(["a\nb"], ";") == ";"


def test_thoughts_begin_with_a_pivot_at_the_start_of_a_line_or_sentence() -> None:
    text = "We try 7. Wait, no; but it is 8.\nHmmm, the butter! Alternatively wait."
    cut = ["We try 7.", "Wait, no; but it is 8.", "Hmmm, the butter!", "Alternatively wait."]
    assert split_thoughts(text, least_words=1) == cut
    assert count_pivots(text) == 3
    assert split_thoughts(text, ("the",), least_words=1) == [text]
    assert split_thoughts(" \n") == []


def test_short_thoughts_go_on_and_lose_no_word() -> None:
    text = "a b c\nwait d\nwait e f\nwait g"
    assert split_thoughts(text, least_words=3) == ["a b c", "wait d\nwait e f\nwait g"]
    assert split_thoughts("a\nwait b\nwait c d", least_words=3) == ["a\nwait b", "wait c d"]
    long = " ".join(f"Word{i} is. But no." for i in range(50))
    for least in (1, 5, 20, 1000):
        thoughts = split_thoughts(long, least_words=least)
        assert " ".join(thoughts).split() == long.split()
        assert min(len(t.split()) for t in thoughts) >= min(least, len(long.split()))


def test_only_a_whole_restated_question_is_left_out() -> None:
    assert strip_question("What is\n 1+1? It is 2", "What is 1+1?").strip() == "It is 2"
    assert strip_question("7*11=77.", "7*11") == "7*11=77."  # goes on without white space
    assert strip_question("So what is 1+1?", "what is 1+1?") == "So what is 1+1?"
    assert strip_question("1+1 ", "1+1") == "1+1 "  # nothing else is there
    assert strip_question("a", "") == "a"


# --- similarities and orders ------------------------------------------------------------------


def test_tfidf_cosine_agrees_with_loops_and_with_sklearn() -> None:
    texts = [*random_texts(12), "7*11=77.\n77+3=80.", "7*11=77.", "W1 w1"]
    cosine = tfidf_cosine(texts)
    assert cosine == pytest.approx(plain_tfidf_cosine(texts), abs=1e-11)
    vectors = TfidfVectorizer(token_pattern=r"\S+").fit_transform(texts)
    assert cosine == pytest.approx(cosine_similarity(vectors), abs=1e-11)


def test_best_match_is_the_largest_value_of_each_block() -> None:
    rng = np.random.default_rng(0)
    sizes = [1, 3, 2, 4]
    vectors = rng.normal(size=(10, 5))
    blocks = np.split(vectors, np.cumsum(sizes)[:-1])
    expected = [[max(x @ y for x in a for y in b) for b in blocks] for a in blocks]
    assert best_match(vectors, sizes) == pytest.approx(np.array(expected), abs=1e-11)


def test_farthest_first_agrees_with_loops() -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        similarity = rng.uniform(size=(9, 9))
        similarity = (similarity + similarity.T) / 2
        rest = set(range(9))
        chosen = [min(rest, key=lambda i: sum(similarity[i, j] for j in range(9) if j != i))]
        while rest := rest - set(chosen):
            chosen.append(max(rest, key=lambda i: min(1 - similarity[i, j] for j in chosen)))
        rank = farthest_first(similarity)
        assert [int(np.flatnonzero(rank == k)[0]) for k in range(9)] == chosen


def test_orders_give_ties_to_the_lower_row() -> None:
    equal = np.ones((4, 4))
    assert farthest_first(equal).tolist() == [0, 1, 2, 3]
    assert nearest_first(equal).tolist() == [0, 1, 2, 3]
    assert farthest_first(np.ones((1, 1))).tolist() == [0]


# --- Slim-SC ----------------------------------------------------------------------------------


def test_slim_sc_embed_compares_thoughts_and_not_whole_paths() -> None:
    group = group_of(
        "one two three. Wait, four five six.",
        "seven eight nine. Wait, four five six.",
        "ten eleven twelve. But thirteen fourteen.",
    )
    scores = SlimSCEmbed(least_words=3).score(group)
    assert scores[:2] == pytest.approx([-1.0, -1.0])  # they share a thought
    assert scores[2] == 0.0
    whole = SlimSCEmbed().score(group)  # too short to be cut
    assert -0.9 < whole[0] < -0.1
    mean = SlimSCEmbed(least_words=3, similarity=Similarity.mean).score(group)
    assert mean == pytest.approx([-0.5, -0.5, 0.0])


@pytest.mark.parametrize("similarity", Similarity)
def test_slim_sc_embed_agrees_with_loops(similarity: Similarity) -> None:
    steps = [random_texts(3, seed, 8) for seed in range(6)]
    scores = SlimSCEmbed(unit=Unit.step, similarity=similarity).score(
        group_of(*("\n\n".join(own) for own in steps))
    )
    cosine = plain_tfidf_cosine([step for own in steps for step in own])
    for i in range(6):
        matches = [
            max(cosine[3 * i + a, 3 * j + b] for a, b in itertools.product(range(3), range(3)))
            for j in range(6)
            if j != i
        ]
        expected = max(matches) if similarity is Similarity.max else np.mean(matches)
        assert scores[i] == pytest.approx(-expected, abs=1e-11)


def test_slim_sc_embed_leaves_out_the_restated_question() -> None:
    question = "How many sheep are left?"
    group = group_of(f"{question} a b", f"{question} c d", question=question)
    assert SlimSCEmbed().score(group).tolist() == [0.0, 0.0]
    assert (SlimSCEmbed().score(group_of(f"{question} a b", f"{question} c d")) < -0.4).all()


def context() -> Context:
    return Context(model_name="fake", backend=FakeBackend())


def test_slim_sc_embed_names_the_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    SlimSCEmbed().setup(context())
    with pytest.raises(ConfigError, match="pip install sentence-transformers"):
        SlimSCEmbed(embedder="some/encoder").setup(context())


def test_slim_sc_embed_uses_a_sentence_encoder_from_this_machine_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Encoder:
        """Embeds a text by whether it holds 'a' and whether it holds 'b'."""

        max_seq_length = 3

        def __init__(self, name: str, *, local_files_only: bool) -> None:
            assert local_files_only
            if name != "here":
                raise OSError("no such model")

        def tokenizer(self, texts: list[str], *, truncation: bool, max_length: int):
            return {"input_ids": [text.split()[:max_length] for text in texts]}

        def encode(self, texts: list[str], *, show_progress_bar: bool):
            return np.array([["a" in t, "b" in t, True] for t in texts], np.float32)

    module = types.ModuleType("sentence_transformers")
    module.SentenceTransformer = Encoder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    with pytest.raises(ModelNotFound, match="hf download away"):
        SlimSCEmbed(embedder="away").setup(context())

    method, given = SlimSCEmbed(embedder="here"), context()
    method.setup(given)
    scores = method.score(group_of("a b", "a", "c c c c", "a"))
    cos = math.sqrt(2 / 3)  # (1, 1, 1) with (1, 0, 1); the last one is the second again
    assert scores == pytest.approx([-cos, -1.0, -1 / math.sqrt(2), -1.0])
    assert given.ledger.spent.verifier_tokens == 2 + 1 + 3  # equal texts once, long ones cut
    method.close()
    assert method.encoder_ is None


def test_slim_sc_greedy_by_hand() -> None:
    # J(0,1) = 1, J(0,2) = J(1,2) = 1/3, the last shares nothing: lowest mean
    group = group_of("a b", "b a", "a c", "x y")
    # then 0 and 1 and 2 are all at distance 1: the lowest index; then 2 (2/3), then the twin
    assert SlimSCGreedy().score(group).tolist() == [-1.0, -3.0, -2.0, 0.0]
    # 0 and 1 have the mean (1 + 1/3) / 3; the twin is nearest, then 2, then the stranger
    assert SlimSCGreedy(keep=Keep.similar).score(group).tolist() == [0.0, -1.0, -2.0, -3.0]


@pytest.mark.parametrize("measure", slim_sc_greedy.Measure)
def test_slim_sc_greedy_keeps_one_of_each_pair(measure: slim_sc_greedy.Measure) -> None:
    texts = random_texts(8, seed=3)
    scores = SlimSCGreedy(measure=measure).score(group_of(*texts, *texts))
    assert sorted(scores) == list(range(-15, 1))
    assert sorted(int(i) % 8 for i in np.argsort(-scores)[:8]) == list(range(8))


def test_slim_sc_greedy_breaks_ties_by_index_and_not_by_position() -> None:
    group = group_of("a", "b", "c", "a")
    assert SlimSCGreedy().score(group).tolist() == [-1.0, 0.0, -2.0, -3.0]
    backwards = SlimSCGreedy().score(group.subset([3, 2, 1, 0]))
    assert backwards.tolist() == [-3.0, -2.0, 0.0, -1.0]


# --- PoLR -------------------------------------------------------------------------------------


def test_polr_by_hand() -> None:
    group = group_of("a b", "a b", "x y", "a b", "")
    scores = PoLR(epsilon=0.01).score(group)
    assert scores[:4] == pytest.approx([0.76, 0.76, 0.25, 0.76])  # 3 of 4, cosine 1 within
    assert np.isnan(scores[4])


@pytest.mark.parametrize("threshold", [0.2, 0.4, 0.6, 0.8, 1.0])
def test_polr_agrees_with_scipy(threshold: float) -> None:
    texts = random_texts(30, seed=1)
    cosine = plain_tfidf_cosine(texts)
    distance = np.clip(1 - cosine, 0, None)
    tree = scipy.cluster.hierarchy.average(distance[np.triu_indices(30, 1)])
    label = scipy.cluster.hierarchy.fcluster(tree, threshold, "distance")
    expected = []
    for i in range(30):
        own = [j for j in range(30) if label[j] == label[i] and j != i]
        closeness = np.mean([cosine[i, j] for j in own]) if own else 0.0
        expected.append((len(own) + 1) / 30 + 0.001 * closeness)
    assert PoLR(threshold=threshold).score(group_of(*texts)) == pytest.approx(expected, abs=1e-9)


def test_polr_with_the_reported_threshold_hardly_splits() -> None:
    texts = [f"the {text}" for text in random_texts(20, seed=2)]  # all share a word
    assert (PoLR(threshold=1.0).score(group_of(*texts)) >= 1.0).all()
    assert (PoLR(threshold=0.3).score(group_of(*texts)) < 1.0).all()


@pytest.mark.parametrize(
    ("option", "value"), [("threshold", 0.0), ("threshold", 1.5), ("epsilon", -1.0)]
)
def test_polr_refuses_what_cannot_be(option: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"'{option}' parameter of PoLR"):
        PoLR(**{option: value})


# --- repetition -------------------------------------------------------------------------------


def repetition(text: str, **options) -> float:
    group: PathGroup = group_of(text)
    return float(Repetition(**options).score(group)[0])


def test_distinct_n_counts_ngrams_of_tokens() -> None:
    ids = [1, 2, 3, 1, 2, 3, 4]  # 12 23 31 12 23 34: 4 of 6
    [score] = Repetition(n=2).score(group_of("text", tokens=[ids]))
    assert score == pytest.approx(4 / 6)
    assert repetition("aaaaaa", n=4) == pytest.approx(1 / 3)
    assert repetition("ab", n=4) == 1.0  # shorter than n
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 3, 200)
    windows = np.lib.stride_tricks.sliding_window_view(ids, 4)
    [score] = Repetition().score(group_of("text", tokens=[ids.tolist()]))
    assert score == pytest.approx(len(np.unique(windows, axis=0)) / len(windows))


def test_zlib_finds_loops() -> None:
    rng = np.random.default_rng(1)
    noise = "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 400))
    loop = "wait, no. " * 40
    assert repetition(loop, measure=Measure.zlib) < 0.2 < repetition(noise, measure=Measure.zlib)
    n_bytes = len(zlib.compress(("½" * 400).encode()))
    assert repetition("½" * 400, measure=Measure.zlib) == n_bytes / 800  # bytes over bytes


def test_suffix_agrees_with_trying_every_length() -> None:
    assert repetition("abcXabc", measure=Measure.suffix) == pytest.approx(-3 / 7)
    assert repetition("aaaa", measure=Measure.suffix) == pytest.approx(-3 / 4)  # overlaps
    assert repetition("abcd", measure=Measure.suffix) == 0.0
    assert repetition("a", measure=Measure.suffix) == 0.0
    rng = np.random.default_rng(2)
    for n in (2, 5, 30, 60):
        text = "".join(rng.choice(list("ab"), n))
        ends = [k for k in range(n) for at in range(n - k) if text[at : at + k] == text[n - k :]]
        assert repetition(text, measure=Measure.suffix) == pytest.approx(-max(ends) / n)


def test_repetition_refuses_empty_ngrams() -> None:
    with pytest.raises(ConfigError, match="'n' parameter of Repetition"):
        Repetition(n=0)


# --- backtracks -------------------------------------------------------------------------------


def test_backtracks_counts_turns_and_void_lines() -> None:
    group = group_of(
        "So x = 2. Wait, no. But then\nhmm, wait",  # wait, but, hmm
        ">7*11=78!\n7*11=77.\n(77)+(3)!\nA80",  # two void lines
        "Great!\nIt waits, but 5! = 120 and\nn = 5!",  # neither, with white space in the line
        "nothing",
    )
    assert Backtracks().score(group).tolist() == [-3.0, -2.0, 0.0, 0.0]
    per_token = Backtracks(per_token=True).score(group)
    assert per_token[0] == pytest.approx(-3 / len(group.paths[0].text))
    assert Backtracks(what=What.steps).score(group).tolist() == [-2.0, -4.0, -3.0, -1.0]
    assert Backtracks(pattern="wait").score(group).tolist() == [-2.0, 0.0, -1.0, 0.0]


@pytest.mark.parametrize("pattern", ["(", "", "x*"])
def test_backtracks_refuses_patterns_that_count_nothing(pattern: str) -> None:
    with pytest.raises(ConfigError, match="'pattern' parameter of Backtracks"):
        Backtracks(pattern=pattern)
