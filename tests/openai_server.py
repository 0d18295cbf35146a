"""A model service on a loopback port that speaks OpenAI's API, for tests: real HTTP, scripted answers, no model.

    with openai_server() as upstream:
        openai(prompt="hi", model="slow", base_url=upstream.base_url, api_key=...)

Both `POST /v1/chat/completions` and `POST /v1/responses` stream as the real ones do. The request's `model` chooses
what happens; a name that is not listed gets the plain answer, "Hello, world!" in four pieces.

An answer:
  reasoner-deepseek   thinks first, in `reasoning_content`      tools          two calls of a tool, in fragments
  reasoner-vllm       thinks first, in `reasoning`              tools-whole    two whole calls under one index (chat)
  reasoner-both       the same thought in both                  refusal        refuses
  no-usage            tells no usage                            length         stops at the token limit
  usage-inline        usage in the last chunk (chat)            tools-length   stops in the middle of a call
  no-id               tells neither id nor model                unknown-event  sends events nobody has heard of
  slow                SLOW_TOKENS numbered tokens, "0 1 2 ...", one every SLOW_PAUSE seconds
  two                 two answers, mixed (chat)
A failure, before the answer (each error text repeats the key, as bad services do):
  Bearer "bad-key" 401, forbidden 403, missing 404, bad-request 400, bad-labels 400, quota 429, unpaid 402,
  rate-limit 429, conflict 409, overloaded 503
  hang                never answers                             cut-error      closes the connection in an error text
A failure, in the middle of the answer ("Hello" has been sent):
  error-midstream     an error object; code-X: with code X      cut            closes the connection
  failed              says that it failed (responses)           no-finish      ends in order, but too early
  silent              says nothing more                         comments       says nothing more, in comments
  dribble             a line that never ends                    garbage        a chunk that is no JSON
  odd                 JSON that is no chunk                     mute           as silent, before the first event
  cut-after-finish, silent-after-finish                         when only the usage is missing

`upstream.requests` holds what was asked. `open_streams` counts answers under way and `left` those that the client
did not read to the end; `wait_until(lambda: upstream.left == 1)` waits for such a thing, from any thread: in a
coroutine, `await asyncio.to_thread(upstream.wait_until, ...)`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

SLOW_TOKENS = 200
SLOW_PAUSE = 0.01
REPEATED_PAUSE = 0.005

HELLO = ("Hello", ", ", "world", "!")
THOUGHTS = ("The user ", "greets.")
CALLS = (("call_1", "weather", ('{"city":', '"Berlin"}')), ("call_2", "time", ("{}",)))


@dataclass(frozen=True)
class Asked:
    """One request as it came in."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass(frozen=True)
class Wait:
    seconds: float


@dataclass(frozen=True)
class Repeat:
    """Send `data` again and again, until the client leaves."""

    data: bytes


class Cut:
    """Close the connection in the middle of the answer."""


class Silence:
    """Send nothing more, until the client leaves."""


Step = dict[str, Any] | bytes | Wait | Repeat | Cut | Silence


