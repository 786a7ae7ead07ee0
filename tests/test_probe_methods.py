"""Forced texts after a prefix: what the engine gives back, and the methods that read it.

References: transformers' own `generate` and plain forward passes on the embedded model, one path at
a time and without padding; scipy; and scripted replies whose scores are counted by hand.
"""

from __future__ import annotations

import random
import re
from collections import Counter

import numpy as np
import pytest
import scipy.stats
import torch
from transformers import AutoModelForCausalLM

from prunebench.backend import Internals, ModelSpec, Probe, Sampling
from prunebench.backends.fake import FakeBackend
from prunebench.backends.transformers import TransformersBackend
from prunebench.errors import ConfigError
from prunebench.grading import Style
from prunebench.method import Context, PathGroup, SignalGenerator
from prunebench.methods import _forced
from prunebench.methods.answer_confidence import AnswerConfidence
from prunebench.methods.answer_confidence import Measure as ConfidenceMeasure
from prunebench.methods.early_answer import EarlyAnswer, Keep, Measure
from prunebench.methods.p_true import PTrue
from prunebench.tiny import task
from prunebench.tiny.train import WEIGHTS
from prunebench.types import Problem, TokenStats, Trace, view

QUESTION = "7*11+3-(9-4)*6"
PROBLEM = Problem(id="p", question=QUESTION, answer="50")
END = 256


@pytest.fixture(scope="module")
def backend() -> TransformersBackend:
    made = TransformersBackend(threads=1)
    sampling = Sampling(temperature=0.6, top_p=1.0, top_k=0, max_new_tokens=48)
    made.bind(
        ModelSpec(
            name="tiny",
            id="embedded:tiny",
            prompt="{question}\n",
            answer="line",
            sampling=sampling,
        ),
        0,
    )
    return made


@pytest.fixture(scope="module")
def plain():
    """The same weights without any of our code."""
    return AutoModelForCausalLM.from_pretrained(WEIGHTS, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def solutions() -> list[str]:
    """Complete right solutions, of writers with different habits; the last line is A50."""
    return [
        "".join(piece for piece, _ in task.write_solution(QUESTION, random.Random(seed), 0.2))
        for seed in range(6)
    ]


@pytest.fixture(scope="module")
def prefixes(backend, solutions) -> list[np.ndarray]:
    """Of unlike lengths, one of them complete, two equal."""
    ids = [backend.tokenize(text) for text in solutions]
    cut = [own[: len(own) - n] for own, n in zip(ids, (4, 9, 15, 21, 30), strict=False)]
    return [*cut, np.append(ids[5], np.int32(END)), cut[1]]


def after(plain, *parts) -> torch.Tensor:
    """`(n_tokens, vocab)` log-probabilities from one forward pass without a cache."""
    ids = torch.tensor([np.concatenate(parts).tolist()])
    with torch.no_grad():
        return plain(input_ids=ids).logits[0].float().log_softmax(-1)


def generated(plain, *parts, n: int) -> np.ndarray:
    ids = torch.tensor([np.concatenate(parts).tolist()])
    out = plain.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=n,
        do_sample=False,
        pad_token_id=257,
    )
    return out[0, ids.shape[1] :].numpy()


def group_of(
    backend,
    prefixes,
    internals: Internals,
    method: type[SignalGenerator],
) -> PathGroup:
    """Whole paths, token k with log-probability -k/100; those with an end token are finished."""
    traces = [
        Trace(
            index=i,
            token_ids=np.asarray(p, dtype=np.int32),
            text=backend.decode(np.asarray(p)),
            stats=TokenStats(logprobs=(-np.arange(len(p)) / 100).astype(np.float32)),
            stopped=len(p) > 0 and int(p[-1]) == END,
            answer=None,
            correct=False,
        )
        for i, p in enumerate(prefixes)
    ]
    return view(
        PROBLEM,
        np.zeros(1, np.int32),
        traces,
        max(map(len, prefixes)),
        decode=backend.decode,
        granted=method.requires,
        seed=0,
        internals=lambda: internals,
    )


