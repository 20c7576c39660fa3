"""Draws a pipeline's episodes: for each target and category, which normal pictures prompt which queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tasks.errors import BadInput
from tasks.files import read_table, write_table
from tasks.ingestion.manifest import ANOMALOUS, MADE_BY, NORMAL, SCHEMA
from tasks.ingestion.objects import table as objects
from tasks.ingestion.objects.table import write_objects
from tasks.randomness import generator
from tasks.sampling.episodes import EPISODES, Episode, EpisodeFiles
from tasks.sampling.settings import SamplingSettings, Use

Row = dict[str, Any]


def sample(settings: SamplingSettings, use: Use, *, manifests: Path, files: EpisodeFiles) -> int:
    """Writes the files of tasks.sampling.episodes and gives the number of episodes.

    Raises BadInput if a picture is both trained on and tested on, or a category has too few normal pictures.
    """
    sources, targets = use.sources, use.targets
    source_rows = [row for name in sources for row in _read(manifests, name)]
    texture_rows = [row for name in use.textures for row in _read(manifests, name)]
    auxiliary_rows = [row for name in use.auxiliary for row in _read(manifests, name)]
    target_rows = [row for name in targets for row in _read(manifests, name)]
    refuse_overlap([*source_rows, *texture_rows, *auxiliary_rows], target_rows)
    episodes = [episode for name in targets for episode in draw(settings, name, [row for row in target_rows if row["dataset"] == name])]

    training = _normal(source_rows)
    if sources and not training:
        raise BadInput(f"sources {', '.join(sources)}: no normal training picture among them, so there is nothing to make pairs from")
    textures = _normal(texture_rows) if use.textures else training
    if use.textures and not textures:
        raise BadInput(
            f"textures {', '.join(use.textures)}: no normal training picture among them, so there is no texture to cut from them"
        )
    named = {image for episode in episodes for image in (*episode.prompts, *episode.queries)}
    write_table(files.sources, pa.Table.from_pylist(training, schema=SCHEMA))
    write_table(files.textures, pa.Table.from_pylist(textures, schema=SCHEMA))
    write_table(files.auxiliary, pa.Table.from_pylist(auxiliary_rows, schema=SCHEMA))
    write_objects(files.objects, _objects(manifests, sources, [row["image"] for row in training]))
    write_table(files.targets, pa.Table.from_pylist([row for row in target_rows if row["image"] in named], schema=SCHEMA))
    write_table(files.episodes, pa.Table.from_pylist([asdict(episode) for episode in episodes], schema=EPISODES))
    return len(episodes)


def refuse_overlap(training: Sequence[Row], targets: Sequence[Row]) -> None:
    """Raises BadInput if any picture, by the sha256 of its file, is in both: a detector must not be tested on what it saw."""
    trained_on = {row["sha256"]: row["image"] for row in training}
    both = [(trained_on[row["sha256"]], row["image"]) for row in targets if row["sha256"] in trained_on]
    if both:
        raise BadInput(
            f"{len(both)} pictures are both a source and a target, the first {both[0][0]} and {both[0][1]}; "
            "take one of the datasets out of the pipeline's sources, textures, auxiliary or targets"
        )


def draw(settings: SamplingSettings, target: str, rows: Sequence[Row]) -> list[Episode]:
    """The episodes of one target, in the order category, protocol, seed, shots.

    A seed orders a category's normal training pictures once and k shots are the first k, so that more shots only ever add.
    """
    categories = list(dict.fromkeys(row["category"] for row in rows))
    queries = {category: _queries(target, [row for row in rows if row["category"] == category]) for category in categories}
    prompts = {(category, seed): _prompts(settings, target, category, seed, rows) for category in categories for seed in settings.seeds}
    episodes = []
    for category in categories:
        for protocol in settings.protocols:
            for seed in settings.seeds:
                for shots in settings.shots:
                    if shots == 0 and (seed, protocol) != (settings.seeds[0], settings.protocols[0]):
                        continue  # without prompts every seed and protocol is the same episode
                    pool = [category] if protocol == "class-specific" else categories
                    chosen = tuple(image for member in pool for image in prompts[member, seed][:shots])
                    episodes.append(Episode(target, category, protocol, shots, seed, chosen, queries[category]))
    return episodes


def _prompts(settings: SamplingSettings, target: str, category: str, seed: int, rows: Sequence[Row]) -> list[str]:
    normal = [row["image"] for row in rows if row["category"] == category and row["split"] == "train" and row["label"] == NORMAL]
    if len(normal) < max(settings.shots):
        raise BadInput(
            f"{target}: category {category!r} has {len(normal)} normal training pictures, fewer than the {max(settings.shots)} shots "
            "asked for; add pictures to its train/good or lower sampling.shots"
        )
    return _shuffled(normal, seed, target, category, "prompts")[: max(settings.shots)]


def _queries(target: str, rows: Sequence[Row]) -> tuple[str, ...]:
    """All test pictures, each label shuffled and the labels interleaved in proportion."""
    by_label = {label: [row["image"] for row in rows if row["split"] == "test" and row["label"] == label] for label in (NORMAL, ANOMALOUS)}
    for label, images in by_label.items():
        if not images:
            kind = "normal" if label == NORMAL else "anomalous"
            raise BadInput(f"{target}: category {rows[0]['category']!r} has no {kind} test picture, so nothing can be measured on it")
    placed = [
        ((rank + 0.5) / len(images), label, image)
        for label, images in by_label.items()
        for rank, image in enumerate(_shuffled(images, 0, target, rows[0]["category"], "queries", label))
    ]
    return tuple(image for _place, _label, image in sorted(placed))


def _shuffled(images: Sequence[str], seed: int, *item: int | str) -> list[str]:
    return [images[index] for index in generator(seed, *item).permutation(len(images))]


def _normal(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["split"] == "train" and row["label"] == NORMAL]


def _objects(manifests: Path, sources: Sequence[str], images: Sequence[str]) -> pa.Table:
    """The objects of those images, as far as their datasets have any."""
    tables = [
        read_table(file, objects.SCHEMA, objects.MADE_BY)
        for file in (manifests / f"{name}.objects.parquet" for name in sorted(sources))
        if file.is_file()
    ]
    table = pa.concat_tables([objects.SCHEMA.empty_table(), *tables])
    return table.filter(pc.is_in(table["image"], pa.array(images, pa.string())))


def _read(manifests: Path, dataset: str) -> list[Row]:
    return read_table(manifests / f"{dataset}.parquet", SCHEMA, MADE_BY).to_pylist()
