"""Draw a pipeline's episodes: which normal pictures are the prompts of which queries, for each target and category."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.files import read_table, write_csv
from changepair.tasks.common.randomness import generator
from changepair.tasks.common.rows import read_rows, schema_of, write_rows
from changepair.tasks.common.texts import csv_rows
from changepair.tasks.ingestion.manifest import ANOMALOUS, MADE_BY, NORMAL, PictureRow
from changepair.tasks.ingestion.objects import table as objects
from changepair.tasks.ingestion.objects.table import ObjectRow, write_objects
from changepair.tasks.sampling.episodes import Episode, EpisodeFiles, undefined_metrics
from changepair.tasks.sampling.prompts import Drawing, Given, normal_pictures, read_given
from changepair.tasks.sampling.settings import Protocol, SamplingSettings, Use

Labelled = tuple[str, int]  # a query's picture and its label
BITS = 64
MOST_BITS = 3  # bits in which the hashes of near duplicates may differ
BANDS = MOST_BITS + 1  # if two hashes differ in at most MOST_BITS bits, at least one of these bands is equal
BAND_BITS = BITS // BANDS
TRAINED_ON, PROMPTS = "trained on", "prompts"


class NearDuplicate(NamedTuple):
    seen: str
    tested_on: str
    bits: int  # bits of 64 in which their hashes differ
    how: str = TRAINED_ON  # use of the first picture: TRAINED_ON, or PROMPTS if it may be a prompt


@dataclass(frozen=True)
class Sampled:
    episodes: int
    near_duplicates: int  # pairs of a training and a target picture that look the same
    repeated: int  # test pictures that look the same as a possible prompt of their category
    unmeasured: list[str]  # sentences of `undefined_metrics` on categories whose test pictures have only one label


def sample(settings: SamplingSettings, use: Use, *, manifests: Path, files: EpisodeFiles) -> Sampled:
    """Write the files of tasks/sampling/episodes.py.

    Raises BadInput if a picture is both trained on and tested on, or a category has too few normal pictures.
    """
    sources, targets = use.sources, use.targets
    source_rows, texture_rows, auxiliary_rows, target_rows = (
        [row for name in names for row in read_rows(manifests / f"{name}.parquet", PictureRow, MADE_BY)]
        for names in (sources, use.textures, use.auxiliary, targets)
    )
    own = [name for name in targets if name in (*sources, *use.textures)]
    if settings.to_train and own:
        to_train = parted(settings.to_train, [row for row in target_rows if row.dataset in own])
        source_rows, texture_rows = (
            [row for row in rows if row.dataset not in own or row.image in to_train] for rows in (source_rows, texture_rows)
        )
        target_rows = [row for row in target_rows if row.image not in to_train]
    for name in targets:
        refuse_repeated(name, [row for row in target_rows if row.dataset == name])
    refuse_overlap([*source_rows, *texture_rows, *auxiliary_rows], target_rows)
    of_target = {name: [row for row in target_rows if row.dataset == name] for name in targets}
    given = read_given(Path(settings.prompts), of_target) if settings.prompts is not None else None
    episodes = [episode for name in targets for episode in draw(settings, name, of_target[name], given)]
    for episode in episodes:
        if both := set(episode.prompts) & set(episode.queries):
            wrong = f"{min(both)} is both a prompt and a query of category {episode.category!r}"
            raise BadInput(f"{episode.target}: {wrong}; correct sampling.prompts")
    training = _normal(source_rows)
    if sources and not training:
        raise BadInput(f"sources {', '.join(sources)}: they have no normal training picture to make pairs from; name other sources")
    textures = _normal(texture_rows) if use.textures else training
    if use.textures and not textures:
        names = ", ".join(use.textures)
        raise BadInput(f"textures {names}: they have no normal training picture to cut textures from; name other textures")
    named = {image for episode in episodes for image in (*episode.prompts, *episode.queries)}
    prompts_and_queries = [row for row in target_rows if row.image in named]
    write_rows(files.sources, PictureRow, training)
    write_rows(files.textures, PictureRow, textures)
    write_rows(files.auxiliary, PictureRow, auxiliary_rows)
    write_objects(files.objects, _objects(manifests, sources, [row.image for row in training]))
    write_rows(files.targets, PictureRow, prompts_and_queries)
    alike = near_duplicates([*source_rows, *texture_rows, *auxiliary_rows], prompts_and_queries)
    again = repeated(_normal(target_rows), [row for row in target_rows if row.split == "test"])
    write_csv(files.near_duplicates, NearDuplicate._fields, [*alike, *again])
    write_csv(files.rejected, ["dataset", "file", "reason"], _rejected(manifests, [*sources, *use.textures, *use.auxiliary, *targets]))
    write_rows(files.episodes, Episode, episodes)
    return Sampled(len(episodes), len(alike), len(again), undefined_metrics(episodes, target_rows))


def parted(share: float, rows: Sequence[PictureRow]) -> set[str]:
    """Choose the normal training pictures to train on, by path: a rounded share of each category.

    They are drawn in a seeded order of their contents, independent of their paths. Raises BadInput if none is left to train on, or none to
    prompt.
    """
    chosen: set[str] = set()
    by_category: dict[tuple[str, str], list[PictureRow]] = {}
    for row in _normal(rows):
        by_category.setdefault((row.dataset, row.category), []).append(row)
    for (dataset, category), members in by_category.items():
        count = round(share * len(members))
        if not 0 < count < len(members):
            raise BadInput(
                f"{dataset}: category {category!r} has {len(members)} normal training pictures, too few to split by "
                f"sampling.to_train, {share:g}; add pictures to its train/good"
            )
        in_order = sorted(members, key=lambda row: (row.sha256, row.image))
        chosen |= {in_order[place].image for place in generator(0, dataset, category, "to train").permutation(len(members))[:count]}
    return chosen


def refuse_overlap(training: Sequence[PictureRow], targets: Sequence[PictureRow]) -> None:
    """Raise BadInput if any file, by its sha256, is in both. A detector must not be tested on pictures that it was trained on."""
    trained_on = {row.sha256: row.image for row in training}
    both = [(trained_on[row.sha256], row.image) for row in targets if row.sha256 in trained_on]
    if both:
        raise BadInput(
            f"{len(both)} pictures are both a source and a target, the first {both[0][0]} and {both[0][1]}; "
            "remove one of the datasets from the pipeline's sources, textures, auxiliary or targets, or set sampling.to_train to the "
            "share of a dataset's normal pictures to train on, so that the others are prompts"
        )


def refuse_repeated(target: str, rows: Sequence[PictureRow]) -> None:
    """Raise BadInput if a normal training picture of a target is also a test picture, by the sha256 of its file. It would be its own
    prompt."""
    prompts = {row.sha256: row.image for row in _normal(rows)}
    both = [(prompts[row.sha256], row.image) for row in rows if row.split == "test" and row.sha256 in prompts]
    if both:
        raise BadInput(
            f"{target}: {len(both)} pictures are both in its training and its test set, the first {both[0][0]} and {both[0][1]}; remove "
            "them from one of the two"
        )


def draw(settings: SamplingSettings, target: str, rows: Sequence[PictureRow], given: Given | None = None) -> list[Episode]:
    """Draw the episodes of one target, in the order protocol, category, seed, shots. Categories without a prompt are left out."""
    categories = list(dict.fromkeys(row.category for row in rows))
    drawing = _Prompts(settings, target, rows, categories, given)
    episodes: list[Episode] = []
    for protocol in settings.protocols_of(target):
        for members, queries in _tasks(settings, protocol, target, rows, categories):
            category = "+".join(members)
            for seed in drawing.seeds:
                for shots in drawing.shots:
                    if shots == 0 and any(episode.shots == 0 and episode.category == category for episode in episodes):
                        continue  # without prompts, the episodes of all seeds and protocols are equal
                    own = drawing.own(queries, shots) if protocol == "class-agnostic" else ()
                    pool = categories if protocol == "class-agnostic" else members
                    chosen = drawing.of(pool, seed, shots, own)
                    if chosen or shots == 0:
                        images, labels = zip(*queries, strict=True)
                        episodes.append(Episode(target, category, protocol, shots, seed, chosen, images, labels, own if shots else ()))
    return episodes


class _Prompts:
    """Provides a target's prompts, from a file if one is set, or by drawing."""

    def __init__(
        self, settings: SamplingSettings, target: str, rows: Sequence[PictureRow], categories: Sequence[str], given: Given | None
    ) -> None:
        self.settings = settings
        self.given = given.by_category.get(target, {}) if given else {}
        images = {row.image for row in rows}
        self.by_query = {query: prompts for query, prompts in given.by_query.items() if query in images} if given else {}
        fixed = bool(self.given or self.by_query)
        self.seeds = settings.seeds[:1] if fixed else settings.seeds
        self.shots = settings.shots
        self.drawing = None if fixed else Drawing(target, normal_pictures(rows, categories), max(settings.shots))

    def of(self, members: Sequence[str], seed: int, shots: int, own: Sequence[str]) -> tuple[str, ...]:
        if shots == 0:
            return ()
        if own:
            return tuple(dict.fromkeys(own))
        given = {category: images[:shots] for category, images in self.given.items()}
        chosen = given if self.drawing is None else self.drawing.draw(seed, shots)
        return tuple(image for category in members for image in chosen.get(category, []))

    def own(self, queries: Sequence[Labelled], shots: int) -> tuple[str, ...]:
        """Return each query's prompt from the file, the first of a list by similarity."""
        if not self.by_query or shots == 0:
            return ()
        missing = [image for image, _label in queries if image not in self.by_query]
        if missing:
            of = f"{missing[0]} (and {len(missing) - 1} more queries)"
            raise BadInput(f"{self.settings.prompts}: sampling.prompts: has no prompts for {of}")
        return tuple(self.by_query[image][0] for image, _label in queries)


