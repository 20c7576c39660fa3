"""Recognises which pictures the InCTRL authors' prompts are: they publish a file a category, of a list of normalised tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.pictures import Picture, cropped, read_picture
from changepair.tasks.common.places import place_of, visible
from changepair.tasks.ingestion.manifest import PictureRow

MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's, which they are normalised with
SUFFIX = ".pt"
FURTHEST = 4.0  # levels of 255, that a picture may differ by on average: another decoder or resize, not another picture


def recognised(given: Path, rows: Mapping[str, Sequence[PictureRow]]) -> dict[str, dict[str, list[str]]]:
    """Gives {target: {category: [images]}} of a file <category>.pt or a folder of such. rows: the manifest rows of each target, of which a
    file may also bear the name if it has one category.

    A prompt is the normal training picture that looks like it once resized as theirs are, its shorter side and the middle of the other.
    Raises BadInput for a file that is no list of such tensors, and for a prompt that is none of the pictures.
    """
    files = {file.stem: file for file in (sorted(visible(given.glob(f"*{SUFFIX}"), given)) if given.is_dir() else [given])}
    found: dict[str, dict[str, list[str]]] = {}
    for target, of in rows.items():
        categories = list(dict.fromkeys(row.category for row in of))
        named = {category: files[category] for category in categories if category in files}
        if target in files and len(categories) == 1:
            named[categories[0]] = files[target]
        found[target] = {
            category: _recognise(file, target, [row.image for row in of if row.category == category and row.is_normal_training])
            for category, file in named.items()
        }
    return found


def _recognise(file: Path, target: str, images: Sequence[str]) -> list[str]:
    prompts = list(_pictures(file))
    nearest, least = [""] * len(prompts), np.full(len(prompts), np.inf)
    with ThreadPoolExecutor() as pool:
        for image, differences in zip(images, pool.map(lambda image: _differences(image, prompts), images), strict=True):
            for number in np.flatnonzero(differences < least):
                nearest[number], least[number] = image, differences[number]
    for place, difference in enumerate(least, start=1):
        if difference > FURTHEST:
            near = f"; the nearest differs by {difference:.0f} of 255" if np.isfinite(difference) else ""
            raise BadInput(f"{file}: sampling.prompts: number {place} is no normal training picture of {target}{near}")
    return nearest


def _differences(image: str, prompts: Sequence[Picture]) -> NDArray[np.float64]:
    """Gives how far a picture is from each prompt, in levels of 255."""
    picture = read_picture(place_of(image))
    by_side = {side: cropped(picture, side).astype(np.int16) for side in {len(prompt) for prompt in prompts}}
    return np.array([np.abs(by_side[len(prompt)] - prompt).mean() for prompt in prompts])


def _pictures(file: Path) -> Iterator[Picture]:
    """Reads the tensors as the pictures they were made of. Nothing in the file is run."""
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise BadInput(f"{file}: sampling.prompts: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a decoder may raise anything on hostile bytes
        raise BadInput(f"{file}: sampling.prompts: cannot be read: damaged, or no tensors alone ({type(error).__name__})") from error
    tensors: list[Any] = list(content) if isinstance(content, list | tuple | torch.Tensor) else [None]
    if not tensors or not all(isinstance(one, torch.Tensor) and one.ndim == 3 and one.shape[1] == one.shape[2] for one in tensors):
        raise BadInput(f"{file}: sampling.prompts: is no list of square pictures as tensors")
    for tensor in tensors:
        pixels = tensor.float().permute(1, 2, 0).numpy() * np.array(DEVIATION) + np.array(MEAN)
        yield np.clip(np.rint(pixels * 255), 0, 255).astype(np.uint8)
