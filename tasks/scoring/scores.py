"""Store the scores of one detector. The score stage writes them; metrics, galleries and the gate read them.

    data/scores/<pipeline>/<detector>/
      scores.parquet   one row for each image score (SCORES)
      perturbed.parquet  one row for each score of a perturbed normal picture (PERTURBED), with `evaluation.perturbations`
      maps/<n>.npy     anomaly maps Mxhxw in [0, 1], float32, on the detector's grid; scores.parquet has their rows

Maps are kept for every query with a mask, and for the queries that galleries show (one episode of each category).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from changepair.tasks.common.files import made_anew, read_table, write_table, write_text
from changepair.tasks.ingestion.manifest import ANOMALOUS
from changepair.tasks.sampling.episodes import Episode

MADE_BY = "score"
SCORES_NAME, PERTURBED_NAME, MAPS_NAME = "scores.parquet", "perturbed.parquet", "maps"
SCORES = pa.schema(
    [
        pa.field("episode", pa.int32(), nullable=False),  # its row in the episodes' table
        pa.field("target", pa.string(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("protocol", pa.string(), nullable=False),
        pa.field("shots", pa.int32(), nullable=False),
        pa.field("seed", pa.int32(), nullable=False),
        pa.field("detector", pa.string(), nullable=False),
        pa.field("image", pa.string(), nullable=False),
        pa.field("label", pa.int8(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("maps", pa.int32()),  # the file of its map; null if it has none
        pa.field("map", pa.int32()),  # its row in that file
    ]
)
PERTURBED = pa.schema(
    [
        *(SCORES.field(name) for name in ("episode", "target", "category", "protocol", "shots", "seed", "detector", "image")),
        pa.field("perturbation", pa.string(), nullable=False),
        SCORES.field("score"),
    ]
)
Maps = NDArray[np.float32]


@dataclass(frozen=True)
class Scored:
    """The scores of one detector on one episode."""

    number: int
    """Row of the episode in the episodes' table."""
    scores: NDArray[np.float32]
    """Image scores of the first Q queries."""
    maps: Maps | None
    """Anomaly maps Qxhxw of these queries. None if they were not kept."""

    def maxima(self, labels: Sequence[int]) -> list[float]:
        """Return the maximum of each normal picture's map; [] without maps. labels: labels of the queries."""
        if self.maps is None:
            return []
        return [float(map_.max()) for map_, label in zip(self.maps, labels, strict=False) if label != ANOMALOUS]


@dataclass(frozen=True)
class Group:
    """Episodes with the same queries and different prompts. They are scored together."""

    number: int
    episodes: dict[int, Episode]
    """Episodes by row in the episodes' table."""
    queries: int
    """Number of queries that the detector scores, the first ones."""
    kept: tuple[int, ...]
    """Rows of the episodes whose maps are kept."""
    perturbations: tuple[str, ...] = ()
    """Perturbations of the queries, in turn: query q has perturbation q modulo their number. Empty if queries are unchanged."""


def same_queries(episodes: Mapping[int, Episode]) -> list[dict[int, Episode]]:
    """Group episodes, by number, with the same queries and different prompts."""
    groups: dict[object, dict[int, Episode]] = {}
    for number, episode in episodes.items():
        groups.setdefault((episode.target, episode.category, episode.queries, episode.labels), {})[number] = episode
    return list(groups.values())


