"""Measures what metrics cost, and what evaluating all episodes together saves."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, make_places, scored
from scipy import ndimage
from tallies import pixels_tally
from timing import medians

from changepair.flows.settings.pipelines import read_pipelines
from changepair.tasks.common.rows import write_rows
from changepair.tasks.detectors.store import create_detector
from changepair.tasks.encoders.build import build_encoder
from changepair.tasks.ingestion.ingest import ingest_packaged
from changepair.tasks.sampling.episodes import Episode, EpisodeFiles, read_episodes
from changepair.tasks.sampling.sample import sample
from changepair.tasks.sampling.settings import SamplingSettings, Use
from changepair.tasks.scoring.measure import measure
from changepair.tasks.scoring.metrics import aupro, pixel_metrics
from changepair.tasks.scoring.score import Contender
from changepair.tasks.scoring.scores import ScoresFolder

pytestmark = pytest.mark.bench
PIPELINES = ROOT / "pipelines.yaml"


def looped(masks: np.ndarray, maps: np.ndarray) -> float:
    """200 thresholds; at each, every mask's regions are labelled anew and overlapped, as the field's scripts do."""
    points = []
    for threshold in np.linspace(maps.max(), maps.min(), 200):
        flagged = maps >= threshold
        overlaps = []
        for mask, flags in zip(masks, flagged, strict=True):
            labelled, count = ndimage.label(mask, np.ones((3, 3)))
            overlaps += list(ndimage.mean(flags, labelled, range(1, count + 1))) if count else []
        points.append((flagged[~masks].mean(), np.mean(overlaps)))
    rates, overlaps = (np.array(column) for column in zip(*points, strict=True))
    inside = rates <= 0.3
    return float(np.trapezoid(overlaps[inside], rates[inside]) / 0.3)


def sorted_plainly(masks: np.ndarray, maps: np.ndarray) -> float:
    """Exact, by one sort of all pixels with their masks and regions carried along."""
    share, regions = np.zeros(masks.shape), 0
    for mask, target in zip(masks, share, strict=True):
        labelled, count = ndimage.label(mask, np.ones((3, 3)))
        for number in range(1, count + 1):
            target[labelled == number] = 1 / (labelled == number).sum()
        regions += count
    order = np.argsort(-maps.ravel())
    ends = np.append(np.flatnonzero(np.diff(maps.ravel()[order])), maps.size - 1)
    overlap = np.append(0, np.cumsum(share.ravel()[order])[ends] / regions)
    rate = np.append(0, np.cumsum(~masks.ravel()[order])[ends] / (~masks).sum())
    inside = rate <= 0.3
    last = np.interp(0.3, rate, overlap)
    return float(np.trapezoid(np.append(overlap[inside], last), np.append(rate[inside], 0.3)) / 0.3)


def test_aupro_of_100_maps_against_a_loop_over_200_thresholds() -> None:
    random = np.random.default_rng(0)
    masks = np.zeros((100, 256, 256), dtype=bool)
    for mask in masks[::2]:
        for _ in range(random.integers(1, 4)):
            top, left, height, width = (*random.integers(0, 200, 2), *random.integers(8, 50, 2))
            mask[top : top + height, left : left + width] = True
    maps = ndimage.gaussian_filter(random.random(masks.shape), (0, 4, 4))
    maps = (0.7 * (maps - maps.min()) / np.ptp(maps) + 0.2 * masks).astype(np.float32)
    ours, plain, loop = medians(
        lambda: aupro(pixels_tally(masks, maps)), lambda: sorted_plainly(masks, maps), lambda: looped(masks, maps), times=3
    )
    exact, all_seven = float(aupro(pixels_tally(masks, maps))), medians(lambda: pixel_metrics(pixels_tally(masks, maps)))[0]
    print(
        f"\nAUPRO of 100 maps of 256x256: {1000 * ours:.0f} ms; one plain sort {1000 * plain:.0f} ms; loop {1000 * loop:.0f} ms: "
        f"{loop / ours:.0f} x the loop, {plain / ours:.1f} x the sort; all four pixel metrics {1000 * all_seven:.0f} ms; "
        f"the loop is off by {abs(looped(masks, maps) - exact):.4f}"
    )
    assert exact == pytest.approx(sorted_plainly(masks, maps), abs=1e-9)
    assert loop / ours >= 15


ON_THEIR_OWN = 6  # episodes of each target that are timed alone, drawn at random; all of them would take an hour


def test_the_quickstarts_evaluation_against_each_episode_on_its_own(tmp_path: Path) -> None:
    """Its detectors (untrained, which costs the same), settings, targets and episodes."""
    torch.set_num_threads(2)
    pipeline = read_pipelines(ROOT / "pipelines.yaml").pipelines["quickstart"]
    sampling, evaluation = pipeline.sampling, pipeline.evaluation
    encoders = {resolution: build_encoder(pipeline.detectors["patch-residual"].encoder, resolution) for resolution in (128, 256)}

    def contenders(work: Path) -> list[Contender]:
        return [
            Contender(
                name,
                create_detector(settings, encoders[settings.resolution]).eval(),
                settings.resolution,
                evaluation.subset.get(name),
                ScoresFolder(work / name),
            )
            for name, settings in pipeline.detectors.items()
        ]

    def evaluated(chosen: list[Contender], files: EpisodeFiles, work: Path) -> float:
        """Seconds."""
        start = time.perf_counter()
        measure(scored(chosen, files, work / "scores", evaluation.batch_size), files, evaluation)
        return time.perf_counter() - start

    together_total = alone_total = 0.0
    for target in ("texture-defects", "digits", "elpv"):
        files = ingested(tmp_path / target, target, sampling)
        episodes = read_episodes(files.episodes)
        together = evaluated(contenders(tmp_path / target / "work"), files, tmp_path / target / "together")
        by_detector = sum(evaluated([one], files, tmp_path / target / "apart") for one in contenders(tmp_path / target / "apart" / "work"))
        some = np.random.default_rng(0).choice(len(episodes), ON_THEIR_OWN, replace=False)
        alone = 0.0
        for number in some:
            write_rows(files.episodes, Episode, [episodes[number]])
            own = tmp_path / target / f"own-{number}"
            alone += sum(evaluated([one], files, own) for one in contenders(own / "work")) * len(episodes) / ON_THEIR_OWN
        together_total, alone_total = together_total + together, alone_total + alone
        print(
            f"\n{target}: {len(episodes)} episodes together {together:.1f} s, a detector at a time {by_detector:.1f} s, "
            f"each episode on its own {alone:.0f} s: {alone / together:.1f} x"
        )
    print(f"all three: {together_total:.1f} s against {alone_total:.0f} s: {alone_total / together_total:.1f} x")
    assert alone_total / together_total >= 5


def ingested(folder: Path, target: str, sampling: SamplingSettings) -> EpisodeFiles:
    """The quickstart's episodes of one target."""
    files = EpisodeFiles.of(folder / "episodes", "quickstart")
    places = make_places(folder / "manifests")
    for dataset in ("sample-photos", target):
        ingest_packaged(dataset, places=places)
    sample(sampling, Use(("sample-photos",), (target,)), manifests=folder / "manifests", files=files)
    return files