@dataclass
class Upstream:
    """What a test sees of the server."""

    base_url: str
    requests: list[Asked] = field(default_factory=list)
    open_streams: int = 0
    left: int = 0
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def wait_until(self, condition: Callable[[], bool], timeout: float = 5.0) -> None:
        """Block until `condition` holds. Raises TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(condition, timeout):
                raise TimeoutError(
                    f"not within {timeout} s: {len(self.requests)} requests, {self.open_streams} streams open, "
                    f"{self.left} left by the client"
                )

    def note(self, *, asked: Asked | None = None, opened: int = 0, left: int = 0) -> None:
        with self._changed:
            if asked:
                self.requests.append(asked)
            self.open_streams += opened
            self.left += left
            self._changed.notify_all()


@contextlib.contextmanager
def openai_server() -> Iterator[Upstream]:
    """Run the server in a thread. Streams that are open at the end are cut."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        upstream = Upstream(f"http://127.0.0.1:{listener.getsockname()[1]}/v1")
        stopping: list[Callable[[], object]] = []
        ready = threading.Event()

        @contextlib.asynccontextmanager
        async def lifespan(app: Starlette):
            app.state.stop = asyncio.Event()
            loop = asyncio.get_running_loop()
            stopping.append(lambda: loop.call_soon_threadsafe(app.state.stop.set))
            ready.set()
            yield

        async def asked(request: Request) -> Any:
            body = await request.json()
            upstream.note(asked=Asked(request.url.path, dict(request.headers), body))
            key = request.headers.get("authorization", "").removeprefix("Bearer ")
            if refused := refusal(body["model"], key):
                return refused
            script = chat if request.url.path == "/v1/chat/completions" else responses
            steps = iter([b'{"error": ', Cut()]) if body["model"] == "cut-error" else script(body)
            return Answer(steps, upstream, request.app.state.stop, model=body["model"])

        app = Starlette(
            routes=[Route(f"/v1/{path}", asked, methods=["POST"]) for path in ("chat/completions", "responses")],
            lifespan=lifespan,
        )
        listener.listen(128)
        server = uvicorn.Server(
            uvicorn.Config(app, log_config=None, log_level="critical", ws="none", timeout_graceful_shutdown=2)
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="openai-server")
        thread.start()
        try:
            if not ready.wait(10):
                raise RuntimeError("the model service did not start")
            yield upstream
        finally:
            for stop in stopping:
                stop()
            server.should_exit = True
            thread.join()