def _tasks(
    settings: SamplingSettings, protocol: Protocol, target: str, rows: Sequence[PictureRow], categories: Sequence[str]
) -> list[tuple[list[str], list[Labelled]]]:
    """List the normal categories and the labelled queries of each kind of episode."""
    tests = [row for row in rows if row.split == "test"]
    if protocol in ("class-specific", "class-agnostic"):
        of = {category: [(row.image, row.label) for row in tests if row.category == category] for category in categories}
        return [([category], _queries(target, category, labelled)) for category, labelled in of.items()]
    if protocol == "one-vs-all":
        if len(categories) < 2:
            raise BadInput(f"{target}: one-vs-all needs several categories, but it has one; remove one-vs-all from sampling.protocols")
        return [([category], _queries(target, category, _against(tests, [category]))) for category in categories]
    classes = list(settings.normal_classes.get(target, ()))
    unknown = [name for name in classes if name not in categories]
    if not classes or unknown or len(classes) == len(categories):
        wrong = f"has no category {unknown[0]!r}" if unknown else "must name some of its categories, but not all"
        raise BadInput(f"{target}: sampling.normal_classes.{target} {wrong}; it has {', '.join(categories)}")
    return [(classes, _queries(target, "+".join(classes), _against(tests, classes)))]


def _against(tests: Sequence[PictureRow], classes: Sequence[str]) -> list[Labelled]:
    """Label normal pictures of these classes as normal, and all others as anomalous."""
    return [(row.image, NORMAL if row.category in classes and row.label == NORMAL else ANOMALOUS) for row in tests]


