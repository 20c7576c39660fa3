"""Score a detector of a pipeline. Outdated detectors with the same encoder are scored in the same pass over the pictures."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from changepair.tasks.common.devices import best_device
from changepair.tasks.common.files import content_of, sha256, write_text
from changepair.tasks.common.fingerprint import SHORT, code_of
from changepair.tasks.common.tensors import joined_maps, read_tiles
from changepair.tasks.common.tiles import grid_of, seams
from changepair.tasks.detectors.registry import DETECTORS, base_of, files_of_prior, kind_of
from changepair.tasks.detectors.settings import DetectorSettings
from changepair.tasks.detectors.store import MODEL_NAME, load_detector
from changepair.tasks.encoders.settings import OF_THE_MODEL
from changepair.tasks.sampling.episodes import Episode, TargetFiles, read_episodes, read_pictures
from changepair.tasks.scoring.compare import encoded
from changepair.tasks.scoring.score import Contender, score
from changepair.tasks.scoring.scores import ScoresFolder
from changepair.tasks.scoring.settings import EvaluationSettings

ABOUT_NAME = "about.json"
MISSING = "missing"
TIMES = 5
"""Measured runs, after a warm-up run. The median is reported."""
BATCH = 8  # tiles that are encoded at once, as in tasks/prediction/predictor.py


@dataclass(frozen=True)
class ScoredDetector:
    """The result of scoring a detector."""

    count: int
    """Number of scores."""
    seconds: float
    """Seconds for one picture, with encoded prompts."""
    device: str


@dataclass(frozen=True)
class Scoring:
    """Inputs and folders of a pipeline's scoring."""

    detectors: Mapping[str, Any]
    """Settings of all detectors of the pipeline, by name."""
    settings: EvaluationSettings
    files: TargetFiles
    models: Path
    """Folder of the detectors' model folders."""
    scores: Path
    """Folder of the scores (tasks/scoring/scores.py), one folder for each detector."""
    checkpoints: Path
    """Folder of scores in progress."""


def score_detector(name: str, scoring: Scoring, report: Callable[[float], None] = lambda share: None) -> ScoredDetector:
    """Write a detector's scores, resuming the work of an earlier run or of `score_part`.

    Outdated detectors with the same encoder and resolution are scored in the same pass. Their own call then finds this work done.
    """
    device, files = best_device(), scoring.files
    contenders = _contenders(name, scoring, device)
    folder = scoring.scores / name
    counts = score(contenders, files, {name: folder}, device=device, report=report, **_how(scoring.settings))
    write_text(folder / ABOUT_NAME, json.dumps({"digest": contenders[0].work.folder.name}) + "\n")
    episodes = read_episodes(files.episodes)
    some = next((episode for episode in episodes if episode.prompts), episodes[0])
    sizes = {row.image: (row.height, row.width) for row in read_pictures(files.targets)}
    return ScoredDetector(counts[name], seconds_a_picture(contenders[0], some, sizes, device), str(device))


def score_part(name: str, scoring: Scoring, part: int) -> None:
    """Score one part (`count_parts` of tasks/scoring/score.py), on any machine. `score_detector` uses the result."""
    device = best_device()
    score(_contenders(name, scoring, device), scoring.files, {}, device=device, only=part, **_how(scoring.settings))


def _how(settings: EvaluationSettings) -> dict[str, Any]:
    return {"batch_size": settings.batch_size, "perturbations": settings.perturbations, "most_perturbed": settings.perturbed}


