"""Choose the normal pictures that serve as prompts, by category. They are drawn from a seed, or read from a file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.randomness import generator
from changepair.tasks.common.texts import read_text
from changepair.tasks.ingestion.manifest import PictureRow

Chosen = dict[str, list[str]]  # prompts by category


def normal_pictures(rows: Sequence[PictureRow], categories: Sequence[str]) -> Chosen:
    """List the normal training pictures of each category."""
    by_category: Chosen = {category: [] for category in categories}
    for row in rows:
        if row.category in by_category and row.is_normal_training:
            by_category[row.category].append(row.image)
    return by_category


class Drawing:
    """Draws the prompts of one target. A seed orders its pictures, and k shots are the first k, so more shots only add prompts."""

    def __init__(self, target: str, normal: Chosen, most: int) -> None:
        """Set the target's normal pictures and the largest number of shots, `most`. Raises BadInput if there are too few pictures."""
        self.target, self.normal = target, normal
        self._ordered: dict[tuple[str, int], list[str]] = {}
        for category, images in normal.items():
            if len(images) < most:
                raise BadInput(
                    f"{target}: category {category!r} has {len(images)} normal training pictures, fewer than the {most} of sampling.shots; "
                    "add pictures to its train/good or lower sampling.shots"
                )

    def draw(self, seed: int, shots: int) -> Chosen:
        """Draw k shots from each category with a seed."""
        for category, images in self.normal.items():
            if (category, seed) not in self._ordered:
                order = generator(seed, self.target, category, "prompts").permutation(len(images))
                self._ordered[category, seed] = [images[index] for index in order]
        return {category: self._ordered[category, seed][:shots] for category in self.normal}


@dataclass(frozen=True)
class Given:
    """Prompts from a file, as paths in the manifest."""

    by_category: dict[str, Chosen]  # by target and category
    by_query: dict[str, list[str]]  # the most similar first, if the file sets them for every query


def read_given(file: Path, rows: Mapping[str, Sequence[PictureRow]]) -> Given:
    """Read a file of prompts. `rows` are the manifest rows of each target. The file has one of these formats:

        {target: {category: [paths]}}                            the format of this project
        {category: {"filename": path, …}}                        the MetaUAS authors' one prompt a category
        {query path: [paths, the most similar first]}            the same authors' top-k lists, one such object a line

    Paths are relative to the target's folder. Raises BadInput for a path that is not a normal training picture of the target.
    """
    content = _read(file)
    inside = {target: _relative(of) for target, of in rows.items()}

    def find(target: str, path: str) -> str:
        row = inside[target].get(path)
        if row is None:
            raise BadInput(f"{file}: sampling.prompts: {path!r} is not a picture of {target}; give paths relative to its folder")
        if not row.is_normal_training:
            raise BadInput(f"{file}: sampling.prompts: {path!r} of {target} is not a normal training picture, so it cannot be a prompt")
        return row.image

    if content and all(isinstance(value, list) for value in content.values()):
        queries = [(target, query) for target in rows for query in content if query in inside[target]]
        return Given({}, {inside[target][query].image: [find(target, prompt) for prompt in content[query]] for target, query in queries})
    chosen: dict[str, Chosen] = {}
    for target, of in rows.items():
        categories = {row.category for row in of}
        named = content.get(target, content if set(content) & categories else {})
        within = [category for category in named if category in categories]
        chosen[target] = {category: [find(target, path) for path in _paths(file, category, named[category])] for category in within}
    if not any(chosen.values()):
        raise BadInput(f"{file}: sampling.prompts: names none of the targets {', '.join(chosen)}, and none of their categories")
    return Given(chosen, {})


def _read(file: Path) -> dict[str, Any]:
    try:
        text = read_text(file)
    except BadInput as error:
        raise BadInput(f"sampling.prompts: {error}") from error
    try:
        objects = [json.loads(text)]
    except (ValueError, RecursionError):
        try:
            objects = [json.loads(line) for line in text.splitlines() if line.strip()]
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{file}: sampling.prompts: neither JSON nor one JSON object a line ({error})") from error
    if not all(isinstance(item, dict) for item in objects):
        raise BadInput(f"{file}: sampling.prompts: not a JSON object of prompts")
    return {key: value for item in objects for key, value in item.items()}


def _paths(file: Path, category: str, value: Any) -> list[str]:
    paths = [value["filename"]] if isinstance(value, dict) and "filename" in value else value
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise BadInput(f"{file}: sampling.prompts: {category!r} has neither a list of paths nor a filename")
    return paths


def _relative(rows: Sequence[PictureRow]) -> dict[str, PictureRow]:
    """Map paths to rows. Paths are relative to the folder that holds them all, and to its parent, which may be named like the dataset."""
    root = PurePosixPath(os.path.commonpath([PurePosixPath(row.image).parent for row in rows]))
    while root.name in ("good", "train", "test"):
        root = root.parent
    return {PurePosixPath(row.image).relative_to(base).as_posix(): row for base in (root.parent, root) for row in rows}
