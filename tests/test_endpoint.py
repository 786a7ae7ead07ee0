"""The endpoint client against a local server with scripted faults: retries, cache, costs, key."""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faultyserver import USAGE, FaultyServer, chat_reply, error, good, send

from prunebench.cost import Cost, Ledger
from prunebench.endpoint import EndpointConfig, Reply, Request
from prunebench.endpointclient import OpenAIEndpoint
from prunebench.errors import ConfigError, DamagedFile, EndpointError, Unavailable
from prunebench.openaiformat import body_of, retry_after_of, tokens_of
from prunebench.replycache import ReplyCache, reply_key
from prunebench.storage import NotWritable

pytest.importorskip("openai")

KEY = "sk-very-secret-0123456789"
TOKENS = USAGE["total_tokens"]

Make = Callable[..., OpenAIEndpoint]


def chat(text: str = "is it right?", **options: Any) -> Request:
    return Request(messages=({"role": "user", "content": text},), **options)


def chats(n: int) -> list[Request]:
    return [chat(f"question {i}") for i in range(n)]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Makes clients that pause no longer than 10 ms and close at the end."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    clients = []

    def client(base_url: str, **options: Any) -> OpenAIEndpoint:
        settings: dict[str, Any] = {
            "base_url": base_url,
            "model": "judge",
            "max_wait": 0.01,
            "max_attempts": 3,
            "timeout": 5.0,
            "price_prompt": 2.0,
            "price_completion": 10.0,
            "cache_dir": str(tmp_path / "cache"),
        }
        clients.append(OpenAIEndpoint(EndpointConfig(**{**settings, **options}), Ledger()))
        return clients[-1]

    yield client
    for made in clients:
        made.close()


def texts(replies: list[Reply]) -> list[str]:
    return [reply.choices[0].text for reply in replies]


def test_replies_come_in_order_from_a_bounded_number_in_flight(make: Make) -> None:
    with FaultyServer(delay=0.02) as server:
        replies = make(server.base_url, concurrency=4).ask(chats(24))
    assert texts(replies) == [f"question {i}" for i in range(24)]
    assert 2 <= server.most_in_flight <= 4


def test_one_at_a_time_is_one_at_a_time(make: Make) -> None:
    with FaultyServer(delay=0.002) as server:
        make(server.base_url, concurrency=1).ask(chats(6))
    assert server.most_in_flight == 1


def test_sixty_four_requests_take_under_a_second(make: Make) -> None:
    with FaultyServer() as server:
        client = make(server.base_url)
        client.ask([chat("loads the library")])
        start = time.process_time()  # of client and server; busy machines do not count
        client.ask(chats(64))
        assert time.process_time() - start < 1.0
        assert client.ledger.spent.calls == 65


def test_the_request_is_sent_as_the_api_wants_it(make: Make) -> None:
    with FaultyServer() as server:
        client = make(server.base_url + "/")
        client.ask(
            [
                chat(
                    "q", max_tokens=5, temperature=0.5, top_p=0.9, top_logprobs=4, n=2, seed=3,
                    stop=("\n",), extra={"chat_template_kwargs": {"thinking": False}},
                )
            ]
        )  # fmt: skip
        client.ask([Request(prompt="p", top_logprobs=4), Request(prompt="p")])
    (chat_path, chat_body, _), *rest = server.requests
    assert chat_path == "/v1/chat/completions"
    assert chat_body == {
        "model": "judge",
        "messages": [{"role": "user", "content": "q"}],
        "max_tokens": 5,
        "temperature": 0.5,
        "top_p": 0.9,
        "logprobs": True,
        "top_logprobs": 4,
        "n": 2,
        "seed": 3,
        "stop": ["\n"],
        "chat_template_kwargs": {"thinking": False},
    }
    bodies = {body.get("logprobs"): (path, body) for path, body, _ in rest}
    plain = {"model": "judge", "prompt": "p", "max_tokens": 1, "temperature": 0, "top_p": 1}
    assert bodies == {
        4: ("/v1/completions", {**plain, "logprobs": 4}),
        None: ("/v1/completions", plain),
    }