def _contenders(name: str, scoring: Scoring, device: torch.device) -> list[Contender]:
    """Load a detector, followed by the detectors that are scored with it."""
    contenders: list[Contender] = []
    for one in _alike(name, scoring.detectors):
        digest = _digest(one, scoring)
        if one != name and (digest is None or _digest_of(scoring.scores / one) == digest):
            continue
        digest = digest or MISSING  # loading it reports what is missing
        for other in (scoring.checkpoints / one).glob("*"):
            if other.name != digest:
                shutil.rmtree(other, ignore_errors=True)  # another worker may delete it at the same time
        detector = load_detector(one, scoring.detectors, scoring.models).to(device).eval()
        if contenders and type(detector.encoder) is not type(contenders[0].detector.encoder):
            continue  # one of them is WinCLIP's encoder
        own: DetectorSettings = scoring.detectors[base_of(one, scoring.detectors)]
        work = ScoresFolder(scoring.checkpoints / one / digest)
        subset = scoring.settings.subset.get(one)
        contenders.append(Contender(one, detector, own.resolution, subset, work, own.encoder.resize, own.tiles))
    return contenders


def _alike(name: str, detectors: Mapping[str, Any]) -> list[str]:
    """List the detector, then others with the same encoder and resolution. A model with its own encoder weights has no others."""
    bases: dict[str, DetectorSettings] = {one: detectors[base_of(one, detectors)] for one in detectors}
    own = bases[name].encoder, bases[name].resolution
    if own[0].weights == OF_THE_MODEL:
        return [name]
    return [name, *(one for one, base in bases.items() if one != name and (base.encoder, base.resolution) == own)]


def _digest(name: str, scoring: Scoring) -> str | None:
    """Hash everything that a detector's scores depend on. None if its model does not exist yet."""
    own = base_of(name, scoring.detectors)
    model = scoring.models / own / MODEL_NAME
    if DETECTORS[kind_of(scoring.detectors[own])].training is not None and not model.is_file():
        return None
    kinds = [DETECTORS[kind_of(scoring.detectors[one])] for one in (name, own)]
    code = code_of(__name__, *{module for kind in kinds for module in kind.modules})
    files = (scoring.files.episodes, scoring.files.targets, *([model] if model.is_file() else []))
    about: dict[str, Any] = {
        "detector": [asdict(scoring.detectors[one]) for one in (name, own)],
        "queries": scoring.settings.subset.get(name),
        "code": code.digest,
        "files": [sha256(file) for file in files],
        "weights": [content_of(file) for file in (*scoring.detectors[own].encoder.files, *files_of_prior(scoring.detectors[name]))],
    }
    if scoring.settings.perturbations:
        about["perturbations"] = [scoring.settings.perturbations, scoring.settings.perturbed]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:SHORT]


def _digest_of(folder: Path) -> str | None:
    """Read the hash of the scores in a folder. None without scores."""
    file = folder / ABOUT_NAME
    return str(json.loads(file.read_text(encoding="utf-8"))["digest"]) if file.is_file() else None


@torch.inference_mode()
def seconds_a_picture(contender: Contender, episode: Episode, sizes: Mapping[str, tuple[int, int]], device: torch.device) -> float:
    """Measure the seconds for one query with all its tiles. sizes: height and width of the prompts. The detector is on the device."""
    detector, prompts = contender.detector, episode.prompts[: max(episode.shots, 1)]
    grid = grid_of(contender.tiles, [sizes[image] for image in prompts])

    def read(images: Sequence[str]) -> tuple[torch.Tensor, tuple[int, int]]:
        tiles, found = read_tiles(images, [grid], contender.resolution, device, contender.resize)
        return tiles[grid], found[0]

    cut = enumerate(read(prompts)[0] if prompts else ())
    memory = [detector.bounded(detector.of_tile(detector.memorise(tile), seams(place, grid, contender.resize))) for place, tile in cut]
    taken = []
    for _ in range(TIMES + 1):
        start = time.perf_counter()
        tiles, size = read(episode.queries[:1])
        maps = []
        for place, features in enumerate(encoded(detector.encoder, tiles, BATCH)):
            scores, found = detector.conclude(features, detector.relate(features, memory[place]) if memory else [], episode.category)
            scores.cpu()  # waits for the GPU
            maps.append(found[0].float().cpu().numpy())
        joined_maps(maps, grid, *size)
        taken.append(time.perf_counter() - start)
    return float(np.median(taken[1:]))
