"""Finds out what a completions server can do, by a dozen tiny requests, and stores it.

Servers take fields without saying that they ignore them, so settings are judged by what they do to
the tokens. Needs neither a tokenizer nor a model on this machine.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from prunebench.backend import Sampling
from prunebench.backends._noise import noise_args
from prunebench.backends._openaiclient import Completions
from prunebench.backends._openaireply import TOP, Drawn
from prunebench.endpoint import Request
from prunebench.errors import ConfigError, DamagedFile, Unavailable
from prunebench.storage import NotWritable, content_hash

logger = logging.getLogger(__name__)

FORMAT = 2
"""Part of every stored file, so that files of another form are not read."""

TEXT = "The"
OTHER_TEXTS = ("Once upon a time", "1, 2, 3,")
"""Prompts that can go on in many ways; the others are for models that end the first at once."""

IDS = (11, 12, 13)
"""A prompt that every vocabulary has."""

N_TOKENS = 16
HOT = 2.0
"""A temperature at which the most likely token is often not drawn."""

RAW = 0.05
"""Most by which log-probabilities may depend on the temperature, in nats: rounding of short number
formats."""

NAMES = {"return_token_ids": True, "return_tokens_as_token_ids": True}
"""Fields that ask for token ids in place of texts."""

PLAIN = {"min_p": 0.0, "repetition_penalty": 1.0, "stop_token_ids": []}
"""Fields against what servers do by themselves, beside the size of top-k that switches it off."""


@dataclass(frozen=True, kw_only=True)
class Abilities:
    """What a server can do. The defaults are those of a server that can do all of it.

    Attributes
    ----------
    token_prompts : prompts may be token ids.
    token_ids : it names the ids of the tokens that it draws.
    logprobs : alternatives per token that it gives; 0: none, or none of the raw distribution.
    temperature, top_p, top_k : whether the tokens obey them.
    seed : equal seeds give equal tokens.
    names : fields that ask for token ids.
    plain : fields that switch off what it would do by itself.
    path_noise : it draws by key and position, through prunebench's logits processor.
    """

    token_prompts: bool = True
    token_ids: bool = True
    logprobs: int = TOP
    temperature: bool = True
    top_p: bool = True
    top_k: bool = True
    seed: bool = True
    names: Mapping[str, Any] = field(default_factory=lambda: dict(NAMES))
    plain: Mapping[str, Any] = field(default_factory=lambda: {"top_k": 0, **PLAIN})
    path_noise: bool = False


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server as it was found: the name of its model, and where that is stored (None: nowhere)."""

    model: str
    abilities: Abilities
    file: Path | None = None


def find_out(client: Completions) -> Abilities:
    """Ask the server. Raises what the client raises when it does not answer."""
    ask = _Asker(client)
    ask.ping()
    by_ids = ask(prompt=IDS, max_tokens=1)
    token_prompts = by_ids is not None and by_ids.prompt_tokens in (None, len(IDS))
    greedy, names, n_asked = ask.most()
    plain = next(
        fields
        for fields in ({"top_k": 0, **PLAIN}, {"top_k": -1, **PLAIN}, {})
        if not fields or ask(prompt=TEXT, max_tokens=1, extra=fields) is not None
    )

    def draw(text: str, *, temperature: float = HOT, top_p: float = 1.0, **more: Any) -> Any:
        return ask(
            prompt=text,
            max_tokens=N_TOKENS,
            temperature=temperature,
            top_p=top_p,
            top_logprobs=n_asked,
            seed=more.pop("seed", 1),
            extra={**names, **plain, **more},
        )

    obeys, text = False, TEXT
    cold = warm = greedy
    for text in (TEXT, *OTHER_TEXTS):
        cold, warm, other = draw(text, temperature=0.0), draw(text), draw(text, seed=2)
        obeys = warm is not None and not (_same(warm, cold) and _same(other, cold))
        if obeys and not _same(draw(text, temperature=0.0, seed=2), cold):
            obeys = False  # what differed were the seeds
        if obeys or warm is None:
            break
    raw = obeys and warm is not None and _raw(cold, warm)
    if n_asked and obeys and not raw:
        logger.warning(
            "%s gives log-probabilities after temperature; they are not used", client.base_url
        )
    return Abilities(
        token_prompts=token_prompts,
        token_ids=greedy.token_ids is not None,
        logprobs=min(n_asked, max(1, greedy.n_alternatives)) if raw or not obeys else 0,
        temperature=obeys,
        top_p=obeys and _same(draw(text, top_p=1e-4), cold),
        top_k=obeys and _same(draw(text, top_k=1), cold),
        seed=obeys and _same(draw(text), warm),
        names=names,
        plain=plain,
        path_noise=token_prompts and greedy.token_ids is not None and _path_noise(ask, names),
    )


