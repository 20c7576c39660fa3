"""Scores a detector of a pipeline, and in the same pass over the pictures those of the same encoder that wait to be scored."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from changepair.tasks.common.devices import best_device
from changepair.tasks.common.files import content_of, sha256, write_text
from changepair.tasks.common.fingerprint import SHORT, code_of
from changepair.tasks.detectors.registry import DETECTORS, DetectorSettings, base_of, files_of_prior, kind_of
from changepair.tasks.detectors.store import MODEL_NAME, load_detector
from changepair.tasks.encoders.settings import OF_THE_MODEL, EncoderSettings
from changepair.tasks.sampling.episodes import TargetFiles, read_episodes, read_pictures
from changepair.tasks.scoring.score import Contender, score
from changepair.tasks.scoring.scores import Work
from changepair.tasks.scoring.settings import EvaluationSettings
from changepair.tasks.scoring.timing import seconds_a_picture

ABOUT_NAME = "about.json"
MISSING = "missing"


@dataclass(frozen=True)
class ScoredDetector:
    """What came of it."""

    count: int
    """Of scores."""
    seconds: float
    """That a picture takes, alone, with the prompts remembered."""
    device: str


@dataclass(frozen=True)
class Scoring:
    """What a detector is scored on, with what, and where its scores go."""

    detectors: Mapping[str, Any]
    """The settings of all of the pipeline's."""
    settings: EvaluationSettings
    files: TargetFiles
    models: Path
    """The folder of the detectors' model folders."""
    scores: Path
    """Scores of a detector are in scores/<name>, as tasks/scoring/scores.py has them."""
    checkpoints: Path
    """Where scores are while they are made."""


def score_detector(name: str, scoring: Scoring, report: Callable[[float], None] = lambda share: None) -> ScoredDetector:
    """Writes a detector's scores. Goes on from what a run before, or `score_part`, has scored.

    Other detectors of the same encoder and resolution that are out of date are scored along, and found scored when their turn comes.
    """
    device, files = best_device(), scoring.files
    contenders = _contenders(name, scoring, device)
    folder = scoring.scores / name
    counts = score(contenders, files, {name: folder}, batch_size=scoring.settings.batch_size, device=device, report=report)
    write_text(folder / ABOUT_NAME, json.dumps({"digest": contenders[0].work.folder.name}) + "\n")
    episodes = read_episodes(files.episodes)
    some = next((episode for episode in episodes if episode.prompts), episodes[0])
    sizes = {row.image: (row.height, row.width) for row in read_pictures(files.targets)}
    return ScoredDetector(counts[name], seconds_a_picture(contenders[0], some, sizes, device), str(device))


def score_part(name: str, scoring: Scoring, part: int) -> None:
    """Scores one of the parts that tasks/scoring/score.py counts, wherever this runs, and leaves it where `score_detector` finds it."""
    device = best_device()
    score(_contenders(name, scoring, device), scoring.files, {}, batch_size=scoring.settings.batch_size, device=device, only=part)


def _contenders(name: str, scoring: Scoring, device: torch.device) -> list[Contender]:
    """Loads a detector, and behind it those that are scored along."""
    contenders: list[Contender] = []
    for one in _alike(name, scoring.detectors):
        digest = _digest(one, scoring)
        if one != name and (digest is None or _digest_of(scoring.scores / one) == digest):
            continue
        digest = digest or MISSING  # loading it says what is missing
        for other in (scoring.checkpoints / one).glob("*"):
            if other.name != digest:
                shutil.rmtree(other, ignore_errors=True)  # another worker may be at it too
        detector = load_detector(one, scoring.detectors, scoring.models).to(device).eval()
        if contenders and type(detector.encoder) is not type(contenders[0].detector.encoder):
            continue  # one of them looks through windows
        own: DetectorSettings = scoring.detectors[base_of(one, scoring.detectors)]
        work = Work(scoring.checkpoints / one / digest)
        subset = scoring.settings.subset.get(one)
        contenders.append(Contender(one, detector, own.resolution, subset, work, own.encoder.resize, own.tiles))
    return contenders


def _alike(name: str, detectors: Mapping[str, Any]) -> list[str]:
    """Lists the detector itself first, then the others of its encoder and resolution; one that holds its encoder's weights has its own."""
    own: DetectorSettings = detectors[base_of(name, detectors)]
    if own.encoder.weights == OF_THE_MODEL:
        return [name]
    others = [one for one in detectors if one != name]
    return [name, *(one for one in others if _looks(detectors[base_of(one, detectors)]) == _looks(own))]


def _looks(settings: DetectorSettings) -> tuple[EncoderSettings, int]:
    return settings.encoder, settings.resolution


def _digest(name: str, scoring: Scoring) -> str | None:
    """Names all that a detector's scores depend on; None if its model is not there yet."""
    own = base_of(name, scoring.detectors)
    model = scoring.models / own / MODEL_NAME
    if DETECTORS[kind_of(scoring.detectors[own])].training is not None and not model.is_file():
        return None
    kinds = [DETECTORS[kind_of(scoring.detectors[one])] for one in (name, own)]
    code = code_of(__name__, *{module for kind in kinds for module in kind.modules})
    files = (scoring.files.episodes, scoring.files.targets, *([model] if model.is_file() else []))
    about = {
        "detector": [asdict(scoring.detectors[one]) for one in (name, own)],
        "queries": scoring.settings.subset.get(name),
        "code": code.digest,
        "files": [sha256(file) for file in files],
        "weights": [content_of(file) for file in (*scoring.detectors[own].encoder.files, *files_of_prior(scoring.detectors[name]))],
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:SHORT]


def _digest_of(folder: Path) -> str | None:
    """Reads what the scores in a folder were made as; None where there are none."""
    file = folder / ABOUT_NAME
    return str(json.loads(file.read_text(encoding="utf-8"))["digest"]) if file.is_file() else None
