"""What is trained on: which labelled prefixes, on which side of the split, relative to what."""

import math

import numpy as np
import pytest

from prunebench.labels import Plan
from prunebench.method import LabelledPrefix
from prunebench.prefixstore import problem_logits
from prunebench.train import mixed, split


def example(problem: str, label: float, n_tokens: int = 4) -> LabelledPrefix:
    return LabelledPrefix(
        problem_id=problem,
        prompt_ids=np.zeros(2, dtype=np.int32),
        prefix_ids=np.zeros(n_tokens, dtype=np.int32),
        label=label,
        n_continuations=1,
    )


def test_problems_without_both_outcomes_are_left_out():
    examples = [example("a", 1.0), example("a", 1.0), example("b", 0.0), example("b", 0.5)]
    assert {e.problem_id for e in mixed([*examples, example("c", 0.0)])} == {"b"}


def test_split_never_divides_a_problem():
    examples = [example(f"p{i % 200}", 0.5) for i in range(1000)]
    train, valid = split(examples, 0.2, seed=3)
    assert len(train) + len(valid) == 1000
    assert not {e.problem_id for e in train} & {e.problem_id for e in valid}
    assert 0.1 < len(valid) / 1000 < 0.3


def test_centring_uses_the_mean_of_the_problem():
    offsets = problem_logits([example("a", 1.0), example("a", 0.5), example("b", 0.0)])
    assert offsets[0] == offsets[1] == pytest.approx(math.log(0.75 / 0.25))
    assert offsets[2] == pytest.approx(-3.0, abs=0.02)


@pytest.mark.parametrize(
    ("k", "copies"), [(1, [1, 1, 1, 1]), (4, [1, 2, 1, 2]), (16, [2, 2, 2, 2])]
)
def test_continuations_branch_evenly(k, copies):
    plan = Plan(roots=1, prefix_lengths=(8, 16, 24, 32), n_continuations=k, seed=0)
    assert plan.copies == copies
    assert math.prod(plan.copies) == k