def encoded(backend, prefixes) -> tuple[np.ndarray, Internals]:
    prompt = backend.prompt_ids(QUESTION)
    return prompt, backend.encode(prompt, prefixes)


def ready(method, backend):
    method.setup(Context(model_name="x", backend=backend))
    return method


# ---- the engine


def test_greedy_probe_equals_generate(backend, plain, prefixes):
    prompt, internals = encoded(backend, prefixes)
    suffixes = [backend.tokenize(s) for s in ("\nA", "A", "\nA", "\n", "9*", "\nA", "A")]
    found = internals.probe(suffixes, 12)
    for prefix, suffix, own in zip(prefixes, suffixes, found, strict=True):
        assert len(own) == 1
        reply = own[0]
        np.testing.assert_array_equal(
            reply.token_ids, generated(plain, prompt, prefix, suffix, n=12)
        )
        start = len(prompt) + len(prefix) + len(suffix) - 1
        table = after(plain, prompt, prefix, suffix, reply.token_ids)[start:-1]
        chosen = table[torch.arange(len(table)), torch.as_tensor(reply.token_ids).long()]
        np.testing.assert_allclose(reply.logprobs, chosen, atol=1e-4)
        np.testing.assert_allclose(reply.entropy, -(table.exp() * table).sum(-1), atol=1e-4)
    assert len({len(own[0].token_ids) for own in found}) > 1  # some replies end early


def test_next_logprobs_equal_a_forward_pass(backend, plain, prefixes):
    prompt, internals = encoded(backend, prefixes)
    suffixes = [backend.tokenize("\nA12"[: 1 + i % 4]) for i in range(len(prefixes))]
    table = internals.next_logprobs([*suffixes[:2], None, *suffixes[3:]])
    assert torch.isnan(table[2]).all()
    for i in (0, 1, 3, 4, 5, 6):
        expected = after(plain, prompt, prefixes[i], suffixes[i])[-1]
        torch.testing.assert_close(table[i], expected, atol=2e-4, rtol=0)


def test_samples_belong_to_the_prefix_and_follow_the_temperature(backend, plain, prefixes):
    prompt, internals = encoded(backend, prefixes)
    suffix = backend.tokenize("\n")
    everyone = internals.probe([suffix] * 7, 6, n_samples=5, temperature=1.5, seed=3)

    def ids(probes):
        return [[reply.token_ids.tolist() for reply in own] for own in probes]

    order = [4, 1, 5]
    part = internals.subset(order).probe([suffix] * 3, 6, n_samples=5, temperature=1.5, seed=3)
    assert ids(part) == [ids(everyone)[i] for i in order]
    alone = encoded(backend, [prefixes[2]])[1]
    assert (
        ids(alone.probe([suffix], 6, n_samples=5, temperature=1.5, seed=3))[0] == ids(everyone)[2]
    )
    assert ids(everyone)[1] == ids(everyone)[6]  # equal prefixes
    assert len({tuple(reply) for reply in ids(everyone)[1]}) > 1
    other = internals.probe([suffix] * 7, 6, n_samples=5, temperature=1.5, seed=4)
    assert ids(other) != ids(everyone)

    n = 500
    (drawn,) = alone.probe([suffix], 1, n_samples=n, temperature=1.5)
    counts = np.bincount([int(reply.token_ids[0]) for reply in drawn], minlength=258)
    p = (after(plain, prompt, prefixes[2], suffix)[-1] / 1.5).softmax(-1).double().numpy()
    common = p * n >= 5
    observed = np.append(counts[common], counts[~common].sum())
    expected = np.append(p[common], p[~common].sum()) * n
    assert scipy.stats.chisquare(observed, expected * n / expected.sum()).pvalue > 1e-3
    raw = after(plain, prompt, prefixes[2], suffix)[-1]  # recorded before temperature
    for reply in drawn[:20]:
        assert reply.logprobs[0] == pytest.approx(float(raw[reply.token_ids[0]]), abs=1e-4)


