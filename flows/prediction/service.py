"""The service `changepair api`: clients give prompts, or name a kit, and send pictures; HTTP, OpenAPI at /docs.

A request's pictures are checked and decoded in threads, wait in one bounded queue, and are scored in batches across requests. What does not
fit the queue is refused with 429, what takes too long given up with 504, and after SIGTERM what began is ended.
"""
# Annotations are no strings here: FastAPI evaluates those, and knows nothing of a function's own names.

import asyncio
import base64
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, File, Form, HTTPException, Request, Response, UploadFile
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel

from flows.prediction.body_limit import BodyLimit
from tasks.common.decoding import Decoded
from tasks.common.errors import BadInput
from tasks.common.pictures import Picture
from tasks.detectors.models.detector import ANY_CATEGORY
from tasks.prediction.batching import Batcher, Busy
from tasks.prediction.outputs import Verdict, line_of, map_png
from tasks.prediction.pictures import as_decoded, scaled
from tasks.prediction.predictor import Prediction, Predictor

DEFAULT_KIT = "default"
LATENCIES = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)  # seconds


@dataclass(frozen=True)
class Limits:
    """What a client may ask for."""

    pictures: int = 32
    """A request."""
    megabytes: int = 64
    """A request's body, at most."""
    waiting: int = 64
    """Pictures of all clients that may wait; those beyond get 429."""
    seconds: float = 30.0
    """Until a request is given up with 504."""
    prompted: int = 64
    """Sets of prompts that are remembered; of more the one that was used the longest ago is dropped."""
    category: int = 100
    """Letters."""


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
        self.prompted = Gauge("changepair_prompt_sets", "Sets of prompts that are remembered", **own)


PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "A picture or a value that cannot be used; `detail` says which and why"},
    401: {"model": Problem, "description": "No token, or a wrong one"},
    404: {"model": Problem, "description": "No such kit or prompts; prompts that were long unused are dropped"},
    413: {"model": Problem, "description": "The request is larger than it may be"},
    429: {"model": Problem, "description": "Too many pictures wait; try again after the seconds in Retry-After"},
    504: {"model": Problem, "description": "It took longer than it may"},
}


def _problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    return {code: PROBLEMS[code] for code in codes}