class ScoresFolder:
    """Keep the scores of a detector in progress, on disk. After a kill, added queries are not scored again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def done(self, group: Group) -> int:
        """Return the number of queries of a group that are scored."""
        file = self._file(group, "json")
        return int(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else 0

    def add(self, group: Group, start: int, scores: Mapping[int, NDArray[np.float32]], maps: Mapping[int, Maps]) -> None:
        """Add scores B and maps Bxhxw of the queries from `start` on, by episode. Only the maps of `group.kept` are stored."""
        self.folder.mkdir(parents=True, exist_ok=True)
        stop = start + len(next(iter(scores.values())))
        all_scores = self._array(group, "scores.npy", (len(group.episodes), group.queries))
        for place, number in enumerate(group.episodes):
            all_scores[place, start:stop] = scores[number]
        all_scores.flush()
        if group.kept:
            all_maps = self._array(group, "maps.npy", (len(group.kept) * group.queries, *maps[group.kept[0]].shape[1:]))
            for place, number in enumerate(group.kept):
                all_maps[place * group.queries + start : place * group.queries + stop] = maps[number]
            all_maps.flush()
        write_text(self._file(group, "json"), json.dumps(stop))

    def finish(self, groups: Sequence[Group], detector: str, folder: Path) -> int:
        """Write the folder of this module's docstring, and delete the work in progress. Return the number of scores."""
        tables, perturbed = [SCORES.empty_table()], list[pa.Table]()
        with made_anew(folder) as partial:
            (partial / MAPS_NAME).mkdir()
            for group in groups:
                scores = self._array(group, "scores.npy", (len(group.episodes), group.queries))
                rows = [_rows(group, place, number, detector, scores[place]) for place, number in enumerate(group.episodes)]
                (perturbed if group.perturbations else tables).extend(rows)
                if group.kept:
                    self._file(group, "maps.npy").rename(partial / MAPS_NAME / f"{group.number}.npy")
            joined = pa.concat_tables(tables)
            write_table(partial / SCORES_NAME, joined)
            if perturbed:
                write_table(partial / PERTURBED_NAME, pa.concat_tables(perturbed))
        shutil.rmtree(self.folder, ignore_errors=True)
        return int(joined.num_rows)

    def _array(self, group: Group, ending: str, shape: tuple[int, ...]) -> np.memmap[Any, np.dtype[np.float32]]:
        file = self._file(group, ending)
        return open_memmap(file, mode="r+") if file.is_file() else open_memmap(file, mode="w+", dtype=np.float32, shape=shape)

    def _file(self, group: Group, ending: str) -> Path:
        return self.folder / f"{group.number}.{ending}"


def _rows(group: Group, place: int, number: int, detector: str, scores: NDArray[np.float32]) -> pa.Table:
    episode, count = group.episodes[number], group.queries
    first = group.kept.index(number) * count if number in group.kept else None
    about = (number, episode.target, episode.category, episode.protocol, episode.shots, episode.seed, detector)
    columns: list[Any] = [*([value] * count for value in about), episode.queries[:count]]
    if group.perturbations:
        columns += [[group.perturbations[query % len(group.perturbations)] for query in range(count)], np.asarray(scores)]
        return _table(columns, PERTURBED)
    columns += [
        episode.labels[:count],
        np.asarray(scores),
        [None if first is None else group.number] * count,
        [None if first is None else first + query for query in range(count)],
    ]
    return _table(columns, SCORES)


def _table(columns: Sequence[Any], schema: pa.Schema) -> pa.Table:
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema=schema)


def read_scores(folder: Path) -> pa.Table:
    """Read the table of a detector's scores."""
    return read_table(folder / SCORES_NAME, SCORES, MADE_BY)


def read_perturbed(folder: Path) -> pa.Table:
    """Read the table of a detector's scores on perturbed pictures. It is empty if no perturbations were set."""
    file = folder / PERTURBED_NAME
    return read_table(file, PERTURBED, MADE_BY) if file.is_file() else PERTURBED.empty_table()


def read_scored(folder: Path) -> Iterator[Scored]:
    """Yield the scores of each episode, in order. Maps are memory-mapped from disk."""
    table = read_scores(folder)
    numbers = table["episode"].to_numpy()
    starts = np.flatnonzero(np.diff(numbers, prepend=-1))  # an episode's rows are adjacent
    stops = np.append(starts[1:], len(numbers))
    for place in np.argsort(numbers[starts]).tolist():
        rows = table.slice(starts[place], stops[place] - starts[place])
        maps = None
        if rows["maps"][0].is_valid:
            stored = np.load(folder / MAPS_NAME / f"{rows['maps'][0].as_py()}.npy", mmap_mode="r")
            first = rows["map"][0].as_py()
            maps = stored[first : first + rows.num_rows]
        yield Scored(int(numbers[starts[place]]), rows["score"].to_numpy(), maps)
