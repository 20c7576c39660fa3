"""Scores a detector of a pipeline, and in the same pass over the pictures those of the same encoder that wait to be scored."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tasks.common.devices import best_device
from tasks.common.files import sha256, write_text
from tasks.common.fingerprint import SHORT, code_of
from tasks.detectors.load import load_detector, own_or_upon
from tasks.detectors.registry import DETECTORS
from tasks.detectors.settings import OF_THE_MODEL, DetectorSettings, EncoderSettings
from tasks.detectors.weights import MODEL_NAME
from tasks.sampling.episodes import EpisodeFiles, read_episodes
from tasks.scoring.score import Contender, score
from tasks.scoring.scores import Work
from tasks.scoring.settings import EvaluationSettings
from tasks.scoring.timing import seconds_a_picture

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


def score_detector(
    name: str,
    detectors: Mapping[str, Any],
    settings: EvaluationSettings,
    files: EpisodeFiles,
    *,
    models: Path,
    scores: Path,
    checkpoints: Path,
    report: Callable[[float], None] = lambda share: None,
) -> ScoredDetector:
    """Writes scores/<name>, as tasks.scoring.scores has it. Goes on from what a run before has scored.

    detectors: the settings of all of the pipeline. models: the folder of their model folders. checkpoints: where scores are while they
    are made. Other detectors of the same encoder and resolution that are out of date are scored along, and found scored when their turn
    comes.
    """
    device = best_device()
    contenders: list[Contender] = []
    for one in _alike(name, detectors):
        digest = _digest(one, detectors, settings, files, models)
        if one != name and (digest is None or _digest_of(scores / one) == digest):
            continue
        digest = digest or MISSING  # loading it says what is missing
        for other in (checkpoints / one).glob("*"):
            if other.name != digest:
                shutil.rmtree(other)
        detector = load_detector(one, detectors, models).to(device).eval()
        if contenders and type(detector.encoder) is not type(contenders[0].detector.encoder):
            continue  # one of them looks through windows
        own = own_or_upon(one, detectors)[1]
        work = Work(checkpoints / one / digest)
        contenders.append(Contender(one, detector, own.resolution, settings.subset.get(one), work, own.encoder.resize))
    counts = score(contenders, files, {name: scores / name}, batch_size=settings.batch_size, device=device, report=report)
    write_text(scores / name / ABOUT_NAME, json.dumps({"digest": contenders[0].work.folder.name}) + "\n")
    episodes = read_episodes(files.episodes)
    some = next((episode for episode in episodes if episode.prompts), episodes[0])
    return ScoredDetector(counts[name], seconds_a_picture(contenders[0], some, device), str(device))


def _alike(name: str, detectors: Mapping[str, Any]) -> list[str]:
    """Lists the detector itself first, then the others of its encoder and resolution; one that holds its encoder's weights has its own."""
    own = own_or_upon(name, detectors)[1]
    if own.encoder.weights == OF_THE_MODEL:
        return [name]
    others = [one for one in detectors if one != name]
    return [name, *(one for one in others if _looks(own_or_upon(one, detectors)[1]) == _looks(own))]


def _looks(settings: DetectorSettings) -> tuple[EncoderSettings, int]:
    return settings.encoder, settings.resolution


def _digest(name: str, detectors: Mapping[str, Any], settings: EvaluationSettings, files: EpisodeFiles, models: Path) -> str | None:
    """Names all that a detector's scores depend on; None if its model is not there yet."""
    own, of_own = own_or_upon(name, detectors)
    model = models / own / MODEL_NAME
    if DETECTORS[own].training is not None and not model.is_file():
        return None
    code = code_of(__name__, *{DETECTORS[one].module for one in (name, own)})
    about = {
        "detector": [asdict(detectors[one]) for one in (name, own)],
        "queries": settings.subset.get(name),
        "code": code.digest,
        "files": [sha256(file) for file in (files.episodes, files.targets, *([model] if model.is_file() else []))],
        "weights": [sha256(Path(file)) for file in of_own.encoder.files if Path(file).is_file()],
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:SHORT]


def _digest_of(folder: Path) -> str | None:
    """Reads what the scores in a folder were made as; None where there are none."""
    file = folder / ABOUT_NAME
    return str(json.loads(file.read_text(encoding="utf-8"))["digest"]) if file.is_file() else None