def test_none_in_extra_takes_a_field_out() -> None:
    _, body = body_of("m", chat(extra={"max_tokens": None, "max_completion_tokens": 9}))
    assert "max_tokens" not in body
    assert body["max_completion_tokens"] == 9


def test_log_probabilities_of_both_apis(make: Make) -> None:
    with FaultyServer() as server:
        client = make(server.base_url)
        requests = [chat(top_logprobs=3), Request(prompt="p", top_logprobs=2, max_tokens=2)]
        for _ in range(2):  # fresh, then from the cache
            from_chat, from_completion = client.ask(requests)
            tokens = from_chat.choices[0].tokens
            assert tokens is not None
            assert (tokens[0].text, tokens[0].logprob) == ("Yes", -0.5)
            assert dict(tokens[0].top) == pytest.approx(
                {"Yes": math.log(math.exp(-0.5) + math.exp(-2.0)), "No": -1.5}
            )
            tokens = from_completion.choices[0].tokens
            assert tokens is not None
            assert [token.text for token in tokens] == ["A", "B"]
            assert math.isnan(tokens[0].logprob)
            assert tokens[1].logprob == -0.25
            assert [dict(token.top) for token in tokens] == [{}, {"B": -0.25, "C": -1.75}]
            assert from_completion.choices[0].finish_reason == "length"
    assert len(server.requests) == 2


def test_minus_infinity_adds_nothing() -> None:
    top = [{"token": "A", "logprob": -math.inf}, {"token": "A", "logprob": -1.0}]
    tokens = tokens_of({"content": [{"token": "A", "logprob": -1.0, "top_logprobs": top}]})
    assert tokens is not None
    assert tokens[0].top == {"A": -1.0}


def test_several_choices(make: Make) -> None:
    with FaultyServer() as server:
        [reply] = make(server.base_url).ask([chat(n=3)])
    assert [choice.text for choice in reply.choices] == ["is it right?"] * 3


def test_no_log_probabilities_is_none_and_not_a_fault(make: Make) -> None:
    with FaultyServer(["no_logprobs"]) as server:
        client = make(server.base_url)
        [reply] = client.ask([chat(top_logprobs=5)])
    assert reply.choices[0].tokens is None
    assert client.ledger.spent.calls == 1


def test_a_reply_without_text_is_empty(make: Make) -> None:
    choice = {"message": {"content": None}, "finish_reason": "length"}
    with FaultyServer([good(choices=[choice])]) as server:
        [reply] = make(server.base_url).ask([chat()])
    assert reply.choices[0].text == ""


RETRIED = [
    "429", "429_after_0", "500", "503", "slow", "drip", "drop", "half", "broken_json", "html",
    "no_choices", "error_in_200",
]  # fmt: skip


@pytest.mark.parametrize("fault", RETRIED)
def test_a_fault_is_tried_again(make: Make, fault: str) -> None:
    with FaultyServer([fault, fault]) as server:
        client = make(server.base_url, timeout=0.4 if fault in ("slow", "drip") else 5.0)
        [reply] = client.ask([chat()])
        assert texts([reply]) == ["is it right?"]
        assert len(server.requests) == 3
    spent = client.ledger.spent
    assert (spent.calls, spent.failed_calls, spent.cached_calls) == (3, 2, 0)


@pytest.mark.parametrize("fault", RETRIED)
def test_a_fault_that_stays_is_unavailable_and_never_cached(make: Make, fault: str) -> None:
    with FaultyServer(always=fault) as server:
        timeout = 0.4 if fault in ("slow", "drip") else 5.0
        client = make(server.base_url, timeout=timeout, max_attempts=2)
        with pytest.raises(Unavailable, match=r"1 of 1 requests to judge at .* in 2 tries"):
            client.ask([chat()])
        server.always = None
        assert texts(client.ask([chat()])) == ["is it right?"]
        assert len(server.requests) == 3


def record_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    pauses: list[float] = []
    real = OpenAIEndpoint._pause

    def pause(self: OpenAIEndpoint, state: Any) -> float:
        pauses.append(real(self, state))
        return 0.0

    monkeypatch.setattr(OpenAIEndpoint, "_pause", pause)
    return pauses


