"""What a method requires against what it is offered."""

import pytest

from prunebench import compat
from prunebench.errors import Incompatible
from prunebench.types import Capability

C = Capability
PROVIDERS = {
    "openai": frozenset({C.LOGPROBS, C.CONTINUE}),
    "transformers": frozenset({C.LOGPROBS, C.CONTINUE, C.KV_CACHE, C.GRADIENTS}),
}


def refused(requires: set, backend: str = "openai", extra: frozenset = frozenset()) -> str:
    with pytest.raises(Incompatible) as caught:
        compat.check(
            "m",
            frozenset(requires),
            backend=backend,
            provides=PROVIDERS[backend] | extra,
            providers=PROVIDERS,
        )
    return str(caught.value)


def test_what_is_provided_passes():
    compat.check(
        "m",
        frozenset({C.LOGPROBS}),
        backend="openai",
        provides=PROVIDERS["openai"],
        providers=PROVIDERS,
    )


def test_the_error_names_both_sides_what_is_missing_and_what_to_use():
    message = refused({C.LOGPROBS, C.KV_CACHE})
    assert "'m' (requires: logprobs, kv_cache)" in message
    assert "'openai' (provides: logprobs, continue)" in message
    assert "Missing: kv_cache." in message
    assert "backend=transformers" in message


def test_what_no_backend_gives_is_explained_instead_of_recommending_one():
    message = refused({C.OUTCOME}, backend="transformers")
    assert "mode=replay" in message
    assert "backend=" not in message
    assert "dataset=arithmetic" in refused({C.STEP_CHECK}, backend="transformers")
