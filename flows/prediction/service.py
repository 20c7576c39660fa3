"""The service `changepair api`: clients send prompts, or name a kit, and send pictures. HTTP, with OpenAPI at /docs.

Each request is charged for the memory that its pictures take, from their headers, before one is decoded. The activations of one batch are
measured at the start, and reserved. The pictures are decoded one after the other, cut, queued as tiles, and scored in batches across
requests. A request that fits neither the queue nor the memory gets
429, one that takes too long gets 504. After SIGTERM the service finishes the requests that it accepted.
"""
# Annotations are no strings here: FastAPI evaluates those, and knows nothing of a function's own names.

import asyncio
import base64
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Depends, FastAPI, File, Form, HTTPException, Request, Response, UploadFile
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel
from starlette.types import Scope

from changepair.flows.prediction.budget import Budget, Full, TooLarge, default_budget, in_thread
from changepair.flows.prediction.front import Front, Rules
from changepair.tasks.common.errors import BadInput
from changepair.tasks.detectors.detector import ANY_CATEGORY
from changepair.tasks.prediction.batching import Batcher, Busy
from changepair.tasks.prediction.costs import MAP_BYTES, Costs, bytes_of
from changepair.tasks.prediction.memory import Needs, needs_of
from changepair.tasks.prediction.outputs import Verdict, line_of, map_png
from changepair.tasks.prediction.pictures import as_decoded, scaled
from changepair.tasks.prediction.predictor import BATCH, Predictor, Said, Tile, score_of

DEFAULT_KIT = "default"
LATENCIES = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)  # seconds


BODIES = 0.25
"""Share of the memory that bodies of requests may take."""
ANSWER_BYTES = 10
"""Bytes per pixel that a map takes at most in the answer, as base64 in JSON."""
Result = TypeVar("Result")


@dataclass(frozen=True)
class Limits:
    """What clients may ask for."""

    pictures: int = 32
    """Of a request."""
    megabytes: int = 64
    """Largest body of a request."""
    waiting: int = 64
    """Largest number of pictures in the queue; a request with more gets 429."""
    requests: int = 128
    """Largest number of requests at a time; those beyond get 429."""
    memory: int = field(default_factory=default_budget)
    """Bytes for the pictures and prompts of all clients, the detectors, the kits and one batch. A request that they cannot hold gets 413,
    one that has to wait for longer than `patience` gets 429."""
    patience: float = 5.0
    """Seconds that a request waits for memory."""
    seconds: float = 30.0
    """Until the body of a request is complete (else 408), and from there until the answer is complete (else 504)."""
    prompted: int = 64
    """Largest number of prompt sets; the least recently used are dropped, also when their memory is needed."""
    category: int = 100
    """Letters."""


@dataclass
class PromptSet:
    """Prompts that a client sent."""

    predictor: Predictor
    size: int
    """Bytes."""
    users: int = 0
    """Requests that are using it."""


class Scored(BaseModel):
    """What the detector says of one picture."""

    picture: str
    """Its file's name, as the client sent it."""
    score: float
    """0 normal … 1 anomalous."""
    threshold: float | None
    """null where no kit has one."""
    verdict: Verdict | None
    """normal or anomalous; null without a threshold."""
    map: str | None = None
    """Base64 of a grey PNG of 16 bits, of the picture's own size, where 65535 is 1; null where none was asked for."""


class Answer(BaseModel):
    detector: str
    predictions: list[Scored]
    """In the order of the pictures."""
    seconds: float
    """From the request's arrival to here."""


class Prompted(BaseModel):
    prompts: str
    """By which `predict` finds them."""
    pictures: int


class Problem(BaseModel):
    detail: str