def test_pauses_follow_retry_after_and_grow_otherwise(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = record_pauses(monkeypatch)
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=40), usegmt=True)
    script = [
        "429_after_7",
        "429_after_0",
        "429_after_1000",
        error(503, "busy", Retry_After=soon),
        error(429, "busy", Retry_After="when it suits"),
        "500",
        "500",
    ]
    with FaultyServer(script) as server:
        make(server.base_url, max_attempts=8, max_wait=50.0).ask([chat()])
    assert pauses[:3] == [7.0, 0.0, 50.0]
    assert 35 <= pauses[3] <= 40
    # the pauses after the 5th, 6th and 7th try double from 16 s and stop at max_wait
    assert 16 <= pauses[4] <= 17
    assert 32 <= pauses[5] <= 33
    assert pauses[6] == 50.0


def test_the_client_sleeps_as_long_as_retry_after_says(make: Make) -> None:
    with FaultyServer([error(429, "slow down", Retry_After="0.3")]) as server:
        start = time.perf_counter()
        make(server.base_url, max_wait=5.0).ask([chat()])
        assert 0.3 <= time.perf_counter() - start < 4.0


@pytest.mark.parametrize(
    ("header", "seconds"),
    [(None, None), ("3", 3.0), ("-3", 0.0), ("nan", 0.0), ("soon", None), ("1.5", 1.5),
     ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0)],
)  # fmt: skip
def test_retry_after_forms(header: str | None, seconds: float | None) -> None:
    assert retry_after_of(header) == seconds


def test_only_what_is_missing_is_asked_again(make: Make) -> None:
    def fail_odd(handler: Any, body: dict[str, Any]) -> None:
        if int(body["messages"][0]["content"].split()[1]) % 2:
            send(handler, 500, {"error": {"message": "odd ones break"}})
        else:
            send(handler, 200, chat_reply(body))

    with FaultyServer(always=fail_odd) as server:
        client = make(server.base_url)
        with pytest.raises(Unavailable) as info:
            client.ask(chats(10))
        assert "5 of 10 requests" in str(info.value)
        assert "500: odd ones break" in str(info.value)
        assert "asks only for the missing ones" in str(info.value)
        assert len(server.requests) == 5 + 5 * 3
        assert client.ledger.spent.calls == 20
        assert client.ledger.spent.failed_calls == 15
        server.always = None
        server.requests.clear()
        again = make(server.base_url)
        assert texts(again.ask(chats(10))) == [f"question {i}" for i in range(10)]
        asked = sorted(body["messages"][0]["content"] for _, body, _ in server.requests)
    assert asked == [f"question {i}" for i in range(1, 10, 2)]
    assert (again.ledger.spent.calls, again.ledger.spent.cached_calls) == (5, 5)


def test_without_a_cache_the_error_does_not_promise_one(make: Make) -> None:
    with FaultyServer(always="500") as server:
        client = make(server.base_url, cache_dir=None)
        with pytest.raises(Unavailable, match="asks all again"):
            client.ask([chat()])
        server.always = None
        client.ask([chat()])
        client.ask([chat()])
    assert len(server.requests) == 3 + 2


def test_a_cached_reply_sends_nothing_and_costs_the_same(make: Make) -> None:
    with FaultyServer() as server:
        first, second = make(server.base_url), make(server.base_url)
        replies = first.ask(chats(5))
        assert second.ask(chats(5)) == replies
        assert len(server.requests) == 5
    tokens = {"verifier_tokens": 5 * TOKENS, "prompt_tokens": 5 * 7, "completion_tokens": 5 * 3}
    assert first.ledger.spent == Cost(**tokens, calls=5)
    assert second.ledger.spent == Cost(**tokens, cached_calls=5)
    for client in (first, second):
        money = client.ledger.spent.priced(*client.config.prices).money
        assert money == pytest.approx(5 * (7 * 2.0 + 3 * 10.0) / 1e6)


