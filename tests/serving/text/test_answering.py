"""What happens around a text: who waits and who is sent away, deadlines, clients that hang up, texts that fail."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from scripted import Server, server, until, write

from benchmarks.decoders import decoder
from optimizer.errors import BadInput, GateFailed
from optimizer.generating.chat import ChatTemplate
from optimizer.generating.tokens import TextTokenizer
from optimizer.generator import Finish
from optimizer.serving.guard.redaction import Redactor
from optimizer.serving.guard.scopes import Principal, Reservation
from optimizer.serving.problems import Problem
from optimizer.serving.state import Anybody

COMPLETIONS = "/v1/completions"
BODY = {"model": "m", "prompt": "def read", "max_tokens": 8}


@pytest.fixture(scope="module")
def folder() -> Path:
    return decoder("llama", size="tiny")


def run(folder: Path, test: Callable[[Server], Awaitable[None]], slots: int = 2, **settings: Any) -> None:
    async def inside() -> None:
        async with server(folder, slots, **settings) as made:
            await test(made)

    asyncio.run(inside())


def idle(server: Server) -> bool:
    return server.counted("ml_texts_active") == server.counted("ml_texts_waiting") == server.state.in_flight == 0


def test_more_than_may_wait_are_sent_away_before_their_prompts_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two places and three that wait; the rest is told when to come again, by how fast places become free."""
    from optimizer.serving.text.writers import Writer

    read: list[int] = []
    encode = Writer.encode

    async def counting(self: Writer, asked: Any) -> Any:
        read.append(1)
        return await encode(self, asked)

    monkeypatch.setattr(Writer, "encode", counting)

    async def test(server: Server) -> None:
        asked = [server.ask(COMPLETIONS, BODY) for _ in range(5)]
        await server.begun(5)
        assert (server.counted("ml_texts_active"), server.counted("ml_texts_waiting")) == (2, 3)
        refused = [server.ask(COMPLETIONS, {**BODY, "stream": number == 0}) for number in range(2)]
        refused.append(server.ask("/generate", {"prompt": "def"}))
        refused.append(server.ask("/v2/models/m/generate", {"text_input": "def"}))
        await asyncio.gather(*(one.task for one in refused))
        assert [one.status for one in refused] == [429] * 4
        assert all(int(one.headers["retry-after"]) >= 1 for one in refused)
        assert refused[0].json()["error"]["type"] == "rate_limit_error"
        assert isinstance(refused[2].json()["error"], str)
        assert len(read) == 5
        assert server.counted("ml_requests_rejected_total", reason="queue_full") == 4
        for number in range(5):
            write(server.generator.texts[number], 40, finish=Finish.STOP)
        await asyncio.gather(*(one.task for one in asked))
        assert [one.status for one in asked] == [200] * 5
        late = server.ask(COMPLETIONS, BODY)
        write(await server.begun(6), 40, finish=Finish.STOP)
        await late.task
        assert late.status == 200
        assert idle(server)

    run(folder, test, max_queue=3)


def test_more_texts_than_may_ever_wait_are_no_matter_of_time(folder: Path) -> None:
    async def test(server: Server) -> None:
        asked = server.ask(COMPLETIONS, {**BODY, "n": 6})
        await asked.task
        assert asked.status == 400
        assert asked.json()["error"]["param"] == "n"

    run(folder, test, max_queue=3)


