"""The HTTP side of a served run: paths, limits, measures, the playground page.

`/recommend`, `/explain`, `/items`, `/health`, `/metrics`, `/openapi.json`, and the page at `/`.
Histories of requests that ask alike are answered together. Needs the extra `serve`.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from starlette.middleware.trustedhost import TrustedHostMiddleware

from llmrec.errors import LlmrecError
from llmrec.server.answers import Answers, Ask
from llmrec.server.batching import Batcher, Full
from llmrec.server.limits import BodyLimit, Counted
from llmrec.server.measures import Measures
from llmrec.systems.linking import Items, Notice

PAGE = Path(__file__).parent / "playground"
FILES = {"index.html": "text/html", "style.css": "text/css", "script.js": "text/javascript"}
PATHS = ("/", "/recommend", "/explain", "/items", "/health", "/metrics", "/openapi.json")
TOLD = 5  # mistakes of a request that are told
QUICK = 1000  # entries that are looked up at once
HISTORIES, ENTRIES, LETTERS, TOP_K = 64, 1000, 500, 200  # of a request, at most
SAFE = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


@dataclass(frozen=True)
class Limits:
    """Bytes of a request, seconds until it is given up, histories that may wait in all."""

    body: int = 1 << 20
    seconds: float = 30.0
    waiting: int = 512


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ById(_Strict):
    """An item by its id."""

    id: Annotated[str, StringConstraints(max_length=LETTERS)]


class ByTitle(_Strict):
    """An item by its title."""

    title: Annotated[str, StringConstraints(max_length=LETTERS)]


Entry = (
    Annotated[str, StringConstraints(max_length=LETTERS)]
    | Annotated[int, Field(strict=True)]
    | ById
    | ByTitle
)
History = Annotated[list[Entry], Field(max_length=ENTRIES)]


class Asked(_Strict):
    """What is common to `/recommend` and `/explain`."""

    system: str | None = Field(None, description="A row of the table; see /health.")
    candidates: Annotated[list[Entry], Field(max_length=100_000)] | None = Field(
        None, description="The items that may be recommended, as those in stock."
    )
    exclude: Annotated[list[Entry], Field(max_length=100_000)] | None = None
    unknown: Literal["skip", "raise"] = "skip"


class RecommendRequest(Asked):
    """Histories of item ids or titles, oldest first."""

    histories: Annotated[list[History], Field(min_length=1, max_length=HISTORIES)]
    top_k: int = Field(10, ge=1, le=TOP_K)


class ExplainRequest(Asked):
    """One history whose answer is to be explained."""

    history: History
    top_k: int = Field(5, ge=1, le=20)


class Item(BaseModel):
    """A recommended item; what `score` is stands in `score_is`."""

    rank: int
    item_id: str
    title: str
    score: float


class Noticed(BaseModel):
    """An entry that was left out, or taken for the title most like it."""

    entry: Any
    how: str
    title: str | None


class Recommended(BaseModel):
    """The answer to one history."""

    items: list[Item]
    notices: list[Noticed]


class RecommendResponse(BaseModel):
    """Answers in the order of the histories; `seconds` from the request's arrival, of which its
    batch took `computed`."""

    system: str
    score_is: str
    seconds: float
    computed: float
    results: list[Recommended]


def application(answers: Answers, limits: Limits = Limits(), hosts: Sequence[str] = ()) -> FastAPI:
    """The application that serves `answers`; `hosts`: names it may be called by, else any."""
    measures = Measures()
    size = answers.recipe.decode.batch_size
    batcher = Batcher(answers.answer, size, limits.waiting, measures.batch)
    app = FastAPI(title="llmrec", docs_url=None, redoc_url=None)  # their pages need a network
    app.state.batcher = batcher
    if hosts:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    app.add_middleware(BodyLimit, most=limits.body)
    known = {*PATHS, *(f"/{name}" for name in FILES)}

    def answered(path: str, status: int, seconds: float) -> None:
        measures.answered(path if path in known else "other", status, seconds)

    app.add_middleware(Counted, answered=answered, headers=SAFE)

    @app.exception_handler(LlmrecError)
    async def told(_: Request, error: LlmrecError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, status_code=422)

    @app.exception_handler(RequestValidationError)
    async def wrong(_: Request, error: RequestValidationError) -> JSONResponse:
        said = dict.fromkeys(_in_words(one) for one in error.errors())
        more = [f"and {len(said) - TOLD} more"] if len(said) > TOLD else []
        return JSONResponse({"detail": "; ".join([*list(said)[:TOLD], *more])}, status_code=422)

    async def waited_for(ask: Ask, histories: Sequence[Items]) -> Sequence[Any]:
        try:
            future = batcher.submit(ask, histories)
        except Full:
            raise HTTPException(
                503, "too much is waiting; ask again in a second", {"Retry-After": "1"}
            ) from None
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), limits.seconds)
        except TimeoutError:
            raise HTTPException(504, f"no answer within {limits.seconds:g} s") from None

    def linked(
        asked: Asked, histories: Sequence[History], top_k: int, explain: bool
    ) -> tuple[Ask, list[Items], list[list[Notice]]]:
        system = asked.system or answers.systems[0]
        if system not in answers.systems:
            raise LlmrecError(
                f"there is no {system!r} here; there are {', '.join(answers.systems)}"
            )
        found = [
            answers.linker.positions(f"history {number}", _plain(history), asked.unknown)
            for number, history in enumerate(histories)
        ]
        closed = np.zeros(0, np.int32)
        if asked.candidates is not None:
            stock, _ = answers.linker.positions("candidates", _plain(asked.candidates), "skip")
            closed = np.setdiff1d(np.arange(len(answers.catalog), dtype=np.int32), stock)
        if asked.exclude is not None:
            more, _ = answers.linker.positions("exclude", _plain(asked.exclude), "skip")
            closed = np.union1d(closed, more)
        if len(closed) == len(answers.catalog):
            raise LlmrecError("every item is excluded or no candidate; nothing is left")
        ask = Ask(system, top_k, closed.astype(np.int32).tobytes(), explain)
        return ask, [one for one, _ in found], [notices for _, notices in found]

    async def quickly(
        link: Callable[..., Any], asked: Asked, histories: Sequence[History], *others: Any
    ) -> Any:
        """What `link` finds; in a thread where titles have to be searched or the lists are long."""
        entries = [e for one in histories for e in one]
        lists = [*(asked.candidates or ()), *(asked.exclude or ())]
        knows = answers.linker.grounder.knows
        if len(entries) + len(lists) <= QUICK and all(map(knows, _plain([*entries, *lists]))):
            return link(asked, histories, *others)
        return await run_in_threadpool(link, asked, histories, *others)

    @app.post("/recommend", response_model=RecommendResponse)
    async def recommend(asked: RecommendRequest) -> dict[str, Any]:
        """The best items after each history."""
        begun = time.perf_counter()
        ask, histories, notices = await quickly(linked, asked, asked.histories, asked.top_k, False)
        found = await waited_for(ask, histories)
        return {
            "system": ask.system,
            "score_is": answers.scored_by(ask.system),
            "seconds": time.perf_counter() - begun,
            "computed": found[0]["computed"],
            "results": [
                {**one, "notices": [_noticed(notice) for notice in of_one]}
                for one, of_one in zip(found, notices, strict=True)
            ],
        }

    @app.post("/explain")
    async def explain(asked: ExplainRequest) -> dict[str, Any]:
        """A prompt by tokens and its search by choices; null where there is neither."""
        begun = time.perf_counter()
        ask, histories, _ = await quickly(linked, asked, [asked.history], asked.top_k, True)
        [found] = await waited_for(ask, histories)
        return {"system": ask.system, "seconds": time.perf_counter() - begun, **found}

    @app.get("/items")
    def items(
        q: Annotated[str, Query(max_length=LETTERS)], limit: Annotated[int, Query(ge=1, le=50)] = 10
    ) -> list[dict[str, str]]:
        """Items by id or by words of their titles."""
        return answers.search(q, limit)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """What is served."""
        return {
            "status": "ok",
            "run": answers.recipe.name,
            "systems": answers.systems,
            "items": len(answers.catalog),
            "waiting": batcher.waiting,
        }

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> str:
        """Counters for Prometheus."""
        return measures.text(batcher.waiting)

    def page(name: str, kind: str) -> None:
        content = (PAGE / name).read_bytes()

        async def file() -> Response:
            return Response(content, media_type=kind)

        path = "/" if name == "index.html" else f"/{name}"
        app.get(path, include_in_schema=False)(file)

    for name, kind in FILES.items():
        page(name, kind)
    return app


def _in_words(error: Mapping[str, Any]) -> str:
    """Where a request is wrong, and how; not what it holds."""
    place = ".".join(str(part) for part in error["loc"])
    if error["loc"] == ("body",):
        return "the body must be JSON of an object, sent with Content-Type: application/json"
    return f"{place}: {error['msg']}"


def _plain(history: Sequence[Entry]) -> list[Any]:
    return [e.model_dump() if isinstance(e, BaseModel) else str(e) for e in history]


def _noticed(notice: Notice) -> dict[str, Any]:
    return {"entry": notice.entry, "how": notice.how, "title": notice.title}