def test_cached_replies_need_no_server_no_key_and_no_library(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with FaultyServer() as server:
        make(server.base_url, key_env="JUDGE_KEY").ask(chats(2))
        url = server.base_url
    monkeypatch.delenv("JUDGE_KEY")
    monkeypatch.setitem(sys.modules, "openai", None)
    assert len(make(url, key_env="JUDGE_KEY").ask(chats(2))) == 2
    with pytest.raises(ConfigError, match=r"'openai'.*pip install openai"):
        make(url).ask(chats(3))


def test_equal_requests_are_sent_and_counted_once(make: Make) -> None:
    with FaultyServer() as server:
        client = make(server.base_url)
        replies = client.ask([chat("a"), chat("b"), chat("a")])
    assert texts(replies) == ["a", "b", "a"]
    assert len(server.requests) == 2
    spent = client.ledger.spent
    assert (spent.calls, spent.cached_calls, spent.verifier_tokens) == (2, 0, 2 * TOKENS)


@pytest.mark.parametrize(
    "change",
    [
        {"base_url": "http://other/v1"},
        {"model": "other"},
        {"api": "completions"},
        {"body": {"seed": 2}},
    ],
)
def test_the_cache_key_names_everything_that_determines_a_reply(change: dict[str, Any]) -> None:
    base: dict[str, Any] = {
        "base_url": "http://s/v1",
        "model": "m",
        "api": "chat/completions",
        "body": {"seed": 1, "temperature": 1.0},
    }
    assert reply_key(**base) != reply_key(**{**base, **change})
    assert reply_key(**base) == reply_key(**{**base, "body": {"temperature": 1, "seed": 1}})


def test_tokens_and_money_of_failed_tries_are_counted(make: Make) -> None:
    with FaultyServer(["500_usage", good(choices=[])]) as server:
        client = make(server.base_url)
        client.ask([chat()])
    spent = client.ledger.spent
    assert (spent.calls, spent.failed_calls) == (3, 2)
    assert spent.verifier_tokens == 3 * TOKENS
    money = spent.priced(*client.config.prices).money
    assert money == pytest.approx(3 * (7 * 2.0 + 3 * 10.0) / 1e6)


def test_tokens_are_counted_when_every_try_fails(make: Make) -> None:
    with FaultyServer(always="500_usage") as server:
        client = make(server.base_url)
        with pytest.raises(Unavailable):
            client.ask([chat()])
    assert client.ledger.spent.verifier_tokens == 3 * TOKENS


def test_money_is_unknown_without_prices(make: Make) -> None:
    with FaultyServer() as server:
        client = make(server.base_url, price_completion=None)
        assert client.ask([]) == []
        assert client.ledger.spent.priced(2.0, None).money == 0
        client.ask([chat()])
    assert math.isnan(client.ledger.spent.priced(2.0, None).money)


def test_unreported_usage_is_remembered_and_said_once(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    with FaultyServer(["no_usage", "no_usage"]) as server:
        client = make(server.base_url)
        client.ask(chats(3))
        client.ask(chats(3))
    assert client.unknown_usage == 4
    assert math.isnan(client.ledger.spent.verifier_tokens), "not 0: the server wrote something"
    assert math.isnan(client.ledger.spent.priced(2.0, 10.0).money)
    assert len([r for r in caplog.records if "how many tokens" in r.message]) == 1


def test_a_refusal_belongs_to_its_request_and_is_asked_again(make: Make) -> None:
    """Of the server as it is set up now: a longer context may be allowed tomorrow."""
    with FaultyServer(["400", None, "400"]) as server:
        client = make(server.base_url, concurrency=1)
        for _ in range(2):
            refused, served = client.ask([chat("too long"), chat("short")])
            assert refused == Reply(refusal="400: This model's maximum context length is 16 tokens")
            assert texts([served]) == ["short"]
        assert texts(client.ask([chat("too long")])) == ["too long"]
    assert len(server.requests) == 4
    spent = client.ledger.spent
    assert (spent.calls, spent.failed_calls, spent.cached_calls) == (4, 2, 1)


def test_after_good_replies_a_403_is_one_requests_fault(make: Make) -> None:
    with FaultyServer([None, error(403, "flagged by moderation")]) as server:
        client = make(server.base_url, concurrency=1)
        served, refused = client.ask([chat("good"), chat("flagged")])
    assert texts([served]) == ["good"]
    assert refused.refusal == "403: flagged by moderation"


def test_a_reply_that_was_broken_off_is_asked_for_again(make: Make) -> None:
    broken = {"message": {"content": "I th"}, "finish_reason": "abort"}
    with FaultyServer([good(choices=[broken])]) as server:
        assert texts(make(server.base_url).ask([chat("a")])) == ["a"]
    assert len(server.requests) == 2


@pytest.mark.parametrize("status", [413, 422])
def test_other_refusals(make: Make, status: int) -> None:
    with FaultyServer(always=error(status, "too large")) as server:
        [reply] = make(server.base_url).ask([chat()])
    assert reply.refusal == f"{status}: too large"
    assert len(server.requests) == 1


def test_filtered_replies_are_refusals(make: Make) -> None:
    filtered = {"message": {"content": ""}, "finish_reason": "content_filter"}
    declined = {"message": {"content": None, "refusal": "I will not."}, "finish_reason": "stop"}
    with FaultyServer([good(choices=[filtered]), good(choices=[declined])]) as server:
        client = make(server.base_url, concurrency=1)
        replies = client.ask(chats(2))
    assert [reply.refusal for reply in replies] == [
        "the server's content filter stopped the reply",
        "the model refuses: I will not.",
    ]
    assert all(reply.choices == () for reply in replies)
    assert client.ledger.spent.failed_calls == 2


def test_no_server_ends_the_run_and_says_what_to_start(make: Make) -> None:
    with FaultyServer() as server:
        url = server.base_url
    client = make(url, concurrency=2)
    with pytest.raises(EndpointError) as info:
        client.ask(chats(50))
    assert f"No server answers at {url}" in str(info.value)
    assert "vllm serve judge" in str(info.value)
    assert 3 <= client.ledger.spent.calls <= 6  # the other requests are not even tried
    assert client.ledger.spent.failed_calls == client.ledger.spent.calls


def test_a_server_that_comes_up_late_is_found(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultyServer() as server:
        port = server.port
    late: list[FaultyServer] = []

    def start(self: OpenAIEndpoint, state: Any) -> float:
        if state.attempt_number == 2:
            late.append(FaultyServer(port=port).__enter__())
        return 0.0

    monkeypatch.setattr(OpenAIEndpoint, "_pause", start)
    client = make(f"http://127.0.0.1:{port}/v1")
    assert texts(client.ask([chat()])) == ["is it right?"]
    assert client.ledger.spent.failed_calls == 2
    late[0].__exit__()


def test_a_wrong_model_is_named_with_those_that_exist(make: Make) -> None:
    for fault in ("404_model", "400_model"):
        with FaultyServer(always=fault) as server:
            client = make(server.base_url, model="jugde")
            with pytest.raises(EndpointError) as info:
                client.ask(chats(20))
            assert "'jugde'" in str(info.value)
            assert "judge, other" in str(info.value)
            assert server.gets == ["/v1/models"]
            assert len(server.requests) <= 16


def test_a_wrong_address_says_how_it_should_end(make: Make) -> None:
    with FaultyServer() as server:
        client = make(server.base_url.removesuffix("/v1"))
        with pytest.raises(EndpointError, match="usually ends in /v1"):
            client.ask([chat()])


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [(402, None, "answers no request .402: pay first"), (429, "insufficient_quota", "pay first")],
)
def test_an_empty_account_ends_the_run_at_once(
    make: Make, status: int, code: str | None, words: str
) -> None:
    def broke(handler: Any, body: dict[str, Any]) -> None:
        send(handler, status, {"error": {"message": "pay first", "code": code}})

    with FaultyServer(always=broke) as server:
        with pytest.raises(EndpointError, match=words):
            make(server.base_url).ask([chat()])
        assert len(server.requests) == 1


def test_replies_that_came_before_a_fatal_error_are_kept(make: Make) -> None:
    with FaultyServer([None, None], always="401") as server:
        with pytest.raises(EndpointError, match=r"wants a key \(401: no such key\)"):
            make(server.base_url, concurrency=1).ask(chats(5))
        assert len(server.requests) == 3
        server.always = None
        server.requests.clear()
        again = make(server.base_url)
        again.ask(chats(5))
    assert (again.ledger.spent.calls, again.ledger.spent.cached_calls) == (3, 2)


def test_a_fatal_error_stops_the_other_requests(make: Make) -> None:
    with FaultyServer(["401"], delay=0.02) as server:
        with pytest.raises(EndpointError):
            make(server.base_url, concurrency=2).ask(chats(50))
        assert len(server.requests) < 10


@pytest.fixture
def sigint() -> Iterator[None]:
    """Python's own reaction to Ctrl-C, also where the shell started the tests with it ignored, as
    shells do with what runs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("sigint")
def test_ctrl_c_keeps_what_arrived(make: Make) -> None:
    with FaultyServer([None, None, None], always="slow") as server:
        client = make(server.base_url, concurrency=1)
        arrived: list[None] = []

        def on_reply() -> None:
            arrived.append(None)
            if len(arrived) == 3:
                threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()

        client.on_reply = on_reply
        start = time.perf_counter()
        with pytest.raises(KeyboardInterrupt):
            client.ask(chats(6))
        assert time.perf_counter() - start < 2.5  # three slow replies take 3 s
        server.always = None
        client.on_reply = None
        server.requests.clear()
        assert texts(client.ask(chats(6))) == [f"question {i}" for i in range(6)]
        assert len(server.requests) == 3


def test_the_progress_callback_hears_of_every_request(make: Make) -> None:
    with FaultyServer() as server:
        client = make(server.base_url)
        client.ask(chats(2))
        heard: list[None] = []
        client.on_reply = lambda: heard.append(None)
        client.ask([*chats(5), chat("question 0")])
    assert len(heard) == 6


def test_close_and_ask_again(make: Make) -> None:
    with FaultyServer() as server:
        client = make(server.base_url)
        client.close()
        client.ask([chat("a")])
        client.close()
        client.close()
        assert texts(client.ask([chat("a"), chat("b")])) == ["a", "b"]
        assert len(server.requests) == 2


# The key.


def test_the_key_is_sent_and_stands_nowhere_else(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("JUDGE_KEY", f" {KEY}\n")
    caplog.set_level(logging.DEBUG)
    for name in ("httpx", "httpcore", "httpx2", "httpcore2", "openai", "asyncio"):
        caplog.set_level(logging.DEBUG, logger=name)

    def echo(handler: Any, body: dict[str, Any]) -> None:
        message = {"content": f"your key is {handler.headers['Authorization']}"}
        send(handler, 200, {"choices": [{"message": message}], "usage": USAGE})

    def refuse(handler: Any, body: dict[str, Any]) -> None:
        send(handler, 400, {"error": {"message": f"bad: {handler.headers['Authorization']}"}})

    with FaultyServer(["500", None, echo, refuse, "html"]) as server:
        client = make(server.base_url, key_env="JUDGE_KEY", concurrency=1)
        replies = client.ask(chats(4))
        sent = {headers["authorization"] for _, _, headers in server.requests}
        assert sent == {f"Bearer {KEY}"}
        assert texts(replies[1:2]) == ["your key is Bearer ***"]
        assert replies[2].refusal == "400: bad: Bearer ***"
    assert "send_request_headers" in caplog.text  # the deepest library did write its log
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(b"question" in path.read_bytes() for path in files)
    everything = [path.read_bytes() for path in files]
    seen = (caplog.text, client, client.config, client.ledger, client.ledger.spent, replies)
    everything += [repr(item).encode() for item in seen]
    everything += [pickle.dumps(client)]
    for data in everything:
        assert KEY.encode() not in data


def test_a_client_comes_back_from_a_pickle(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with FaultyServer() as server:
        client = make(server.base_url, key_env="JUDGE_KEY")
        client.ask([chat()])
        copy = pickle.loads(pickle.dumps(client))
        assert texts(copy.ask([chat(), chat("new")])) == ["is it right?", "new"]
        copy.close()
    assert len(server.requests) == 2


@pytest.mark.parametrize("key", [KEY, "zq~7"])
def test_a_wrong_key_is_named_by_its_variable_alone(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, key: str
) -> None:
    monkeypatch.setenv("JUDGE_KEY", key)
    caplog.set_level(logging.DEBUG)
    with FaultyServer(always="echo_key") as server:
        with pytest.raises(EndpointError) as info:
            make(server.base_url, key_env="JUDGE_KEY").ask(chats(3))
        assert f"Bearer {key}" in {h["authorization"] for _, _, h in server.requests}
    assert "refuses the key in the environment variable JUDGE_KEY" in str(info.value)
    assert "***" in str(info.value)
    assert info.value.__cause__ is None
    assert info.value.__context__ is None
    assert key not in str(info.value) + caplog.text


@pytest.mark.parametrize("status", [500, 403, 404])
def test_errors_that_echo_the_key_are_cut(
    make: Make, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    def echo(handler: Any, body: dict[str, Any]) -> None:
        key = handler.headers["Authorization"].split()[1]
        send(handler, status, "x" * 290 + key)  # cut out before the text is shortened

    monkeypatch.setenv("JUDGE_KEY", KEY)
    errors = (EndpointError, Unavailable)
    with FaultyServer(always=echo) as server, pytest.raises(errors) as info:
        make(server.base_url, key_env="JUDGE_KEY").ask([chat()])
    assert "xxx" in str(info.value)
    assert KEY[:4] not in str(info.value)


def test_a_key_in_place_of_its_name_is_not_repeated(make: Make) -> None:
    for key in (KEY, "gsk_abcDEF0123"):
        with pytest.raises(ConfigError, match="key_env") as info:
            make("http://127.0.0.1:1/v1", key_env=key)
        assert key not in str(info.value)


@pytest.mark.parametrize("value", [None, "", "  "])
def test_an_unset_key_names_its_variable(
    make: Make, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("JUDGE_KEY", value)
    client = make("http://127.0.0.1:1/v1", key_env="JUDGE_KEY")
    with pytest.raises(ConfigError, match="JUDGE_KEY is not set"):
        client.ask([chat()])


def test_a_key_that_no_header_can_hold_is_not_repeated(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "schlüssel")
    with pytest.raises(ConfigError, match="JUDGE_KEY holds no valid key") as info:
        make("http://127.0.0.1:1/v1", key_env="JUDGE_KEY").ask([chat()])
    assert "schl" not in str(info.value)


def test_keys_of_other_servers_stay_here(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with FaultyServer() as server:
        make(server.base_url).ask([chat()])
    assert KEY not in str(server.requests)


# Configuration.


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="No endpoint is configured"):
        OpenAIEndpoint(EndpointConfig(), Ledger())
    with pytest.raises(ConfigError, match=r"endpoint.concurrency"):
        OpenAIEndpoint(EndpointConfig(base_url="http://a/v1", model="m", concurrency=0), Ledger())


def test_an_address_that_is_none_is_an_error_of_the_configuration(make: Make) -> None:
    with pytest.raises(ConfigError, match=r"endpoint.base_url=http://host:port/v1"):
        make("http://host:port/v1").ask([chat()])


def test_content_that_is_no_json_is_refused(make: Make) -> None:
    with pytest.raises(ConfigError, match="array"):
        make("http://127.0.0.1:1/v1").ask([chat(extra={"bias": np.zeros(2)})])


def test_the_shipped_options_compose() -> None:
    pytest.importorskip("hydra")
    from omegaconf import OmegaConf

    from prunebench import compose

    def as_config(node: Any) -> EndpointConfig:
        config = OmegaConf.to_object(node)
        assert isinstance(config, EndpointConfig)
        return config

    with compose.hydra_ready() as loader:
        options = loader.get_group_options("endpoint")
        nodes: dict[str, Any] = {
            name: compose.composed([f"endpoint={name}"]).endpoint for name in options
        }
    assert {"none", "local", "openai", "server"} <= set(nodes)
    assert nodes["none"].base_url is None
    assert nodes["local"].key_env is None
    assert nodes["openai"].key_env == "OPENAI_API_KEY"
    nodes["openai"].model = "m"
    for name in ("none", "local", "openai"):
        as_config(nodes[name]).validate()
    with pytest.raises(ConfigError, match=r"endpoint.base_url.*address"):
        as_config(nodes["server"]).validate()
    nodes["server"].base_url = "http://host/v1"
    with pytest.raises(ConfigError, match=r"endpoint.model.*name of a model"):
        as_config(nodes["server"]).validate()


# The cache of replies.


def test_the_first_value_stays(tmp_path: Path) -> None:
    one, two = ReplyCache(tmp_path), ReplyCache(tmp_path)
    assert one.get("k") is None
    assert one.put("k", {"a": [1, None, math.inf]}) == {"a": [1, None, math.inf]}
    assert two.put("k", {"a": 2}) == {"a": [1, None, math.inf]}
    assert two.get("k") == {"a": [1, None, math.inf]}
    one.close()
    two.close()


def fill(folder: str, begin: Any, worker: int) -> None:
    begin.wait()
    cache = ReplyCache(folder)
    for i in range(100):
        cache.put(f"{worker}-{i}", i)
        cache.put(f"shared-{i}", i)
    cache.close()


def test_processes_share_one_cache(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    begin = context.Barrier(4)
    workers = [context.Process(target=fill, args=(str(tmp_path), begin, n)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    cache = ReplyCache(tmp_path)
    for name in (0, 1, 2, 3, "shared"):
        assert [cache.get(f"{name}-{i}") for i in range(100)] == list(range(100))
    cache.close()


def test_a_killed_writer_leaves_what_it_stored(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from prunebench.replycache import ReplyCache\n"
        "cache = ReplyCache(sys.argv[1])\n"
        "for i in range(20): cache.put(str(i), i)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert result.returncode == -signal.SIGKILL
    cache = ReplyCache(tmp_path)
    assert [cache.get(str(i)) for i in range(20)] == list(range(20))
    cache.close()


def stored(folder: Path) -> Path:
    cache = ReplyCache(folder)
    for i in range(200):
        cache.put(f"key {i}", "value " * 50)
    cache.close()
    return cache.path


def read_all(folder: Path) -> None:
    cache = ReplyCache(folder)
    try:
        for i in range(200):
            cache.get(f"key {i}")
    finally:
        cache.close()


def test_a_damaged_cache_names_the_file_to_delete(tmp_path: Path, make: Make) -> None:
    file = stored(tmp_path / "cache")
    whole = file.read_bytes()
    middle = len(whole) // 2
    damages = [
        b"not a database at all" * 100,
        whole[:middle],
        whole[:4096] + b"\xff" * (len(whole) - 4096),
        whole[:4096] + os.urandom(4096) + whole[8192:],
    ]
    for damage in damages:
        file.write_bytes(damage)
        with pytest.raises(DamagedFile, match="Delete") as info:
            read_all(file.parent)
        assert str(file) in str(info.value)
    file.write_bytes(damages[0])
    with pytest.raises(DamagedFile, match="Delete"):
        make("http://127.0.0.1:1/v1").ask([chat()])
    file.unlink()
    read_all(file.parent)


def test_a_foreign_database_or_value_is_damage(tmp_path: Path) -> None:
    file = stored(tmp_path)
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE replies SET value = '{' WHERE key = 'key 7'")
    connection.close()
    with pytest.raises(DamagedFile, match=r"replies\.sqlite"):
        read_all(tmp_path)
    file.unlink()
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE replies (other TEXT)")
    connection.close()
    with pytest.raises(DamagedFile, match=r"replies\.sqlite"):
        read_all(tmp_path)


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotWritable, match=r"endpoint\.cache_dir"):
        ReplyCache(tmp_path / "file" / "cache")
    (tmp_path / "replies.sqlite").mkdir()
    with pytest.raises(NotWritable, match=r"endpoint\.cache_dir"):
        ReplyCache(tmp_path)