def test_probes_leave_the_caches_alone_and_are_counted(backend, prefixes):
    _, internals = encoded(backend, prefixes)
    caches = [block.cache for block in internals._blocks]  # type: ignore[attr-defined]
    before = [
        [b[:, :, : layer.filled].clone() for b in layer.buffers]
        for cache in caches
        for layer in cache.layers
    ]
    filled = [cache.filled for cache in caches]
    suffixes = [None, backend.tokenize("\nA"), backend.tokenize("A"), None, None, None, None]
    probes = internals.probe(suffixes, 7, n_samples=3, temperature=1.0)
    assert [len(own) for own in probes] == [0, 3, 3, 0, 0, 0, 0]
    sampled = sum(len(reply.token_ids) for own in probes for reply in own)
    assert (internals.forwarded_tokens, internals.sampled_tokens) == (3, sampled)
    part = internals.subset([2, 1])
    (one, two) = part.probe([backend.tokenize("\nA")] * 2, 4)
    more = len(one[0].token_ids) + len(two[0].token_ids)
    part.next_logprobs([None, backend.tokenize("\nA1")])
    assert (part.forwarded_tokens, part.sampled_tokens) == (4 + 3, more)
    assert (internals.forwarded_tokens, internals.sampled_tokens) == (3 + 7, sampled + more)

    assert [cache.filled for cache in caches] == filled
    layers = [layer for cache in caches for layer in cache.layers]
    for layer, held in zip(layers, before, strict=True):
        for buffer, old in zip(layer.buffers, held, strict=True):
            assert torch.equal(buffer[:, :, : layer.filled], old)


def test_a_live_session_goes_on_as_if_nothing_had_been_probed(backend):
    untouched = [t.token_ids.tolist() for t in backend.open(PROBLEM, range(4)).finish()]
    session = backend.open(PROBLEM, range(4))
    session.advance(20)
    stopped = [t.token_ids for t in session.traces()]
    suffixes = [backend.tokenize("\nA")] * 4
    live = session.internals().probe(suffixes, 6, n_samples=2, temperature=1.0)
    again = backend.encode(session.prompt_ids, stopped)
    replayed = again.probe(suffixes, 6, n_samples=2, temperature=1.0)
    for a, b in zip(live, replayed, strict=True):
        assert [r.token_ids.tolist() for r in a] == [r.token_ids.tolist() for r in b]
    assert [t.token_ids.tolist() for t in session.finish()] == untouched


# ---- replies


@pytest.mark.parametrize(
    ("style", "reply", "value", "text"),
    [
        (Style.LINE, "50", "50", "50"),
        (Style.LINE, "-7\nmore", "-7", "-7"),
        (Style.LINE, "007 \n", "7", "007"),
        (Style.LINE, "34-376=1", None, ""),
        (Style.LINE, "", None, ""),
        (Style.LINE, " 5", None, ""),
        (Style.MATH, "42} \\]", "42", "42"),
        (Style.MATH, "\\frac{1}{2}}.", "\\frac{1}{2}", "\\frac{1}{2}"),
        (Style.MATH, "\\{1\\}} and }", "\\{1\\}", "\\{1\\}"),
        (Style.MATH, "\\frac{1}{2", None, ""),
        (Style.MATH, "} \\]", None, ""),
        (Style.CHOICE, "C} \\]", "C", "C"),
        (Style.CHOICE, "\\text{b}}", "B", "\\text{b"),
        (Style.CHOICE, " (D)", "D", " (D"),
        (Style.CHOICE, "None of these", None, ""),
        (Style.CHOICE, "I think C", None, ""),
    ],
)
def test_reading_a_reply(style, reply, value, text):
    found, end = _forced.parse(reply, style)
    assert found == value
    if value is not None:
        assert reply[:end] == text


def test_the_forced_text_starts_a_line_of_its_own(backend, solutions):
    method = ready(EarlyAnswer(), backend)
    text = solutions[0]
    at = text.index("\n")
    prefixes = [backend.tokenize(text[:n]) for n in (at, at + 1, at + 3)]
    group = group_of(backend, prefixes, encoded(backend, prefixes)[1], EarlyAnswer)
    assert [method.forced_text(path) for path in group.paths] == ["\nA", "A", "\nA"]
    method = ready(EarlyAnswer(suffix="\n\nA"), backend)
    assert method.forced_text(group.paths[1]) == "\n\nA"


