"""Serve predictions over HTTP, for `changepair api`. OpenAPI is at /docs.

Clients send pictures, with prompts or the name of a kit. The service estimates the memory of a request from the headers of its pictures,
and reserves it before it decodes one. The memory of one batch is measured at the start and stays reserved. Pictures are decoded one by
one, split into tiles, queued, and scored in batches across requests. A request gets status 429 if the queue or the memory is full, and
504 if it takes too long. After SIGTERM the service finishes the accepted requests.
"""

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
REQUESTS = 128  # largest number of concurrent requests; more get 429
PATIENCE = 5.0  # seconds that a request waits for memory before it gets 429
LETTERS = 100  # largest length of a category
BODIES = 0.25  # share of the memory for the bodies of requests
ANSWER_BYTES = 10  # largest size of a map in the answer, as base64 in JSON, in bytes per pixel
Result = TypeVar("Result")


@dataclass(frozen=True)
class Limits:
    """Limits of requests."""

    pictures: int = 32  # largest number in a request
    megabytes: int = 64  # largest body of a request, in MB
    waiting: int = 64  # largest number of pictures in the queue; more get 429
    memory: int = field(default_factory=default_budget)
    """Bytes for all pictures and prompts, the detectors, the kits and one batch. A request that needs more gets 413."""
    seconds: float = 30.0  # time limit of the body of a request (then 408), and again of the answer (then 504)
    prompted: int = 64  # largest number of prompt sets; the least recently used are dropped first, also to free memory


@dataclass
class PromptSet:
    """Prompts that a client sent."""

    predictor: Predictor
    size: int  # bytes
    users: int = 0  # number of requests that are using it


class Scored(BaseModel):
    """Prediction for one picture."""

    picture: str  # file name, as sent by the client
    score: float  # 0 normal … 1 anomalous
    threshold: float | None  # null if the kit has none
    verdict: Verdict | None  # normal or anomalous; null without a threshold
    map: str | None = None  # base64 of a 16-bit grey PNG in the size of the picture; 65535 is 1; null if not requested


class Answer(BaseModel):
    detector: str
    predictions: list[Scored]  # in the order of the pictures
    seconds: float  # from the arrival of the request


class Prompted(BaseModel):
    prompts: str  # id for `predict`
    pictures: int


class Problem(BaseModel):
    detail: str


