"""A guard against the fault that a detector of changes easily learns: to find artefacts in the query and never look at the prompt.

Trained on the quickstart's kinds of pairs, a detector has to do better with the true prompt than with the query as its own prompt, which
shows no change, and than with a black one, which shows nothing that is normal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, make_places
from torch import Tensor

from changepair.flows.settings.pipelines import read_pipelines
from changepair.tasks.common.tensors import read_tensors
from changepair.tasks.detectors.detector import Detector
from changepair.tasks.detectors.prompt_query.settings import PromptQuerySettings
from changepair.tasks.detectors.store import create_detector, load_model
from changepair.tasks.detectors.train import train
from changepair.tasks.ingestion.ingest import ingest_packaged
from changepair.tasks.sampling.episodes import Episode, EpisodeFiles, read_episodes
from changepair.tasks.sampling.sample import sample
from changepair.tasks.sampling.settings import SamplingSettings, Use
from changepair.tasks.scoring.metrics import auroc, tally
from changepair.tasks.synthesis.settings import SynthesisSettings
from changepair.tasks.synthesis.synthesize import Inputs, finish, make_shard, start
from changepair.tasks.training.loop import Examples, TrainingFolders
from changepair.tasks.training.settings import PairTrainingSettings

LEAST = 0.1  # of AUROC, that the true prompt is better by
PAINTED = ("appearance", "disappearance")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> EpisodeFiles:
    """The quickstart's photographs as sources, and texture-defects at 1 shot as target."""
    folder = tmp_path_factory.mktemp("guard")
    files = EpisodeFiles.of(folder / "episodes", "small")
    for dataset in ("sample-photos", "texture-defects"):
        ingest_packaged(dataset, places=make_places(folder / "manifests"))
    asked = SamplingSettings(shots=(1,), seeds=(0, 1), protocols=("class-specific",))
    sample(asked, Use(("sample-photos",), ("texture-defects",)), manifests=folder / "manifests", files=files)
    return files


def settings_of(pairs: int, resolution: int) -> SynthesisSettings:
    """The quickstart's kinds of pairs, but for those that only an inpainting model can make."""
    asked = read_pipelines(ROOT / "pipelines.yaml").pipelines["quickstart"].synthesis
    kinds = {kind: share for kind, share in asked.kinds.items() if kind not in PAINTED}
    kinds = {kind: share / sum(kinds.values()) for kind, share in kinds.items()}
    return replace(asked, kinds=kinds, regenerated=0.0, pairs=pairs, pairs_per_shard=pairs, resolution=resolution)


def trained(files: EpisodeFiles, detector: Any, synthesis: SynthesisSettings, epochs: int, folder: Path) -> Detector:
    inputs = Inputs(files, folder / "no-inpainter")
    work, missing = start(synthesis, inputs, folder / "work")
    for number in missing:
        make_shard(synthesis, inputs, number, work)
    finish(synthesis, work, folder / "pairs")
    settings = PairTrainingSettings(epochs=epochs, batch_size=8, learning_rate=2e-3, schedule="cosine", precision="no")
    places = TrainingFolders(folder / "model", folder / "checkpoints")
    train(detector, settings, examples=Examples(folder / "pairs", synthesis.augmentation), places=places, workers=0)
    model = create_detector(detector)
    load_model(folder / "model", model)
    return model.eval()


@torch.inference_mode()
def image_auroc(model: Detector, episodes: list[Episode], resolution: int, score: Callable[[Tensor, Episode], Tensor]) -> float:
    """The mean over episodes. score: queries to image scores."""

    def batches(episode: Episode) -> Iterator[Tensor]:
        for first in range(0, len(episode.queries), 16):
            yield score(read_tensors(episode.queries[first : first + 16], resolution, CPU), episode)

    values = []
    for episode in episodes:
        scores, labels = torch.cat(list(batches(episode))).numpy(), np.array(episode.labels) == 1
        values.append(float(auroc(tally(scores[labels], np.sort(scores[~labels])))))
    return float(np.mean(values))


def by_prompt(model: Detector, files: EpisodeFiles, resolution: int) -> dict[str, float]:
    """Image AUROC with the true prompt, the query as its own prompt, and a black one."""

    def true(queries: Tensor, episode: Episode) -> Tensor:
        return model.score(queries, read_tensors(episode.prompts, resolution, CPU))[0]

    def own(queries: Tensor, _episode: Episode) -> Tensor:
        features = model.encoder(queries)
        memory = [part[:, None] for part in model.remember(features)]
        return model.conclude(features, model.relate(features, memory))[0]

    def black(queries: Tensor, _episode: Episode) -> Tensor:
        return model.score(queries, torch.zeros(1, 3, resolution, resolution))[0]

    episodes = read_episodes(files.episodes)
    return {way.__name__: image_auroc(model, episodes, resolution, way) for way in (true, own, black)}


@pytest.mark.slow
def test_the_true_prompt_is_better_than_the_query_itself_and_than_a_black_one(files: EpisodeFiles, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    detector = PromptQuerySettings(resolution=64, context=False)
    model = trained(files, detector, settings_of(600, detector.resolution), 3, tmp_path)
    found = by_prompt(model, files, detector.resolution)
    assert found["true"] >= found["own"] + LEAST and found["true"] >= found["black"] + LEAST, found