# ---- methods on the embedded model


def reference_answers(plain, backend, prompt, prefixes) -> list[tuple[str | None, float]]:
    """Answer and mean log-probability of its digits, by `generate` and a forward pass."""
    found: list[tuple[str | None, float]] = []
    for prefix in prefixes:
        text = backend.decode(prefix)
        suffix = backend.tokenize("A" if text.endswith("\n") else "\nA")
        reply = generated(plain, prompt, prefix, suffix, n=20)
        match = re.match(r"^(\d+)\s*$", backend.decode(reply).split("\n")[0])
        if match is None:
            found.append((None, -np.inf))
            continue
        n = len(match[1])
        start = len(prompt) + len(prefix) + len(suffix) - 1
        table = after(plain, prompt, prefix, suffix, reply[:n])[start : start + n]
        digits = table[torch.arange(n), torch.as_tensor(reply[:n]).long()]
        found.append((str(int(match[1])), float(digits.mean())))
    return found


def test_consensus_and_confidence_equal_one_path_at_a_time(backend, plain, solutions):
    starts = [s[: s.rindex("A")] for s in solutions]
    texts = [s[: len(s) - n] for s, n in zip(starts, (0, 0, 4, 13, 30, 40), strict=True)]
    prefixes = [backend.tokenize(text) for text in texts]
    done = np.append(backend.tokenize(solutions[0]), np.int32(END))
    prompt, internals = encoded(backend, [*prefixes, done, prefixes[2]])
    expected = reference_answers(plain, backend, prompt, prefixes)
    assert {a for a, _ in expected} >= {"50"}
    assert len({a for a, _ in expected}) > 1
    expected += [("50", np.nan), expected[2]]

    group = group_of(backend, [*prefixes, done, prefixes[2]], internals, EarlyAnswer)
    counts = Counter(answer for answer, _ in expected)
    shares = [counts[a] / 8 if a else 0.0 for a, _ in expected]
    np.testing.assert_allclose(ready(EarlyAnswer(), backend).score(group), shares)
    against = ready(EarlyAnswer(keep=Keep.dissenting), backend).score(group)
    np.testing.assert_allclose(against, [-s if s else -1.0 for s in shares])

    group = group_of(backend, [*prefixes, done, prefixes[2]], internals, AnswerConfidence)
    scores = ready(AnswerConfidence(), backend).score(group)
    wanted = np.array([logprob for _, logprob in expected])
    own = np.arange(len(done))[-4:-2]  # the digits: A, 5, 0, line break, end
    wanted[6] = -own.mean() / 100
    np.testing.assert_allclose(scores, wanted, atol=2e-4)
    assert scores[2] == scores[7]


def test_p_true_compares_the_marks_after_the_forced_answer(backend, plain, solutions):
    texts = [s[: s.rindex("A") - n] for s, n in zip(solutions, (0, 0, 5, 1, 0, 12), strict=True)]
    prefixes = [backend.tokenize(text) for text in texts]
    done = np.append(backend.tokenize(solutions[0]), np.int32(END))
    prompt, internals = encoded(backend, [*prefixes, done])
    answers = reference_answers(plain, backend, prompt, prefixes)
    expected = []
    for text, prefix, (answer, _) in zip(texts, prefixes, answers, strict=True):
        if answer is None:
            expected.append(0.0)
            continue
        line = backend.tokenize(("A" if text.endswith("\n") else "\nA") + answer)
        table = after(plain, prompt, prefix, line)[-1].exp()
        dot, bang = (float(table[int(backend.tokenize(mark)[0])]) for mark in ".!")
        expected.append(dot / (dot + bang))
    group = group_of(backend, [*prefixes, done], internals, PTrue)
    own = np.arange(len(done))[-4:-2]
    scores = ready(PTrue(), backend).score(group)
    np.testing.assert_allclose(scores, [*expected, np.exp(-own.mean() / 100)], atol=2e-4)
    assert np.unique(scores).size > 2