def _queries(target: str, category: str, labelled: Sequence[Labelled]) -> list[Labelled]:
    """Order all test pictures: each label is shuffled, and the labels are interleaved in proportion. All may have one label."""
    by_label = {label: [image for image, of in labelled if of == label] for label in (NORMAL, ANOMALOUS)}
    if not labelled:
        raise BadInput(f"{target}: category {category!r} has no test picture to score; add some to its test folder")
    placed = [
        ((rank + 0.5) / len(images), label, images[index])
        for label, images in by_label.items()
        for rank, index in enumerate(generator(0, target, category, "queries", label).permutation(len(images)))
    ]
    return [(image, label) for _place, label, image in sorted(placed)]


def _normal(rows: Sequence[PictureRow]) -> list[PictureRow]:
    return [row for row in rows if row.is_normal_training]


def _objects(manifests: Path, sources: Sequence[str], images: Sequence[str]) -> pa.Table:
    """Read the objects in these images, if their datasets have any."""
    schema, files = schema_of(ObjectRow), [manifests / f"{name}.objects.parquet" for name in sorted(sources)]
    table = pa.concat_tables([schema.empty_table(), *(read_table(file, schema, objects.MADE_BY) for file in files if file.is_file())])
    return table.filter(pc.is_in(table["image"], pa.array(images, pa.string())))


def _rejected(manifests: Path, datasets: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """List the files that ingestion rejected from these datasets."""
    for dataset in dict.fromkeys(datasets):
        listed = manifests / f"{dataset}.rejected.csv"
        if listed.is_file():
            for _line, row in csv_rows(listed, ("file", "reason")):
                yield dataset, row["file"], row["reason"]


def repeated(prompting: Sequence[PictureRow], tested: Sequence[PictureRow]) -> list[NearDuplicate]:
    """Find the tested pictures with the same hash as a possible prompt of their category.

    Pictures of one kind of part by one camera differ in few bits, so only equal hashes count.
    """
    by_look = {(row.dataset, row.category, row.phash): row.image for row in reversed(prompting)}
    keys = [((row.dataset, row.category, row.phash), row.image) for row in tested]
    return [NearDuplicate(by_look[key], image, 0, PROMPTS) for key, image in keys if key in by_look]


def near_duplicates(training: Sequence[PictureRow], tested: Sequence[PictureRow]) -> list[NearDuplicate]:
    """Find for each tested picture the most similar training picture, if their hashes differ in at most 3 bits.

    The first training picture with a hash represents all others with it, so that a thousand blank pictures cost no more than one.
    """
    first = {int(row.phash, 16): row.image for row in reversed(training)}
    buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
    for value in first:
        for band in _bands(value):
            buckets[band].append(value)
    pairs = []
    for row in tested:
        value = int(row.phash, 16)
        near = [((value ^ other).bit_count(), first[other]) for band in _bands(value) for other in buckets.get(band, [])]
        bits, image = min(near, default=(BITS, ""))
        if bits <= MOST_BITS:
            pairs.append(NearDuplicate(image, row.image, bits))
    return sorted(pairs, key=lambda pair: (pair.bits, pair.seen, pair.tested_on))


def _bands(value: int) -> Iterator[tuple[int, int]]:
    yield from ((band, (value >> (band * BAND_BITS)) & ((1 << BAND_BITS) - 1)) for band in range(BANDS))