class Metrics:
    """Metrics that Prometheus reads at /metrics."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: Any = {"registry": self.registry}
        self.requests = Counter("changepair_requests", "Requests", ["route", "status"], **own)
        self.latency = Histogram("changepair_request_seconds", "Seconds per request", ["route"], buckets=LATENCIES, **own)
        self.pictures = Counter("changepair_pictures", "Pictures scored", ["kit", "verdict"], **own)
        self.scores = Histogram("changepair_scores", "Image scores", ["kit"], buckets=[place / 20 for place in range(1, 20)], **own)
        self.batches = Histogram("changepair_batch_tiles", "Tiles per batch", buckets=(1, 2, 4, 8, 16, 32), **own)
        self.waiting = Gauge("changepair_waiting_pictures", "Waiting pictures", **own)
        self.memory = Gauge("changepair_memory_bytes", "Memory reserved for requests, prompts and kits", **own)
        self.prompted = Gauge("changepair_prompt_sets", "Stored sets of prompts", **own)


PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "A picture or a value is invalid; `detail` names it and the reason"},
    401: {"model": Problem, "description": "The token is missing or wrong"},
    404: {"model": Problem, "description": "The kit or the prompts do not exist; the least recently used prompts are dropped"},
    408: {"model": Problem, "description": "The body was not complete in time"},
    413: {"model": Problem, "description": "The body is too large, or its pictures need too much memory"},
    429: {"model": Problem, "description": "The queue or the memory is full; try again after the seconds in Retry-After"},
    503: {"model": Problem, "description": "The service is shutting down"},
    504: {"model": Problem, "description": "The answer was not complete in time"},
}


class Service:
    """Handle requests. The handlers share the queue, the memory, and the prompts of clients."""

    def __init__(self, predictor: Predictor, kits: Mapping[str, Predictor], limits: Limits, batch_size: int) -> None:
        """Load costs and limits. The arguments are those of `make_app`."""
        loaded = [predictor, *kits.values()]
        self.predictor = predictor
        self.named = {**({DEFAULT_KIT: predictor} if predictor.ready else {}), **kits}
        self.limits = limits
        self.metrics = metrics = Metrics()
        self.remembered: OrderedDict[str, PromptSet] = OrderedDict()
        self.prompting = asyncio.Lock()  # one set of prompts is encoded at a time
        self.costs = _costs(loaded, batch_size, limits.pictures)
        self.bodies = int(BODIES * limits.memory)
        total = limits.memory - self.bodies
        fixed = bytes_of(loaded) + max(one.activations for one in self.costs.values())
        if fixed >= total:
            raise BadInput(
                f"the detectors, the kits and a batch of {batch_size} need {fixed / 1e9:.2g} of {total / 1e9:.2g} GB; increase --memory, "
                "reduce --batch-size, or use fewer kits"
            )
        self.budget = Budget(total, fixed=fixed, most_waiting=REQUESTS, patience=PATIENCE, drop=self.drop)
        self.batcher = Batcher(batch_size=batch_size, most=limits.waiting, report=metrics.batches.observe)
        metrics.waiting.set_function(lambda: self.batcher.waiting)
        metrics.prompted.set_function(lambda: len(self.remembered))
        metrics.memory.set_function(lambda: self.budget.used)

    @asynccontextmanager
    async def lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        yield
        await in_thread(self.batcher.close)

    def count(self, scope: Scope, status: int, seconds: float) -> None:
        """Count an answered request."""
        route = getattr(scope.get("route"), "path", "none")  # not the path itself, which a client can invent
        self.metrics.requests.labels(route, status).inc()
        self.metrics.latency.labels(route).observe(seconds)

    def drop(self) -> bool:
        """Drop the least recently used prompts that no request is using. Return False if there are none."""
        name = next((name for name, one in self.remembered.items() if not one.users), None)
        if name is not None:
            self.budget.used -= self.remembered.pop(name).size
        return name is not None

    async def health(self) -> dict[Literal["status"], str]:
        """Report that the process is alive."""
        return {"status": "alive"}

    async def ready(self) -> dict[Literal["status"], str]:
        """Report whether pictures can be scored now."""
        self._check_alive()
        return {"status": "ready"}

    async def measured(self) -> Response:
        """Return metrics in the format of Prometheus."""
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def list_kits(self) -> list[str]:
        """List the kits for `predict`."""
        return list(self.named)

    async def prompt(
        self,
        pictures: Annotated[list[UploadFile], File(description="Normal pictures")],
        category: Annotated[
            str, Form(max_length=LETTERS, description="Category of the pictures, for text-prompted detectors")
        ] = ANY_CATEGORY,
    ) -> Prompted:
        """Store normal pictures for later requests."""
        self._check_alive()
        needs = await self._needs(pictures)
        new, stop = Predictor(self.predictor.model, device=self.predictor.device), threading.Event()

        def check() -> None:
            if stop.is_set():
                raise TimeoutError

        async def remember() -> str:
            given = [await in_thread(partial(as_decoded, content, name)) async for name, content in _each(pictures)]
            await in_thread(lambda: new.prompt(given, category=category, check=check), stop.set)
            one, name = PromptSet(new, sum(part.nbytes for part in new.prompted.memory)), secrets.token_urlsafe(16)
            while len(self.remembered) >= self.limits.prompted and self.drop():
                pass
            self.budget.used += one.size
            self.remembered[name] = one
            return name

        async with self.prompting:
            size = self.costs[id(self.predictor.model)].prompting(needs)
            return Prompted(prompts=await self._charged(size, remember), pictures=len(pictures))

    async def forget(self, prompts: str) -> None:
        """Delete stored prompts."""
        one = self.remembered.pop(prompts, None)
        if one is None:
            raise HTTPException(404, "unknown prompts")
        if not one.users:
            self.budget.give(one.size)

    async def predict(
        self,
        pictures: Annotated[list[UploadFile], File(description="Pictures to score")],
        prompts: Annotated[str | None, Form(description="Id from POST /v1/prompts")] = None,
        kit: Annotated[str | None, Form(description="Name from GET /v1/kits; without kit and prompts, the kit `default`")] = None,
        maps: Annotated[bool, Form(description="Whether to return anomaly maps")] = False,
    ) -> Answer:
        """Score pictures."""
        start = time.perf_counter()
        self._check_alive()
        with self._found(prompts, kit) as (name, own):
            needs = await self._needs(pictures)
            size = self.costs[id(own.model)].scoring(own, needs)  # one picture at a time, and the tiles of all
            if maps:
                size += MAP_BYTES * max(one.pixels for one in needs) + ANSWER_BYTES * sum(one.pixels for one in needs)
            scored = await self._charged(size, partial(self._score, pictures, name, own, maps))
        return Answer(detector=own.model.name, predictions=scored, seconds=time.perf_counter() - start)

    async def _score(self, pictures: list[UploadFile], kit: str, own: Predictor, maps: bool) -> list[Scored]:
        queued: list[Any] = []
        try:
            async for of, content in _each(pictures):
                size, tiles = await in_thread(partial(_cut, own, of, content))
                queued.append((size, self.batcher.submit(own, tiles)))
            said = await asyncio.gather(*(asyncio.wrap_future(future) for _size, future in queued))
            scored = []
            for upload, (size, _future), one in zip(pictures, queued, said, strict=True):
                line = line_of(upload.filename or "", score_of(one), own.threshold)
                self.metrics.pictures.labels(kit, line.verdict or "none").inc()
                self.metrics.scores.labels(kit).observe(line.score)
                shown = await in_thread(partial(_shown, own, one, size)) if maps else None
                scored.append(Scored(**vars(line), map=shown))
            return scored
        finally:
            for _size, future in queued:
                future.cancel()

    @contextmanager
    def _found(self, prompts: str | None, kit: str | None) -> Iterator[tuple[str, Predictor]]:
        """Find prompts or a kit. Prompts stay in memory while they are in use."""
        if prompts is not None and kit is not None:
            raise BadInput("prompts and kit cannot be combined; send one of them")
        if prompts is None:
            wanted = kit or DEFAULT_KIT
            if wanted not in self.named:
                raise HTTPException(404, f"unknown kit {wanted!r}; available: {', '.join(self.named) or 'none, so send prompts'}")
            yield wanted, self.named[wanted]
            return
        if prompts not in self.remembered:
            raise HTTPException(404, "unknown prompts; they may have been dropped, so send them again")
        self.remembered.move_to_end(prompts)
        one = self.remembered[prompts]
        one.users += 1
        try:
            yield "prompts", one.predictor
        finally:
            one.users -= 1
            self.budget.give(0 if one.users or prompts in self.remembered else one.size)

    def _check_alive(self) -> None:
        if not self.batcher.alive:
            raise HTTPException(503, "the service is shutting down", {"Retry-After": "10"})

    async def _needs(self, uploads: list[UploadFile]) -> list[Needs]:
        if len(uploads) > self.limits.pictures:
            raise BadInput(f"{len(uploads)} pictures are more than the limit of {self.limits.pictures} per request")
        return [await in_thread(partial(needs_of, content)) async for _name, content in _each(uploads)]

    async def _charged(self, size: int, work: Callable[[], Awaitable[Result]]) -> Result:
        try:
            return await self.budget.hold(size, work)
        except TooLarge as error:
            raise HTTPException(413, str(error)) from error
        except (Busy, Full) as error:
            full = "queue" if isinstance(error, Busy) else "memory"
            raise HTTPException(429, f"the {full} is full; try again", {"Retry-After": "1"}) from error


def make_app(
    predictor: Predictor,
    kits: Mapping[str, Predictor],
    *,
    limits: Limits | None = None,
    batch_size: int = BATCH,
    token: str | None = None,
    hosts: tuple[str, ...] | None = None,
) -> FastAPI:
    """Build the app of the service. Raises BadInput if the detectors, the kits and one batch need more memory than `limits` allows.

    predictor: the detector for prompts of clients; with prompts, it is also the kit `default`. kits: by name. token, hosts: see `Rules`.
    """
    limits = limits or Limits()
    service = Service(predictor, kits, limits, batch_size)
    about = "Compares pictures with a few normal ones, and returns scores from 0 (normal) to 1 (anomalous) and anomaly maps."
    app = FastAPIOffline(title="changepair", description=about, lifespan=service.lifespan)  # /docs loads nothing from other hosts
    rules = Rules(
        token=token,
        hosts=hosts,
        free=("/health", "/ready"),
        body=limits.megabytes * 1_000_000,
        bodies=service.bodies,
        requests=REQUESTS,
        body_seconds=limits.seconds,
        answer_seconds=limits.seconds,
    )
    app.add_middleware(Front, rules=rules, report=service.count)

    @app.exception_handler(BadInput)
    async def tell(_request: Request, error: BadInput) -> Response:
        return Response(Problem(detail=str(error)).model_dump_json(), 400, media_type="application/json")

    def route(method: str, path: str, work: Callable[..., Any], *codes: int, **options: Any) -> None:
        if path not in rules.free:
            options["dependencies"] = [Depends(HTTPBearer(auto_error=False))]  # only for OpenAPI; Front checks the token
        app.add_api_route(path, work, methods=[method], responses={code: PROBLEMS[code] for code in codes} or None, **options)

    route("GET", "/health", service.health)
    route("GET", "/ready", service.ready, 503)
    route("GET", "/metrics", service.measured, 401, response_class=Response)
    route("GET", "/v1/kits", service.list_kits, 401)
    route("POST", "/v1/prompts", service.prompt, 400, 401, 408, 413, 429, 503, 504, status_code=201)
    route("DELETE", "/v1/prompts/{prompts}", service.forget, 401, 404, status_code=204)
    route("POST", "/v1/predict", service.predict, 400, 401, 404, 408, 413, 429, 503, 504)
    return app


def _shown(own: Predictor, said: list[Said], size: tuple[int, int]) -> str:
    return base64.b64encode(map_png(own.map_of(said, size))).decode()


def _cut(own: Predictor, name: str, content: bytes) -> tuple[tuple[int, int], list[Tile]]:
    """Decode a picture. Return its height and width in pixels, and its tiles."""
    picture = scaled(as_decoded(content, name), name, own.prompted.intensity)
    return picture.shape[:2], own.cut(picture)


async def _each(uploads: list[UploadFile]) -> AsyncIterator[tuple[str, bytes]]:
    """Read one file after the other, with a name for messages."""
    for place, upload in enumerate(uploads):
        await upload.seek(0)
        yield f"picture {place + 1}" + (f" ({upload.filename[:100]})" if upload.filename else ""), await upload.read()


def _costs(predictors: list[Predictor], batch_size: int, pictures: int) -> dict[int, Costs]:
    """Measure the costs of detectors, once for equal settings. Return them by the id of the model.

    pictures: the largest number of prompts from a client.
    """
    prompts = max(pictures, *(len(one.prompted.prompts) for one in predictors))
    measured: dict[str, Costs] = {}
    for one in predictors:
        if repr(one.model.settings) not in measured:
            measured[repr(one.model.settings)] = Costs.of(one, batch_size=batch_size, prompts=prompts)
    return {id(one.model): measured[repr(one.model.settings)] for one in predictors}