@pytest.mark.parametrize(
    "method",
    [
        EarlyAnswer(measure=Measure.stability, samples=4),
        AnswerConfidence(measure=ConfidenceMeasure.entropy, samples=4),
        PTrue(),
    ],
    ids=lambda method: type(method).__name__,
)
def test_equal_prefixes_tie_and_empty_ones_are_not_scored(backend, prefixes, method):
    ids = [prefixes[2], prefixes[3], np.zeros(0, np.int32), prefixes[2]]
    group = group_of(backend, ids, encoded(backend, ids)[1], type(method))
    scores = ready(method, backend).score(group)
    assert scores[0] == scores[3]
    np.testing.assert_array_equal(np.isnan(scores), [False, False, True, False])
    assert group.unscored == {2: "the prefix is empty"}


def test_entropy_reduction_is_that_of_the_prompt_minus_that_of_the_prefix(backend, prefixes):
    ids = prefixes[1:4]
    scores, methods = [], []
    for measure in (ConfidenceMeasure.entropy, ConfidenceMeasure.entropy_reduction):
        group = group_of(backend, ids, encoded(backend, ids)[1], AnswerConfidence)
        methods.append(ready(AnswerConfidence(measure=measure, samples=16), backend))
        scores.append(methods[-1].score(group))
    spent = methods[1].ledger_.take()
    assert spent.verifier_tokens == 1, "the forced A, once: samples share it"
    assert 16 <= spent.probe_tokens <= 16 * 20
    values = [a.value for a in methods[0].prior_answers(group, 16, 1.0)]
    counts = Counter(v for v in values if v is not None)
    shares = np.array([*counts.values(), *[1] * values.count(None)]) / 16
    assert shares.size > 1, "nothing is settled before the path begins"
    np.testing.assert_allclose(scores[1], scipy.stats.entropy(shares) + scores[0], atol=2e-4)


def test_from_its_answer_line_on_a_path_is_not_probed(backend, solutions):
    text = solutions[0]
    assert text.endswith("\nA50\n")
    ids = [backend.tokenize(text[:n]) for n in (len(text), -1, -2, -3, -4)]
    internals = encoded(backend, ids)[1]
    group = group_of(backend, ids, internals, AnswerConfidence)
    scores = ready(AnswerConfidence(), backend).score(group)
    assert internals.forwarded_tokens == 3  # "\nA" after "\nA", and "A" after "\n"
    first = len(text) - 3  # digit
    wanted = -np.array([first + 0.5, first + 0.5, first]) / 100
    np.testing.assert_allclose(scores[:3], wanted, atol=1e-4)


@pytest.mark.parametrize(("max_new_tokens", "share"), [(1, 0.0), (2, 0.0), (3, 1.0)])
def test_an_integer_that_may_go_on_is_no_answer(backend, solutions, max_new_tokens, share):
    ids = [backend.tokenize(solutions[0][: solutions[0].rindex("A")])]  # the reply is 50
    group = group_of(backend, ids, encoded(backend, ids)[1], EarlyAnswer)
    method = ready(EarlyAnswer(max_new_tokens=max_new_tokens), backend)
    assert method.score(group) == share


# ---- methods on scripted replies


class Scripted(Internals):
    """Replies with given texts, one token per byte, each less likely than the one before."""

    def __init__(self, replies: list[list[str]], options: dict[str, list[float]] | None = None):
        self.replies, self.options = replies, options or {}
        self.asked: list[str | None] = []
        self.called: dict = {}

    def probe(self, suffixes, max_new_tokens, **options):
        self.called = {"suffixes": suffixes, "max_new_tokens": max_new_tokens, **options}
        found = []
        for texts, suffix in zip(self.replies, suffixes, strict=True):
            ids = [np.frombuffer(t.encode(), np.uint8).astype(np.int32) for t in texts]
            steps = [np.arange(len(i), dtype=np.float32) for i in ids]
            found.append(
                []
                if suffix is None
                else [
                    Probe(token_ids=np.append(i, END), logprobs=np.append(-s, -99), entropy=s)
                    for i, s in zip(ids, steps, strict=True)
                ]
            )
        return found

    def next_logprobs(self, suffixes):
        self.asked = [None if s is None else bytes(s.tolist()).decode() for s in suffixes]
        table = torch.full((len(suffixes), 257), -20.0)
        for character, column in self.options.items():
            table[:, ord(character)] = torch.tensor(column)
        return table

    def read(self, embeddings, adapter=None):
        raise NotImplementedError

    def hidden_states(self, layers):
        raise NotImplementedError

    def subset(self, order):
        raise NotImplementedError