def test_how_long_to_wait_is_how_fast_places_become_free(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes as the test says: a text every four seconds, so that three too many come again after twelve."""
    from optimizer.serving.text import writers
    from optimizer.serving.text.observer import Observer

    now = [100.0]
    monkeypatch.setattr(writers.time, "perf_counter", lambda: now[0])

    class Slots:
        def __init__(self) -> None:
            self.facts = {"slots": 2}

    writer = writers.Writer("m", "1", "m", Slots(), None, 1, Observer())  # type: ignore[arg-type]
    places = [writer.places(1) for _ in range(3)]
    for place in places:
        place.__enter__()
    for place in list(places):
        now[0] += 4
        place.__exit__(None, None, None)
        place = writer.places(1)
        place.__enter__()
        places.append(place)
    with pytest.raises(Problem) as caught, writer.places(3):
        pass
    assert caught.value.headers["Retry-After"] == "12"
    assert writer.wait_seconds(1) == pytest.approx(8.0)


def test_a_wait_that_is_longer_than_the_client_has_is_refused_at_once(folder: Path) -> None:
    async def test(server: Server) -> None:
        first = server.ask(COMPLETIONS, BODY)
        text = await server.begun(1)
        await asyncio.sleep(0.3)
        write(text, 40, finish=Finish.STOP)
        await first.task
        asked = [server.ask(COMPLETIONS, BODY) for _ in range(3)]
        await server.begun(4)
        hurried = server.ask(COMPLETIONS, BODY, {"X-Request-Timeout": "0.1"})
        await hurried.task
        assert hurried.status == 429
        assert len(server.generator.texts) == 4
        for one in asked:
            one.hang_up.set()
        await asyncio.gather(*(one.task for one in asked))

    run(folder, test, slots=1)


@pytest.mark.parametrize("stream", [False, True])
def test_a_text_that_is_not_there_in_time_is_cancelled(folder: Path, stream: bool) -> None:
    async def test(server: Server) -> None:
        asked = server.ask(COMPLETIONS, {**BODY, "stream": stream}, {"X-Request-Timeout": "0.5"})
        text = await server.begun(1)
        write(text, 40, 41)
        await asked.task
        assert text.cancelled
        error = asked.parts()[-1]["error"] if stream else asked.json()["error"]
        assert error["code"] == "deadline_exceeded"
        assert asked.status == (200 if stream else 504)
        assert b"[DONE]" not in asked.body
        assert idle(server)

    run(folder, test)


def test_without_a_first_word_in_time_a_stream_has_a_status(folder: Path) -> None:
    async def test(server: Server) -> None:
        asked = server.ask(COMPLETIONS, {**BODY, "stream": True})
        text = await server.begun(1)
        await asked.task
        assert asked.status == 504
        assert text.cancelled
        slow = server.ask(COMPLETIONS, {**BODY, "stream": True})  # which is there in time may take longer
        text = await server.begun(2)
        write(text, 40)
        await until(lambda: slow.body)
        await asyncio.sleep(0.6)
        write(text, 41, finish=Finish.STOP)
        await slow.task
        assert slow.parts()[-1] == "[DONE]"

    run(folder, test, deadline=0.5)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("said", [0, 2])
def test_who_hangs_up_ends_the_text_and_nobody_elses(folder: Path, stream: bool, said: int) -> None:
    async def test(server: Server) -> None:
        gone = server.ask(COMPLETIONS, {**BODY, "stream": stream, "n": 2})
        await server.begun(2)
        stays = server.ask(COMPLETIONS, BODY)
        await server.begun(3)
        mine = server.generator.texts[:2]
        write(mine[0], *range(40, 40 + said))
        if said and stream:
            await until(lambda: gone.body)
        gone.hang_up.set()
        await gone.task
        assert all(text.cancelled for text in mine)
        assert not server.generator.texts[2].cancelled
        write(server.generator.texts[2], 40, finish=Finish.STOP)
        await stays.task
        assert stays.status == 200
        assert idle(server)
        assert server.counted("ml_requests_cancelled_total", reason="disconnected") == 1
        assert server.counted("ml_texts_total", finish="cancelled") == 2

    run(folder, test, slots=4)


@pytest.mark.parametrize("path", [COMPLETIONS, "/v2/models/m/generate_stream", "/generate"])
def test_a_text_that_fails_in_the_middle_says_so_in_its_last_event(folder: Path, path: str) -> None:
    bodies = {COMPLETIONS: {**BODY, "stream": True}, "/generate": {"prompt": "def", "stream": True}}

    async def test(server: Server) -> None:
        for number, error in enumerate([GateFailed("the model answered nan"), RuntimeError("a secret")]):
            asked = server.ask(path, bodies.get(path, {"text_input": "def"}))
            text = await server.begun(number + 1)
            write(text, 40)
            await until(lambda asked=asked: asked.body)
            text.fail(error)
            await asked.task
            last = asked.parts()[-1]["error"]
            message = last["message"] if path == COMPLETIONS else last
            assert ("nan" in message) == (number == 0)
            assert "secret" not in asked.body.decode()
        assert server.counted("ml_requests_failed_total", reason="500") == 1
        assert server.counted("ml_requests_failed_total", reason="bug") == 1
        assert idle(server)

    run(folder, test)


@pytest.mark.parametrize("stream", [False, True])
def test_a_text_that_fails_before_its_first_word_is_an_error_with_its_status(folder: Path, stream: bool) -> None:
    async def test(server: Server) -> None:
        asked = server.ask(COMPLETIONS, {**BODY, "stream": stream, "n": 2})
        await server.begun(2)
        server.generator.texts[1].fail(GateFailed("the model answered nan"))
        await asked.task
        assert asked.status == 500
        assert asked.json()["error"]["type"] == "server_error"
        assert server.generator.texts[0].cancelled
        assert idle(server)

    run(folder, test)


def test_a_model_that_is_closed_ends_its_texts_with_503(folder: Path) -> None:
    async def test(server: Server) -> None:
        asked = server.ask(COMPLETIONS, BODY)
        write(await server.begun(1), 40)
        server.generator.close()
        await asked.task
        assert asked.status == 503

    run(folder, test)


@pytest.mark.parametrize("draining", [True, False])
def test_a_text_that_the_servers_end_cut_is_503_in_its_dialect(folder: Path, draining: bool) -> None:
    """Whoever cancels a request otherwise is not answered."""

    async def test(server: Server) -> None:
        asked = server.ask(COMPLETIONS, BODY)
        write(await server.begun(1), 40)
        server.state.draining = draining
        asked.task.cancel()
        await asyncio.wait({asked.task})
        assert asked.task.cancelled() is not draining
        assert server.generator.texts[0].cancelled
        assert idle(server)
        assert asked.status == (503 if draining else 0)
        if draining:
            assert asked.headers["connection"] == "close"
            assert asked.json()["error"]["type"] == "server_error"
            assert "ended before" in asked.json()["error"]["message"]
            assert server.counted("ml_requests_failed_total", reason="ended") == 1

    run(folder, test)


def test_a_slow_reader_gets_all_of_it_in_fewer_parts(folder: Path) -> None:
    """What is written while it reads nothing is one part, and the writer waits for nobody."""

    async def test(server: Server) -> None:
        asked = server.ask(COMPLETIONS, {**BODY, "stream": True, "max_tokens": 100})
        text = await server.begun(1)
        tokens = list(range(40, 120))
        write(text, *tokens[:10])
        await until(lambda: len(asked.parts()) > 0)
        asked.reads.clear()
        write(text, tokens[10])
        await until(lambda: asked.stalled)
        before = len(asked.parts())
        for token in tokens[11:-1]:
            write(text, token)
            await asyncio.sleep(0)
        write(text, tokens[-1], finish=Finish.LENGTH)
        await server.ask(COMPLETIONS, {**BODY, "model": "nobody"}).task
        assert asked.stalled
        assert len(asked.parts()) == before
        asked.reads.set()
        await asked.task
        said = "".join(part["choices"][0]["text"] for part in asked.parts()[:-1])
        assert said == TextTokenizer(folder).decode(tokens)
        assert asked.parts()[-1] == "[DONE]"
        assert len(asked.parts()) - before <= 4  # the one that waited, all the others, why it ended, and the end
        assert idle(server)

    run(folder, test)


def test_a_screened_prompt_never_reaches_the_model(folder: Path) -> None:
    class Strict(Anybody):
        def screen(self, text: str, model: str, param: str) -> str:
            if "@" in text:
                raise Problem(400, f"{param} has an e-mail address", param=param, code="pii")
            return text

    async def test(server: Server) -> None:
        server.state.guard = Strict()
        chat = [{"role": "user", "content": "a@b"}]
        for path, body, param in [
            (COMPLETIONS, {**BODY, "prompt": ["a", "a@b"]}, "prompt"),
            ("/v1/chat/completions", {"model": "m", "messages": chat}, "messages"),
        ]:
            asked = server.ask(path, body)
            await asked.task
            assert (asked.status, asked.json()["error"]["param"]) == (400, param)
        for path, body in [
            ("/generate", {"prompt": "a@b"}), ("/v2/models/m/generate", {"text_input": "a@b"}),
        ]:  # fmt: skip
            asked = server.ask(path, body)
            await asked.task
            assert asked.status == 400
        assert server.generator.texts == []

    run(folder, test)


class Budget(Anybody):
    """Every caller has so many tokens; what is taken and given back is written down."""

    def __init__(self, tokens: int) -> None:
        self.left = tokens

    async def reserve(self, who: Principal, tokens: int) -> Reservation:
        if tokens > self.left:
            raise Problem(429, "so many tokens are not left", {"Retry-After": "60"}, reason="tokens")
        self.left -= tokens

        async def correct(more: int) -> None:
            self.left -= more

        return Reservation(tokens, {"RateLimit": f'"tokens";r={self.left}'}, correct)


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_are_paid_for_once_whatever_happens(folder: Path, stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken at most, given back what was not used: at the end, at a hang-up, at a refusal of the model's."""

    def refusing(*asked: Any) -> Any:
        raise BadInput("the schema cannot be followed")

    async def test(server: Server) -> None:
        server.state.guard = budget = Budget(1000)
        body = {**BODY, "stream": stream, "n": 2}
        asked = server.ask(COMPLETIONS, body)
        await server.begun(2)
        read = 1000 - budget.left - 16
        write(server.generator.texts[0], 40, 41, finish=Finish.STOP)
        write(server.generator.texts[1], 40, finish=Finish.STOP)
        await asked.task
        assert "tokens" in asked.headers["ratelimit"]
        assert budget.left == 1000 - read - 3
        gone = server.ask(COMPLETIONS, body)
        await server.begun(4)
        write(server.generator.texts[2], 40, 41)
        await until(lambda: gone.body or not stream)
        await until(lambda: server.counted("ml_generated_tokens_total") == 5)
        gone.hang_up.set()
        await gone.task
        assert budget.left == 1000 - 2 * read - 5
        monkeypatch.setattr(server.generator, "submit", refusing)
        refused = server.ask(COMPLETIONS, body)
        await refused.task
        monkeypatch.undo()
        assert refused.status == 400
        assert budget.left == 1000 - 2 * read - 5
        large = server.ask(COMPLETIONS, {**body, "n": 100, "max_tokens": 100})
        await large.task
        assert (large.status, large.headers["retry-after"]) == (429, "60")
        assert budget.left == 1000 - 2 * read - 5
        assert idle(server)

    run(folder, test, slots=4, max_queue=200)


@pytest.mark.parametrize("stream", [False, True])
def test_personal_data_that_a_model_writes_is_taken_out(folder: Path, stream: bool) -> None:
    class Redacting(Anybody):
        def output(self, model: str) -> Redactor | None:
            return Redactor()

    async def test(server: Server) -> None:
        server.state.guard = Redacting()
        tokenizer = TextTokenizer(folder)
        text = " write to jo@example.org now"
        asked = server.ask(COMPLETIONS, {**BODY, "max_tokens": 90, "stream": stream})
        generation = await server.begun(1)
        for token in tokenizer.encode(text, special=False):
            write(generation, token)
            await asyncio.sleep(0)
        generation.end(Finish.STOP)
        await asked.task
        choices = [part["choices"][0] for part in asked.parts()[:-1]] if stream else asked.json()["choices"]
        assert "".join(choice["text"] for choice in choices) == " write to [EMAIL] now"
        assert b"example" not in asked.body
        told = server.ask(COMPLETIONS, {**BODY, "logprobs": 1})
        await told.task
        assert (told.status, told.json()["error"]["param"]) == (400, "logprobs")

    run(folder, test)


@pytest.mark.parametrize("path", [COMPLETIONS, "/v1/chat/completions", "/v2/models/m/generate_stream"])
def test_a_first_token_without_text_is_in_time_too(folder: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of the tokens of one character: the status goes out, and no text before the character is there."""
    body = {"text_input": "def"} if path.startswith("/v2") else {**BODY, "stream": True}
    if "chat" in path:
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}

    async def test(server: Server) -> None:
        (writer,) = (served.writer for served in server.state.models)
        assert writer is not None
        chat = ChatTemplate("{{ messages[0].content }}", {}, folder)
        monkeypatch.setattr(writer.tokenizer, "chat", chat)
        first, *rest = TextTokenizer(folder).encode("é", special=False)
        assert rest
        asked = server.ask(path, body)
        generation = await server.begun(1)
        write(generation, first)
        await until(lambda: asked.status == 200)
        assert "é" not in asked.body.decode()
        write(generation, *rest, finish=Finish.STOP)
        await asked.task
        assert asked.body.decode().count("é") == 1
        assert "\ufffd" not in asked.body.decode()

    run(folder, test, deadline=5.0)


def test_each_beam_is_a_place(folder: Path) -> None:
    """As many wait as rows are wanted; what wants more than there are is refused by its name."""

    async def test(server: Server) -> None:
        writer = server.state.models.get("m").writer
        asked = server.ask(COMPLETIONS, {**BODY, "num_beams": 2})
        text = await server.begun(1)
        assert writer.under_way == 2
        text.end(Finish.STOP)
        await asked.task
        assert (asked.status, writer.under_way) == (200, 0)
        refused = server.ask(COMPLETIONS, {**BODY, "num_beams": 1 + writer._slots})
        await refused.task
        assert (refused.status, refused.json()["error"]["param"]) == (400, "num_beams")

    run(folder, test)


def test_what_an_encoder_reads_and_what_is_answered_have_limits_of_their_own(folder: Path) -> None:
    async def test(server: Server) -> None:
        server.generator.answers = 16
        tokens = [65] * server.generator.context
        whole = server.ask(COMPLETIONS, {**BODY, "prompt": tokens, "max_tokens": 16})
        text = await server.begun(1)
        write(text, *server.state.models.get("m").writer.tokenizer.encode("read it", special=False))
        text.end(Finish.STOP)
        await whole.task
        assert (whole.status, whole.json()["choices"][0]["text"]) == (200, "read it")
        for body, said in (
            ({"prompt": [65] * 129}, "has 129 tokens, and the model reads 128"),
            ({"max_tokens": 17}, "17 more were asked for; an answer may have 16"),
        ):
            refused = server.ask(COMPLETIONS, {**BODY, **body})
            await refused.task
            assert refused.status == 400
            assert said in refused.json()["error"]["message"]

    run(folder, test)