def make_app(
    predictor: Predictor, kits: Mapping[str, Predictor], *, limits: Limits = Limits(), batch_size: int = 8, token: str | None = None
) -> FastAPI:
    """Makes the service. predictor: its model is held against the prompts that clients give; ready, it is the kit `default` too. kits: by
    name. token: that clients must send as `Authorization: Bearer <token>`; None for no such check."""
    metrics = Metrics()
    named = {**({DEFAULT_KIT: predictor} if predictor.ready else {}), **kits}
    remembered: OrderedDict[str, Predictor] = OrderedDict()
    batcher = Batcher(batch_size=batch_size, most=limits.waiting, report=metrics.batches.observe)
    metrics.waiting.set_function(lambda: batcher.waiting)
    metrics.prompted.set_function(lambda: len(remembered))

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(batcher.close)

    bearer = HTTPBearer(auto_error=False)

    def known(credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> None:
        given = credentials.credentials if credentials is not None else ""
        if token is not None and not secrets.compare_digest(given.encode(), token.encode()):
            raise HTTPException(401, "send the token as `Authorization: Bearer <token>`", {"WWW-Authenticate": "Bearer"})

    app = FastAPIOffline(  # its page of /docs needs no other host
        title="changepair",
        description="Scores pictures against a few normal ones: 0 normal … 1 anomalous, and where.",
        lifespan=lifespan,
    )
    app.add_middleware(BodyLimit, most=limits.megabytes * 1_000_000)
    guarded: Any = {"dependencies": [Depends(known)]}

    @app.middleware("http")
    async def count(request: Request, handle: Any) -> Response:
        start, status = time.perf_counter(), 500
        try:
            response: Response = await handle(request)
            status = response.status_code
            return response
        finally:
            route = getattr(request.scope.get("route"), "path", "none")  # never the path itself, which a client may make up
            metrics.requests.labels(route, status).inc()
            metrics.latency.labels(route).observe(time.perf_counter() - start)

    @app.exception_handler(BadInput)
    async def tell(_request: Request, error: BadInput) -> Response:
        return Response(Problem(detail=str(error)).model_dump_json(), 400, media_type="application/json")

    @app.get("/health")
    async def health() -> dict[Literal["status"], str]:
        """Tells that the process lives."""
        return {"status": "alive"}

    @app.get("/ready", responses={503: {"model": Problem}})
    async def ready() -> dict[Literal["status"], str]:
        """Tells whether pictures can be scored now."""
        if not batcher.alive:
            raise HTTPException(503, "ending")
        return {"status": "ready"}

    @app.get("/metrics", response_class=Response, responses=_problems(401), **guarded)
    async def measured() -> Response:
        """Gives what Prometheus reads."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/kits", responses=_problems(401), **guarded)
    async def list_kits() -> list[str]:
        """Lists the kits that `predict` may name."""
        return list(named)

    @app.post("/v1/prompts", status_code=201, responses=_problems(400, 401, 413, 429), **guarded)
    async def prompt(
        pictures: Annotated[list[UploadFile], File(description="Normal pictures")],
        category: Annotated[str, Form(max_length=limits.category, description="What they show, for detectors that read")] = ANY_CATEGORY,
    ) -> Prompted:
        """Remembers normal pictures for later requests."""
        given = [decoded for _name, decoded in await _read(pictures)]
        new = Predictor(predictor.model, device=predictor.device)
        async with prompting:
            await run_in_threadpool(lambda: new.prompt(given, category=category))
        name = secrets.token_urlsafe(16)
        remembered[name] = new
        while len(remembered) > limits.prompted:
            remembered.popitem(last=False)
        return Prompted(prompts=name, pictures=len(given))

    @app.delete("/v1/prompts/{prompts}", status_code=204, responses=_problems(401, 404), **guarded)
    async def forget(prompts: str) -> None:
        """Forgets prompts."""
        if remembered.pop(prompts, None) is None:
            raise HTTPException(404, "no such prompts")

    @app.post("/v1/predict", responses=_problems(400, 401, 404, 413, 429, 504), **guarded)
    async def predict(
        pictures: Annotated[list[UploadFile], File(description="Pictures to score")],
        prompts: Annotated[str | None, Form(description="As POST /v1/prompts gave it")] = None,
        kit: Annotated[str | None, Form(description="One of GET /v1/kits; without this and prompts, the kit `default`")] = None,
        maps: Annotated[bool, Form(description="Whether to give anomaly maps too")] = False,
    ) -> Answer:
        """Scores pictures."""
        start = time.perf_counter()
        name, own = _found(prompts, kit)
        given = await _read(pictures)
        shown = await run_in_threadpool(lambda: [scaled(decoded, of, own.prompted.intensity) for of, decoded in given])
        try:
            futures = await run_in_threadpool(lambda: _submitted(own, shown))
        except Busy as error:
            raise HTTPException(429, "too many pictures wait; try again", {"Retry-After": "1"}) from error
        try:
            async with asyncio.timeout(limits.seconds - (time.perf_counter() - start)):
                predictions: list[Prediction] = await asyncio.gather(*map(asyncio.wrap_future, futures))
        except TimeoutError as error:
            raise HTTPException(504, f"not scored within {limits.seconds:g} seconds") from error
        finally:
            for future in futures:
                future.cancel()
        scored = []
        for upload, one in zip(pictures, predictions, strict=True):
            line = line_of(upload.filename or "", one.score, own.threshold)
            metrics.pictures.labels(name, line.verdict or "none").inc()
            metrics.scores.labels(name).observe(one.score)
            png = await run_in_threadpool(map_png, one.map) if maps else None
            scored.append(Scored(**vars(line), map=None if png is None else base64.b64encode(png).decode()))
        return Answer(detector=own.model.name, predictions=scored, seconds=time.perf_counter() - start)

    prompting = asyncio.Lock()  # one set of prompts is encoded at a time, so that many clients do not take all memory

    def _found(prompts: str | None, kit: str | None) -> tuple[str, Predictor]:
        if prompts is not None and kit is not None:
            raise BadInput("prompts and kit: one of them, not both")
        if prompts is not None:
            if prompts not in remembered:
                raise HTTPException(404, "no such prompts; they may have been dropped, so send them again")
            remembered.move_to_end(prompts)
            return "prompts", remembered[prompts]
        wanted = kit or DEFAULT_KIT
        if wanted not in named:
            raise HTTPException(404, f"no kit {wanted!r}; there is {', '.join(named) or 'none, so send prompts'}")
        return wanted, named[wanted]

    async def _read(uploads: list[UploadFile]) -> list[tuple[str, Decoded]]:
        if len(uploads) > limits.pictures:
            raise BadInput(f"{len(uploads)} pictures, more than the {limits.pictures} a request may have")
        pictures = []
        for place, upload in enumerate(uploads):
            content, name = await upload.read(), f"picture {place + 1}" + (f" ({upload.filename[:100]})" if upload.filename else "")
            pictures.append((name, await run_in_threadpool(as_decoded, content, name)))
        return pictures

    def _submitted(own: Predictor, pictures: list[Picture]) -> list[Any]:
        futures: list[Any] = []
        try:
            futures += [batcher.submit(own, picture) for picture in pictures]
        except Busy:
            for future in futures:
                future.cancel()
            raise
        return futures

    return app