class Answer:
    """An ASGI response that plays a script, and knows whether the client stayed to its end."""

    def __init__(self, script: Iterator[Step], upstream: Upstream, stop: asyncio.Event, *, model: str) -> None:
        self.script = script
        self.upstream = upstream
        self.stop = stop
        self.hang = model == "hang"
        self.status = 500 if model == "cut-error" else 200

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.upstream.note(opened=1)
        tasks = [
            asyncio.create_task(doing) for doing in (self._play(send), self._client_leaves(receive), self._stops())
        ]
        playing, leaving, _ = tasks
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            played = not playing.cancelled()
            self.upstream.note(opened=-1, left=int(not played and not leaving.cancelled()))
        if played and playing.result():
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        # Without that last message uvicorn closes the connection, which is how an answer is cut.

    async def _play(self, send: Send) -> bool:
        """Whether the answer ends in order."""
        if self.hang:
            await asyncio.Event().wait()
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        for step in self.script:
            match step:
                case dict():
                    await self._say(send, frame(step))
                case bytes():
                    await self._say(send, step)
                case Wait(seconds):
                    await asyncio.sleep(seconds)
                case Repeat(data):
                    while True:
                        await self._say(send, data)
                        await asyncio.sleep(REPEATED_PAUSE)
                case Silence():
                    await asyncio.Event().wait()
                case Cut():
                    return False
        return True

    async def _say(self, send: Callable[[Any], Awaitable[None]], data: bytes) -> None:
        await send({"type": "http.response.body", "body": data, "more_body": True})

    async def _client_leaves(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    async def _stops(self) -> None:
        await self.stop.wait()


def frame(data: dict[str, Any]) -> bytes:
    """The chat API names no events; the responses API names each by its type."""
    name = f"event: {data['type']}\n" if "type" in data else ""
    return f"{name}data: {json.dumps(data)}\n\n".encode()


def refusal(model: str, key: str) -> JSONResponse | None:
    if key == "bad-key":
        error = {"type": "invalid_request_error", "code": "invalid_api_key"}
        return refused(401, f"Incorrect API key provided: {key}", **error)
    echo = f"as asked with {key} at http://internal.example:8000"
    match model:
        case "forbidden":
            return refused(403, f"Project has no access {echo}", code="model_not_found")
        case "missing":
            return refused(404, f"The model does not exist {echo}", code="model_not_found")
        case "bad-request":
            return refused(400, f"Too long {echo}", code="context_length_exceeded", param="messages")
        case "bad-labels":
            return refused(400, f"No {echo}", code="see http://internal.example:8000", param=key)
        case "quota":
            return refused(429, f"You exceeded your current quota {echo}", code="insufficient_quota")
        case "rate-limit":
            return refused(429, f"Rate limit reached {echo}", code="rate_limit_exceeded")
        case "unpaid":
            return refused(402, f"Insufficient credits {echo}", code=None)
        case "conflict":
            return refused(409, f"Try that again {echo}", code=None)
        case "overloaded":
            return refused(503, f"Overloaded {echo}", code=None)
    return None


def refused(status: int, message: str, *, code: str | None, param: str | None = None, type: str = "x") -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": type, "param": param, "code": code}}, status)


def pieces(model: str) -> tuple[str, ...]:
    if model == "slow":
        return tuple(f"{number} " for number in range(SLOW_TOKENS))
    return () if model in {"tools", "tools-whole", "tools-length", "refusal"} else HELLO


def breaks(model: str, api: str) -> Iterator[Step]:
    """What comes instead of the rest of the answer, if it fails."""
    match model, api:
        case ("error-midstream", "chat"):
            yield {"error": {"message": "The server had an error", "type": "server_error", "code": "server_error"}}
        case ("error-midstream", "responses"):
            yield {"type": "error", "code": "server_error", "message": "The server had an error", "param": None}
        case (str(), "chat") if model.startswith("code-"):
            yield {"error": {"message": "It went wrong", "code": model.removeprefix("code-")}}
        case (str(), "responses") if model.startswith("code-"):
            yield {"type": "error", "code": model.removeprefix("code-"), "message": "It went wrong", "param": None}
        case ("failed", "responses"):
            error = {"code": "invalid_prompt", "message": "Not like that"}
            yield {"type": "response.failed", "response": {"id": "resp_1", "status": "failed", "error": error}}
        case ("cut", _):
            yield Cut()
        case ("silent", _):
            yield Silence()
        case ("comments", _):
            yield Repeat(b": still here\n\n")
        case ("dribble", _):
            yield b"data: {"
            yield Repeat(b" ")
        case ("garbage", _):
            yield b"data: {not json\n\n"
        case ("odd", "chat"):
            yield b'data: {"id": "chatcmpl-1", "choices": "none"}\n\n'
        case ("odd", "responses"):
            yield {"type": "response.output_text.delta", "delta": {"text": 1}}


def chat(body: dict[str, Any]) -> Iterator[Step]:
    model = body["model"]

    def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
        choices = [] if delta is None else [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]
        head = {} if model == "no-id" else {"id": "chatcmpl-1", "created": 1_760_000_000, "model": f"{model}-2026"}
        return {**head, "object": "chat.completion.chunk", "choices": choices, **more}

    if model == "mute":
        yield Silence()
    yield chunk({"role": "assistant", "content": "", "refusal": None})
    for thought in THOUGHTS:
        match model:
            case "reasoner-deepseek":
                yield chunk({"reasoning_content": thought, "content": None})
            case "reasoner-vllm":
                yield chunk({"reasoning": thought, "content": None})
            case "reasoner-both":
                yield chunk({"reasoning_content": thought, "reasoning": thought, "content": None})
    if model == "unknown-event":
        yield chunk({"mood": {"happy": True}}, novelty=[1])
    for number, piece in enumerate(pieces(model)):
        yield chunk({"content": piece})
        if model == "two":
            yield chunk() | {"choices": [{"index": 1, "delta": {"content": "Bye"}, "finish_reason": "length"}]}
        if model == "slow":
            yield Wait(SLOW_PAUSE)
        if number == 0:
            broken = list(breaks(model, "chat"))
            yield from broken
            if broken or model == "no-finish":
                return
    if model == "refusal":
        yield from (chunk({"refusal": part}) for part in ("I cannot ", "do that."))
    finish = "stop"
    if model.startswith("tools"):
        finish = "length" if model == "tools-length" else "tool_calls"
        yield from map(chunk, tool_deltas(model))
    if model == "length":
        finish = "length"
    usage = {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21}
    usage["completion_tokens_details"] = {"reasoning_tokens": 4 if "reasoner" in model else 0}
    yield chunk({}, finish, **({"usage": usage} if model == "usage-inline" else {}))
    if model == "cut-after-finish":
        yield Cut()
    if model == "silent-after-finish":
        yield Silence()
    wanted = (body.get("stream_options") or {}).get("include_usage")
    if wanted and model not in {"no-usage", "usage-inline"}:
        yield chunk(usage=usage)
    yield b"data: [DONE]\n\n"


def tool_deltas(model: str) -> Iterator[dict[str, Any]]:
    for index, (identity, name, arguments) in enumerate(CALLS):
        if model == "tools-whole":
            call = {"index": 0, "id": identity, "function": {"name": name, "arguments": "".join(arguments)}}
            yield {"tool_calls": [call]}
            continue
        first = {"index": index, "id": identity, "type": "function", "function": {"name": name, "arguments": ""}}
        yield {"tool_calls": [first]}
        for part in arguments:
            yield {"tool_calls": [{"index": index, "function": {"arguments": part}}]}
            if model == "tools-length":
                return


def responses(body: dict[str, Any]) -> Iterator[Step]:
    sequence = -1
    model = body["model"]
    head = {} if model == "no-id" else {"id": "resp_1", "model": f"{model}-2026"}
    response = {**head, "object": "response", "created_at": 1_760_000_000, "output": [], "usage": None, "error": None}

    def event(type: str, **fields: Any) -> dict[str, Any]:
        nonlocal sequence
        sequence += 1
        return {"type": type, "sequence_number": sequence, **fields}

    if model == "mute":
        yield Silence()
    yield event("response.created", response={**response, "status": "in_progress"})
    yield event("response.in_progress", response={**response, "status": "in_progress"})
    if model.startswith("reasoner"):
        place = {"item_id": "rs_1", "output_index": 0}
        for thought in THOUGHTS:
            if model != "reasoner-vllm":
                yield event("response.reasoning_summary_text.delta", summary_index=0, delta=thought, **place)
            if model != "reasoner-deepseek":
                yield event("response.reasoning_text.delta", content_index=0, delta=thought, **place)
    if model == "unknown-event":
        yield event("response.telepathy.delta", delta={"mood": "happy"}, item=3, response="no")
    place = {"item_id": "msg_1", "output_index": 1, "content_index": 0}
    for number, piece in enumerate(pieces(model)):
        yield event("response.output_text.delta", delta=piece, logprobs=[], **place)
        if model == "slow":
            yield Wait(SLOW_PAUSE)
        if number == 0:
            broken = list(breaks(model, "responses"))
            yield from broken
            if broken or model == "no-finish":
                return
    if model == "refusal":
        yield from (event("response.refusal.delta", delta=part, **place) for part in ("I cannot ", "do that."))
    if model.startswith("tools"):
        yield from tool_items(event, model)
    usage = {"input_tokens": 9, "output_tokens": 12, "total_tokens": 21, "input_tokens_details": {"cached_tokens": 0}}
    usage["output_tokens_details"] = {"reasoning_tokens": 4 if "reasoner" in model else 0}
    final = {**response, "status": "completed", "usage": None if model == "no-usage" else usage}
    if model in {"length", "tools-length"}:
        final |= {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    yield event(f"response.{final['status']}", response=final)
    if model == "cut-after-finish":
        yield Cut()
    if model == "silent-after-finish":
        yield Silence()


def tool_items(event: Callable[..., dict[str, Any]], model: str) -> Iterator[dict[str, Any]]:
    for index, (identity, name, arguments) in enumerate(CALLS):
        item = {"type": "function_call", "id": f"fc_{index}", "call_id": identity, "name": name}
        yield event(
            "response.output_item.added", output_index=index, item={**item, "arguments": "", "status": "in_progress"}
        )
        for part in arguments:
            yield event("response.function_call_arguments.delta", item_id=item["id"], output_index=index, delta=part)
            if model == "tools-length":
                item |= {"arguments": part, "status": "incomplete"}
                yield event("response.output_item.done", output_index=index, item=item)
                return
        item |= {"arguments": "".join(arguments), "status": "completed"}
        done = {"item_id": item["id"], "output_index": index, "name": name, "arguments": item["arguments"]}
        yield event("response.function_call_arguments.done", **done)
        yield event("response.output_item.done", output_index=index, item=item)
