"""Score the pictures of many callers in batches, in one thread. A full queue refuses pictures."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import groupby

from changepair.tasks.prediction.predictor import BATCH, Predictor, Said, Tile


class Busy(Exception):
    """Raised if the queue is full or closed."""


@dataclass
class _Job:
    """A picture in the queue."""

    predictor: Predictor
    tiles: deque[Tile]
    future: Future[list[Said]]
    said: list[Said] = field(default_factory=list)


class Batcher:
    """Score pictures from any thread. Waiting pictures of one model are encoded together, even with different prompts."""

    def __init__(self, *, batch_size: int = BATCH, most: int = 64, report: Callable[[int], None] = lambda tiles: None) -> None:
        """Start the thread. batch_size: tiles in each batch. most: pictures that may wait. report: receives the size of each batch."""
        self.batch_size, self.most, self._report = batch_size, most, report
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Number of waiting pictures."""
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        """Whether the thread runs and accepts pictures."""
        return self._thread.is_alive() and not self._closing

    def submit(self, predictor: Predictor, tiles: Iterable[Tile]) -> Future[list[Said]]:
        """Queue the tiles of a picture, as returned by `predictor.cut`. Cancel the future to remove it. Raises Busy."""
        job = _Job(predictor, deque(tiles), Future())
        with self._changed:
            if self._closing or len(self._waiting) >= self.most:
                raise Busy
            self._waiting.append(job)
            self._changed.notify()
        return job.future

    def close(self) -> None:
        """Score the waiting pictures, then end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            if batch:
                self._score(batch)

    def _next(self) -> list[tuple[_Job, Tile]] | None:
        """Wait for work. Return a batch of tiles of one model, in order of arrival; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            while self._waiting and self._waiting[0].future.cancelled():
                self._waiting.popleft()
            if not self._waiting:
                return None if self._closing else []
            model = self._waiting[0].predictor.model
            batch: list[tuple[_Job, Tile]] = []
            for job in [job for job in self._waiting if job.predictor.model is model and not job.future.cancelled()]:
                while job.tiles and len(batch) < self.batch_size:
                    batch.append((job, job.tiles.popleft()))
                if not job.tiles:
                    self._waiting.remove(job)
                if len(batch) == self.batch_size:
                    break
            return batch

    def _score(self, batch: list[tuple[_Job, Tile]]) -> None:
        jobs = list({id(job): job for job, _tile in batch}.values())
        try:
            batch.sort(key=lambda item: id(item[0].predictor.prompted))  # stable, so a job's tiles stay in their order
            features = batch[0][0].predictor.encode([tile for _job, tile in batch])
            start = 0
            for _prompted, group in groupby(batch, key=lambda item: id(item[0].predictor.prompted)):
                own, tiles = zip(*group, strict=True)
                part = [stage[start : start + len(own)] for stage in features]
                for job, said in zip(own, own[0].predictor.conclude(part, tiles), strict=True):
                    job.said.append(said)
                start += len(own)
            for job in jobs:
                if len(job.said) == job.predictor.prompted.grid.tiles and job.future.set_running_or_notify_cancel():
                    job.future.set_result(job.said)
        except Exception as error:  # reported to the callers of this batch; the thread continues
            with self._changed:
                self._waiting = deque(job for job in self._waiting if job not in jobs)
            for job in jobs:
                if not job.future.done() and job.future.set_running_or_notify_cancel():
                    job.future.set_exception(error)
        self._report(len(batch))
