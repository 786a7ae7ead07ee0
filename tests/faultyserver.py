"""A small OpenAI-compatible server on this machine whose faults are scripted.

Knows nothing of the client. `script` names what happens to the n-th request of a completion API;
behind its end, requests are served well.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


def chat_reply(body: dict[str, Any]) -> dict[str, Any]:
    """A good reply of the chat API. The text repeats the last message."""
    choices = []
    for index in range(body.get("n", 1)):
        choice: dict[str, Any] = {
            "index": index,
            "message": {"role": "assistant", "content": body["messages"][-1]["content"]},
            "finish_reason": "stop",
        }
        if body.get("logprobs"):
            tops = [
                {"token": "Yes", "logprob": -0.5, "bytes": [89]},
                {"token": "No", "logprob": -1.5, "bytes": [78]},
                {"token": "Yes", "logprob": -2.0, "bytes": [90]},
            ]
            token = {"token": "Yes", "logprob": -0.5, "bytes": [89], "top_logprobs": tops}
            choice["logprobs"] = {"content": [token], "refusal": None}
        choices.append(choice)
    return {"object": "chat.completion", "choices": choices, "usage": USAGE}


def completion_reply(body: dict[str, Any]) -> dict[str, Any]:
    """A good reply of the completions API. The text repeats the prompt."""
    choices = []
    for index in range(body.get("n", 1)):
        choice: dict[str, Any] = {"index": index, "text": body["prompt"], "finish_reason": "length"}
        if body.get("logprobs"):
            choice["logprobs"] = {
                "tokens": ["A", "B"],
                "token_logprobs": [None, -0.25],
                "top_logprobs": [None, {"B": -0.25, "C": -1.75}],
                "text_offset": [0, 1],
            }
        choices.append(choice)
    return {"object": "text_completion", "choices": choices, "usage": USAGE}


class FaultyServer:
    """Use as a context manager. `requests` holds `(path, body, headers)` of all POST
    requests, header names in lower case.

    Attributes
    ----------
    script : behaviour of each request in order: a name in `FAULTS`, a function
        `(handler, body) -> None`, or None for a good reply.
    always : behaviour behind the end of the script.
    delay : seconds before every reply.
    port : 0 takes a free one.
    most_in_flight : of completion requests, so far.
    """

    def __init__(
        self, script: Iterable[Any] = (), always: Any = None, delay: float = 0.0, port: int = 0
    ) -> None:
        self.script, self.always, self.delay = list(script), always, delay
        self.requests: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        self.gets: list[str] = []
        self.in_flight = self.most_in_flight = 0
        self._lock = threading.Lock()
        self._http = _Http(("127.0.0.1", port), _handler(self))
        self.port = self._http.server_address[1]
        self.base_url = f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Self:
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def begin(self, path: str, body: dict[str, Any], headers: dict[str, str]) -> Any:
        with self._lock:
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            at = len(self.requests)
            self.requests.append((path, body, headers))
        return self.script[at] if at < len(self.script) else self.always

    def end(self) -> None:
        with self._lock:
            self.in_flight -= 1


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that gave up are part of the script."""


def _handler(server: FaultyServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # one packet per answer
        disable_nagle_algorithm = True

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            server.gets.append(self.path)
            if self.path == "/v1/models":
                send(self, 200, {"object": "list", "data": [{"id": "judge"}, {"id": "other"}]})
            else:
                send(self, 404, {"detail": "Not Found"})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            behaviour = server.begin(
                self.path, body, {name.lower(): value for name, value in self.headers.items()}
            )
            try:
                time.sleep(server.delay)
                if callable(behaviour):
                    behaviour(self, body)
                elif behaviour is not None:
                    FAULTS[behaviour](self, body)
                elif self.path == "/v1/chat/completions":
                    send(self, 200, chat_reply(body))
                elif self.path == "/v1/completions":
                    send(self, 200, completion_reply(body))
                else:
                    send(self, 404, {"detail": "Not Found"})
            finally:
                server.end()

    return Handler


def send(
    handler: BaseHTTPRequestHandler, status: int, content: Any, length: int = 0, **headers: Any
) -> None:
    """Answer with JSON, or with text as it is; `length` is added to the announced length."""
    data = (content if isinstance(content, str) else json.dumps(content)).encode()
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(data) + length))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(data)
    handler.wfile.flush()


def error(status: int, message: str, usage: bool = False, **headers: Any) -> Callable[..., None]:
    """A behaviour that answers with this status."""

    def behave(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        content: dict[str, Any] = {"error": {"message": message, "code": None}}
        if usage:
            content["usage"] = USAGE
        send(handler, status, content, **headers)

    return behave


def good(**changes: Any) -> Callable[..., None]:
    """A behaviour that gives a good chat reply with these top-level fields; None removes one."""

    def behave(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        content = {**chat_reply(body), **changes}
        send(handler, 200, {name: value for name, value in content.items() if value is not None})

    return behave


def _slow(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    time.sleep(1.0)
    send(handler, 200, chat_reply(body))


def _drip(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    """A good reply behind blanks that come now and then, so that no single read takes long."""
    data = json.dumps(chat_reply(body)).encode()
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(20 + len(data)))
    handler.end_headers()
    for _ in range(20):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)
    handler.wfile.write(data)
    handler.wfile.flush()


def _drop(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def _half(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    send(handler, 200, chat_reply(body), length=500)
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def _echo_key(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    message = f"Incorrect API key provided: {handler.headers['Authorization']}"
    key = handler.headers["Authorization"].removeprefix("Bearer ")
    send(handler, 401, {"error": {"message": f"{message} ({key})", "code": "invalid_api_key"}})


def _no_logprobs(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    send(handler, 200, chat_reply({**body, "logprobs": False}))


FAULTS: dict[str, Callable[..., None]] = {
    "429": error(429, "slow down"),
    "429_after_0": error(429, "slow down", Retry_After="0"),
    "429_after_7": error(429, "slow down", Retry_After="7"),
    "429_after_1000": error(429, "slow down", Retry_After="1000"),
    "500": error(500, "it broke"),
    "500_usage": error(500, "it broke late", usage=True),
    "503": error(503, "overloaded"),
    "slow": _slow,
    "drip": _drip,
    "drop": _drop,
    "half": _half,
    "broken_json": lambda handler, body: send(handler, 200, '{"choices": [{"mess'),
    "html": lambda handler, body: send(handler, 200, "<html>gateway</html>"),
    "no_choices": good(choices=[]),
    "error_in_200": lambda handler, body: send(handler, 200, {"error": {"message": "upstream"}}),
    "no_usage": good(usage=None),
    "no_logprobs": _no_logprobs,
    "400": error(400, "This model's maximum context length is 16 tokens", usage=True),
    "401": error(401, "no such key"),
    "echo_key": _echo_key,
    "404_model": error(404, "The model `jugde` does not exist."),
    "400_model": error(400, "Model Not Exist"),
}