@dataclass
class Metrics:
    """What Prometheus reads at /metrics."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        own: Any = {"registry": self.registry}
        self.requests = Counter("changepair_requests", "Requests", ["route", "status"], **own)
        self.latency = Histogram("changepair_request_seconds", "Seconds a request took", ["route"], buckets=LATENCIES, **own)
        self.pictures = Counter("changepair_pictures", "Pictures scored", ["kit", "verdict"], **own)
        self.scores = Histogram("changepair_scores", "Image scores", ["kit"], buckets=[place / 20 for place in range(1, 20)], **own)
        self.batches = Histogram("changepair_batch_tiles", "Tiles a batch", buckets=(1, 2, 4, 8, 16, 32), **own)
        self.waiting = Gauge("changepair_waiting_pictures", "Pictures that wait", **own)
        self.memory = Gauge("changepair_memory_bytes", "Memory that requests, prompts and kits are charged for", **own)
        self.prompted = Gauge("changepair_prompt_sets", "Sets of prompts that are remembered", **own)


PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "A picture or a value that cannot be used; `detail` says which and why"},
    401: {"model": Problem, "description": "No token, or a wrong one"},
    404: {"model": Problem, "description": "No such kit or prompts; prompts that were long unused are dropped"},
    408: {"model": Problem, "description": "The body was not complete in time"},
    413: {"model": Problem, "description": "The body is too large, or its pictures need more memory than the service has"},
    429: {"model": Problem, "description": "The queue or the memory is full; try again after the seconds in Retry-After"},
    503: {"model": Problem, "description": "The service is ending"},
    504: {"model": Problem, "description": "The answer was not complete in time"},
}


def _problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    return {code: PROBLEMS[code] for code in codes}


def make_app(
    predictor: Predictor,
    kits: Mapping[str, Predictor],
    *,
    limits: Limits | None = None,
    batch_size: int = BATCH,
    token: str | None = None,
    hosts: tuple[str, ...] | None = None,
) -> FastAPI:
    """Make the service. Raises BadInput if the detectors, the kits and one batch take more memory than `limits` has.

    predictor: compared with the prompts that clients send; if it has prompts, it is also the kit `default`. kits: by name. token, hosts: as
    `Rules`.
    """
    limits = limits or Limits()
    metrics = Metrics()
    named = {**({DEFAULT_KIT: predictor} if predictor.ready else {}), **kits}
    remembered: OrderedDict[str, PromptSet] = OrderedDict()

    def drop() -> bool:
        """Forget the least recently used prompts that no request is using."""
        name = next((name for name, one in remembered.items() if not one.users), None)
        if name is not None:
            budget.used -= remembered.pop(name).size
        return name is not None

    loaded = [predictor, *kits.values()]
    costs = _costs(loaded, batch_size, limits.pictures)
    bodies = int(BODIES * limits.memory)
    total = limits.memory - bodies
    fixed = bytes_of(loaded) + max(one.activations for one in costs.values())
    if fixed >= total:
        raise BadInput(
            f"the detectors, the kits and a batch of {batch_size} take {fixed / 1e9:.2g} of {total / 1e9:.2g} GB; give more --memory, "
            "a smaller --batch-size, or fewer kits"
        )
    budget = Budget(total, fixed=fixed, most_waiting=limits.requests, patience=limits.patience, drop=drop)
    batcher = Batcher(batch_size=batch_size, most=limits.waiting, report=metrics.batches.observe)
    metrics.waiting.set_function(lambda: batcher.waiting)
    metrics.prompted.set_function(lambda: len(remembered))
    metrics.memory.set_function(lambda: budget.used)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await in_thread(batcher.close)

    app = FastAPIOffline(  # its page of /docs needs no other host
        title="changepair",
        description="Scores pictures against a few normal ones: 0 normal … 1 anomalous, and where.",
        lifespan=lifespan,
    )
    rules = Rules(
        token=token,
        hosts=hosts,
        free=("/health", "/ready"),
        body=limits.megabytes * 1_000_000,
        bodies=bodies,
        requests=limits.requests,
        body_seconds=limits.seconds,
        answer_seconds=limits.seconds,
    )

    def count(scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "none")  # never the path itself, which a client may make up
        metrics.requests.labels(route, status).inc()
        metrics.latency.labels(route).observe(seconds)

    app.add_middleware(Front, rules=rules, report=count)
    guarded: Any = {"dependencies": [Depends(HTTPBearer(auto_error=False))]}  # for OpenAPI; Front checks the token

    @app.exception_handler(BadInput)
    async def tell(_request: Request, error: BadInput) -> Response:
        return Response(Problem(detail=str(error)).model_dump_json(), 400, media_type="application/json")

    @app.get("/health")
    async def health() -> dict[Literal["status"], str]:
        """Tells that the process lives."""
        return {"status": "alive"}

    @app.get("/ready", responses=_problems(503))
    async def ready() -> dict[Literal["status"], str]:
        """Tells whether pictures can be scored now."""
        _check_alive()
        return {"status": "ready"}

    @app.get("/metrics", response_class=Response, responses=_problems(401), **guarded)
    async def measured() -> Response:
        """Gives what Prometheus reads."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/kits", responses=_problems(401), **guarded)
    async def list_kits() -> list[str]:
        """Lists the kits that `predict` may name."""
        return list(named)

    @app.post("/v1/prompts", status_code=201, responses=_problems(400, 401, 408, 413, 429, 503, 504), **guarded)
    async def prompt(
        pictures: Annotated[list[UploadFile], File(description="Normal pictures")],
        category: Annotated[str, Form(max_length=limits.category, description="What they show, for detectors that read")] = ANY_CATEGORY,
    ) -> Prompted:
        """Remembers normal pictures for later requests."""
        _check_alive()
        needs = await _needs(pictures)
        new, stop = Predictor(predictor.model, device=predictor.device), threading.Event()

        def check() -> None:
            if stop.is_set():
                raise TimeoutError

        async def remember() -> str:
            given = [await in_thread(partial(as_decoded, content, name)) async for name, content in _each(pictures)]
            await in_thread(lambda: new.prompt(given, category=category, check=check), stop.set)
            one, name = PromptSet(new, sum(part.nbytes for part in new.prompted.memory)), secrets.token_urlsafe(16)
            while len(remembered) >= limits.prompted and drop():
                pass
            budget.used += one.size
            remembered[name] = one
            return name

        async with prompting:
            return Prompted(prompts=await _charged(costs[id(predictor.model)].prompting(needs), remember), pictures=len(pictures))

    @app.delete("/v1/prompts/{prompts}", status_code=204, responses=_problems(401, 404), **guarded)
    async def forget(prompts: str) -> None:
        """Forgets prompts."""
        one = remembered.pop(prompts, None)
        if one is None:
            raise HTTPException(404, "no such prompts")
        if not one.users:
            budget.give(one.size)

    @app.post("/v1/predict", responses=_problems(400, 401, 404, 408, 413, 429, 503, 504), **guarded)
    async def predict(
        pictures: Annotated[list[UploadFile], File(description="Pictures to score")],
        prompts: Annotated[str | None, Form(description="As POST /v1/prompts gave it")] = None,
        kit: Annotated[str | None, Form(description="One of GET /v1/kits; without this and prompts, the kit `default`")] = None,
        maps: Annotated[bool, Form(description="Whether to give anomaly maps too")] = False,
    ) -> Answer:
        """Scores pictures."""
        start = time.perf_counter()
        _check_alive()

        async def score() -> list[Scored]:
            queued: list[Any] = []
            try:
                async for of, content in _each(pictures):
                    size, tiles = await in_thread(partial(_cut, own, of, content))
                    queued.append((size, batcher.submit(own, tiles)))
                said = await asyncio.gather(*(asyncio.wrap_future(future) for _size, future in queued))
                pairs = zip(pictures, queued, said, strict=True)
                return [await _scored(own, upload.filename or "", size, one) for upload, (size, _future), one in pairs]
            finally:
                for _size, future in queued:
                    future.cancel()

        async def _scored(own: Predictor, of: str, size: tuple[int, int], said: list[Said]) -> Scored:
            line = line_of(of, score_of(said), own.threshold)
            metrics.pictures.labels(name, line.verdict or "none").inc()
            metrics.scores.labels(name).observe(line.score)
            shown = await in_thread(lambda: base64.b64encode(map_png(own.map_of(said, size))).decode()) if maps else None
            return Scored(**vars(line), map=shown)

        with _found(prompts, kit) as (name, own):
            scored = await _charged(_scoring(own, await _needs(pictures), maps), score)
        return Answer(detector=own.model.name, predictions=scored, seconds=time.perf_counter() - start)

    prompting = asyncio.Lock()  # one set of prompts is encoded at a time

    @contextmanager
    def _found(prompts: str | None, kit: str | None) -> Iterator[tuple[str, Predictor]]:
        """Find prompts or a kit. Prompts are not dropped while they are in use."""
        if prompts is not None and kit is not None:
            raise BadInput("prompts and kit: one of them, not both")
        if prompts is None:
            wanted = kit or DEFAULT_KIT
            if wanted not in named:
                raise HTTPException(404, f"no kit {wanted!r}; there is {', '.join(named) or 'none, so send prompts'}")
            yield wanted, named[wanted]
            return
        if prompts not in remembered:
            raise HTTPException(404, "no such prompts; they may have been dropped, so send them again")
        remembered.move_to_end(prompts)
        one = remembered[prompts]
        one.users += 1
        try:
            yield "prompts", one.predictor
        finally:
            one.users -= 1
            budget.give(0 if one.users or prompts in remembered else one.size)

    def _check_alive() -> None:
        if not batcher.alive:
            raise HTTPException(503, "the service is ending", {"Retry-After": "10"})

    async def _needs(uploads: list[UploadFile]) -> list[Needs]:
        if len(uploads) > limits.pictures:
            raise BadInput(f"{len(uploads)} pictures, more than the {limits.pictures} a request may have")
        return [await in_thread(partial(needs_of, content)) async for _name, content in _each(uploads)]

    def _scoring(own: Predictor, needs: list[Needs], maps: bool) -> int:
        """Return the bytes that scoring takes: a picture at a time, and the tiles and maps of all."""
        largest, pixels = max(one.pixels for one in needs), sum(one.pixels for one in needs)
        return costs[id(own.model)].scoring(own, needs) + maps * (MAP_BYTES * largest + ANSWER_BYTES * pixels)

    async def _charged(size: int, work: Callable[[], Awaitable[Result]]) -> Result:
        try:
            return await budget.hold(size, work)
        except TooLarge as error:
            raise HTTPException(413, str(error)) from error
        except (Busy, Full) as error:
            what = "pictures in the queue" if isinstance(error, Busy) else "pictures for the memory"
            raise HTTPException(429, f"too many {what}; try again", {"Retry-After": "1"}) from error

    return app


def _cut(own: Predictor, name: str, content: bytes) -> tuple[tuple[int, int], list[Tile]]:
    """Decode a picture. Return its height and width, and its tiles."""
    picture = scaled(as_decoded(content, name), name, own.prompted.intensity)
    return picture.shape[:2], own.cut(picture)


async def _each(uploads: list[UploadFile]) -> AsyncIterator[tuple[str, bytes]]:
    """Read one file after the other, with its name for messages."""
    for place, upload in enumerate(uploads):
        await upload.seek(0)
        yield f"picture {place + 1}" + (f" ({upload.filename[:100]})" if upload.filename else ""), await upload.read()


def _costs(predictors: list[Predictor], batch_size: int, pictures: int) -> dict[int, Costs]:
    """Measure detectors, each once that has the same settings. Return their costs by the id of the model.

    pictures: the largest number of prompts that a client may send.
    """
    prompts = max(pictures, *(len(one.prompted.prompts) for one in predictors))
    measured: dict[str, Costs] = {}
    for one in predictors:
        if repr(one.model.settings) not in measured:
            measured[repr(one.model.settings)] = Costs.of(one, batch_size=batch_size, prompts=prompts)
    return {id(one.model): measured[repr(one.model.settings)] for one in predictors}