def scripted(style: str, method, texts: list[str], replies: list[list[str]], **options):
    """Scores of paths with these texts; a text that ends with `$` is a finished path."""
    backend = FakeBackend()
    backend.bind(ModelSpec(name="x", id="x", answer=style), 0)
    ids = [
        np.append(backend.tokenize(t[:-1]), np.int32(END))
        if t.endswith("$")
        else backend.tokenize(t)
        for t in texts
    ]
    internals = Scripted(replies, **options)
    group = group_of(backend, ids, internals, type(method))
    return ready(method, backend).score(group), internals


THOUGHTS = ["so it is", "thus", "hence", "well", "then"]


def test_consensus_of_math_replies():
    replies = [["42} \\]"], ["42 } \\]\n\\("], ["41}"], ["42} Wait, no"], ["42 and so on"]]
    scores, internals = scripted("math", EarlyAnswer(), THOUGHTS, replies)
    np.testing.assert_allclose(scores, [2 / 5, 2 / 5, 1 / 5, 0, 0])
    suffix = bytes(internals.called["suffixes"][0].tolist()).decode()
    assert suffix.endswith("**Final Answer**\n\n\\[ \\boxed{")
    assert internals.called["max_new_tokens"] == 20
    assert internals.called["temperature"] == 0.0


def test_words_that_only_contain_a_hesitation_are_none():
    scores, _ = scripted("math", EarlyAnswer(), THOUGHTS[:2], [["1} is another"], ["1} no"]])
    np.testing.assert_allclose(scores, [0.5, 0.0])


def test_a_finished_path_gives_the_answer_in_its_text():
    texts = ["\\boxed{7} so 5$", "thus", "no answer$", "hence"]
    scores, internals = scripted("math", EarlyAnswer(), texts, [["-"], ["7}"], ["-"], ["5}"]])
    np.testing.assert_allclose(scores, [0.5, 0.5, 0.0, 0.25])
    assert [s is None for s in internals.called["suffixes"]] == [True, False, True, False]
    steady = EarlyAnswer(measure=Measure.stability, samples=2)
    scores, _ = scripted("math", steady, texts, [[], ["7}", "8}"], [], ["5}", "5}"]])
    np.testing.assert_allclose(scores, [1.0, 0.5, 0.0, 1.0])


def test_stability_and_entropy_of_sampled_replies():
    replies = [
        ["4}"] * 4,
        ["4}", "4}", "4}", "5}"],
        ["4}", "4}", "maybe", "hm"],
        ["a", "b", "c", "d"],
        ["1}", "2}", "3}", "4}"],
    ]
    steady = EarlyAnswer(measure=Measure.stability, samples=4, temperature=0.7)
    scores, internals = scripted("math", steady, THOUGHTS, replies)
    np.testing.assert_allclose(scores, [1.0, 0.75, 0.5, 0.0, 0.25])
    assert internals.called["n_samples"] == 4
    assert internals.called["temperature"] == 0.7
    method = AnswerConfidence(measure=ConfidenceMeasure.entropy, samples=4)
    scores, _ = scripted("math", method, THOUGHTS, replies)
    shares = [[1.0], [0.75, 0.25], [0.5, 0.25, 0.25], [0.25] * 4, [0.25] * 4]
    np.testing.assert_allclose(scores, [-scipy.stats.entropy(s) for s in shares], atol=1e-4)