class _Asker:
    def __init__(self, client: Completions) -> None:
        self.client = client

    def __call__(self, **request: Any) -> Drawn | None:
        """The reply, None when the server will not or cannot answer such a request."""
        try:
            [reply] = self.client.ask([Request(**request)])
        except Unavailable:
            self.ping()  # is it the request or the server?
            return None
        return reply if isinstance(reply, Drawn) else None

    def ping(self) -> None:
        """Raise when the server does not answer the plainest request."""
        [reply] = self.client.ask([Request(prompt=TEXT)])
        if not isinstance(reply, Drawn):
            raise ConfigError(
                f"The server at {self.client.base_url} must complete texts with the model "
                f"{self.client.model!r}. It refuses ({reply.refusal})."
            )

    def most(self) -> tuple[Drawn, Mapping[str, Any], int]:
        """A greedy reply with as much as the server tells, the fields that ask for ids, and the
        number of alternatives asked for (0: it gives no log-probabilities)."""
        for names in (NAMES, {}):
            for n in (TOP, 5, 1, 0):
                reply = self(prompt=TEXT, max_tokens=N_TOKENS, top_logprobs=n, extra=names)
                if reply is not None:
                    return reply, names, n if "logprobs" in reply.stats else 0
        raise ConfigError(
            f"The server at {self.client.base_url} completes a text by one token, but not by "
            f"{N_TOKENS}. Check how long its replies may be."
        )


def _same(a: Drawn | None, b: Drawn | None) -> bool:
    if a is None or b is None:
        return False
    if a.token_ids is None or b.token_ids is None:
        return a.text == b.text
    return np.array_equal(a.token_ids, b.token_ids)


def _raw(cold: Drawn, warm: Drawn) -> bool:
    """Whether the log-probabilities of the first token are such, and do not depend on the
    temperature."""
    shared = cold.first.keys() & warm.first.keys()
    same = bool(shared) and all(abs(cold.first[n] - warm.first[n]) <= RAW for n in shared)
    values = list(cold.first.values())
    return same and max(values) <= 0 and sum(map(math.exp, values)) <= 1.01


def _path_noise(ask: _Asker, names: Mapping[str, Any]) -> bool:
    """Whether a path goes on after its own prefix as it would have, and another key changes it."""
    hot = Sampling(temperature=HOT, top_p=1.0, top_k=0)

    def draw(key: int, prefix: Sequence[int] = ()) -> list[int] | None:
        reply = ask(
            prompt=(*IDS, *prefix),
            max_tokens=N_TOKENS - len(prefix),
            extra={**names, "vllm_xargs": noise_args(key, hot, len(prefix))},
        )
        return None if reply is None or reply.token_ids is None else reply.token_ids.tolist()

    whole, other = draw(1), draw(2)
    if not whole or other is None or whole == other:
        return False
    half = len(whole) // 2
    return draw(1, whole[:half]) == whole[half:]


# ---- the stored file


def _file(folder: str, base_url: str, model: str | None) -> Path:
    return Path(folder) / f"{content_hash({'base_url': base_url, 'model': model})}.json"


def stored(folder: str, base_url: str, model: str | None) -> Server | None:
    """What was found before; `model` is the name that was asked for, None for the only one."""
    file = _file(folder, base_url, model)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            return None
        known = {f.name for f in fields(Abilities)}
        abilities = Abilities(**{k: v for k, v in content["abilities"].items() if k in known})
        return Server(model=str(content["model"]), abilities=abilities, file=file)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DamagedFile(
            f"The file {file}, which says what the server {base_url} can do, is damaged "
            f"({error}). Delete it: the next run asks the server again."
        ) from error


def store(folder: str, base_url: str, model: str | None, name: str, abilities: Abilities) -> Server:
    """Keep what was found about the server's model `name`."""
    file = _file(folder, base_url, model)
    content = {
        "format": FORMAT,
        "base_url": base_url,
        "model": name,
        "asked": datetime.now(UTC).isoformat(timespec="seconds"),
        "abilities": asdict(abilities),
    }
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        temporary.replace(file)
    except OSError as error:
        raise NotWritable(
            f"Cannot write {file}: {error.strerror or error}. Make the folder writable or choose "
            f"another one with backend.capabilities_dir=FOLDER."
        ) from error
    return Server(model=name, abilities=abilities, file=file)