def test_confidence_takes_the_tokens_of_the_answer_only():
    replies = [["123} \\]"], ["\\frac{1}{2}} so"], ["x"], ["  7 }"]]
    scores, _ = scripted("math", AnswerConfidence(), THOUGHTS[:4], replies)
    # token k of a reply has log-probability -k; leading blanks are no part of the answer
    np.testing.assert_allclose(scores, [-1.0, -5.0, -np.inf, -2.5])


@pytest.mark.parametrize(
    ("style", "text", "expected"),
    [
        ("math", "ab \\boxed{12} \\boxed{\\frac{3}{4}} c$", np.arange(21, 32).mean()),
        ("choice", 'ab "ANSWER": "C" x$', 14.0),
        ("choice", "A or \\boxed{B}$", 12.0),
        ("line", "1+1=2.\nA2$", 8.0),
        ("math", "nothing$", np.inf),
    ],
)
def test_confidence_of_a_finished_path_is_that_of_its_own_answer(style, text, expected):
    scores, _ = scripted(style, AnswerConfidence(), [text], [[]])
    assert scores[0] == pytest.approx(-expected / 100, abs=1e-4)


def test_p_true_asks_about_the_answer():
    texts, replies = [*THOUGHTS[:3], "\\boxed{9}$"], [["42} \\]"], ["41}"], ["hm"], []]
    options = {"A": [-1.0, -3.0, -1.0, -1.0], "B": [-2.0, -3.0, -1.0, -1.0]}
    scores, internals = scripted("math", PTrue(), texts, replies, options=options)
    own = -7.0 / 100  # the token of the 9
    wanted = [1 / (1 + np.exp(-1.0)), 0.5, 0.0, np.exp(own)]
    np.testing.assert_allclose(scores, wanted, atol=1e-4)
    assert internals.asked[2:] == [None, None]
    question = internals.asked[0]
    assert question is not None
    assert "\\boxed{42}\n\nProposed Answer: 42\nIs the proposed answer:\n (A) True" in question


def test_p_true_shows_the_other_answers():
    replies = [["42}"], ["7}"], ["7}"], ["{answer}}"], ["hm"]]
    options = {"A": [-1.0] * 5, "B": [-1.0] * 5}
    _, internals = scripted("math", PTrue(brainstorm=True), THOUGHTS, replies, options=options)
    first, second, *_, last = (q for q in internals.asked if q is not None)
    assert "ideas:\n7\n{answer}\n\nProposed Answer: 42\n" in first
    assert "ideas:\n42\n7\n{answer}\n\nProposed Answer: 7\n" in second
    assert "ideas:\n7\n42\n\nProposed Answer: {answer}\n" in last
    words = PTrue(template=" {answer}?", true="True", false="False")
    options = {"T": [-2.0], "t": [-2.0], "F": [-1.0], "f": [-30.0]}
    scores, internals = scripted("math", words, THOUGHTS[:1], [["42}"]], options=options)
    p = [2 * np.exp(-2.0), np.exp(-1.0)]
    assert scores[0] == pytest.approx(p[0] / sum(p), abs=1e-4)
    assert internals.asked[0] is not None
    assert internals.asked[0].endswith("\\boxed{42} 42?")


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: EarlyAnswer(max_new_tokens=0), "'max_new_tokens' parameter of EarlyAnswer"),
        (lambda: EarlyAnswer(samples=0), "'samples' parameter"),
        (lambda: EarlyAnswer(temperature=0.0), "'temperature' parameter"),
        (lambda: AnswerConfidence(samples=-1), "'samples' parameter of AnswerConfidence"),
        (lambda: PTrue(true="yes"), "'true' and 'false' parameters"),
        (lambda: PTrue(true="yes", false="yes"), "two different options"),
        (lambda: scripted("math", PTrue(true="ta", false="tb"), ["a"], [[]]), "first token"),
        (lambda: scripted("line", PTrue(brainstorm=True), ["a"], [[]]), "'brainstorm' parameter"),
    ],
)
def test_bad_options(make, match):
    with pytest.raises(ConfigError, match=match):
        make()
