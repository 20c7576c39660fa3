"""What a bounded memory of many prompts loses and saves, next to as many patches chosen at random."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_places
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score
from timing import medians
from torch import Tensor

from changepair.tasks.common.pictures import read_mask
from changepair.tasks.common.randomness import generator
from changepair.tasks.common.tensors import read_tensors
from changepair.tasks.detectors.detector import upsample
from changepair.tasks.detectors.residual import coreset as selection
from changepair.tasks.detectors.residual.coreset import bounded, coreset
from changepair.tasks.detectors.residual.patch import PatchResidual
from changepair.tasks.encoders.build import build_encoder
from changepair.tasks.encoders.encoder import Features, FrozenEncoder
from changepair.tasks.encoders.settings import EncoderSettings
from changepair.tasks.ingestion.development import rendering
from changepair.tasks.ingestion.ingest import ingest_packaged
from changepair.tasks.ingestion.manifest import PictureRow
from changepair.tasks.sampling.episodes import read_pictures

pytestmark = pytest.mark.bench
CPU = torch.device("cpu")
SIDE, SHOTS, DRAWS = 256, 64, 3
PIXELS = 128  # a side, for pixel AP
NORMALS, QUERIES = 80, 100  # of each category, at most; the development datasets are drawn with so many normal pictures
SIZES = (16384, 4096, 1024)  # patches of a stage; the finest has 65,536
MOST_LOST = 1.0  # points of a mean metric, with 4,096 patches a stage
FASTER_THAN_ONE_BY_ONE = 3


@pytest.fixture(scope="module")
def encoder() -> FrozenEncoder:
    torch.set_num_threads(1)
    return build_encoder(EncoderSettings(), SIDE)


@pytest.mark.parametrize("dataset", ["digits", "elpv", "development-surfaces", "development-parts"])
@torch.inference_mode()
def test_what_a_bounded_memory_loses_and_saves(
    dataset: str, encoder: FrozenEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, "TRAIN_GOOD", NORMALS)
    ingest_packaged(dataset, places=make_places(tmp_path / "manifests"))
    rows = read_pictures(tmp_path / "manifests" / f"{dataset}.parquet")
    detector = PatchResidual(encoder, top_share=0.01)
    found: dict[str, list[tuple[float, ...]]] = {}
    for category in sorted({row.category for row in rows}):
        own = [row for row in rows if row.category == category]
        normals, queries = chosen([row for row in own if row.is_normal_training], NORMALS), chosen(own, QUERIES, "test")
        prompts, asked = (encoded(detector, images) for images in (normals, queries))
        for draw in range(DRAWS):
            places = generator(0, category, "draw", draw).permutation(len(normals))[:SHOTS]
            whole = [stage[places] for stage in detector.remember(prompts)]
            for name, select in memories(draw):
                monkeypatch.setattr(selection, "coreset", select)
                start = time.perf_counter()
                memory = whole if name == "all" else bounded(whole, int(name.split()[-1]))
                seconds = time.perf_counter() - start
                measured = metrics(detector, asked, memory, queries)
                found.setdefault(f"{name}|{draw}", []).append((*measured, seconds, sum(stage.nbytes for stage in memory) / 1e6))
    table = {name: [np.mean(found[f"{name}|{draw}"], axis=0) for draw in range(DRAWS)] for name, _select in memories(0)}
    for name, values in table.items():
        mean, deviation = np.mean(values, axis=0), np.std(values, axis=0, ddof=1)
        print(
            f"\n{dataset:20} {name:12} AUROC {mean[0]:.1f} ± {deviation[0]:.1f}  pixel AP {mean[1]:.1f} ± {deviation[1]:.1f}  "
            f"{mean[2]:.1f} ms  selection {mean[3]:.2f} s  {mean[4]:.1f} MB",
            end="",
        )
    exact, kept = (np.mean(table[name], axis=0) for name in ("all", "coreset 4096"))
    assert kept[2] < exact[2] and not (exact[:2] - kept[:2] > MOST_LOST).any()


def memories(draw: int) -> list[tuple[str, Callable[[Tensor, int], Tensor]]]:
    """List the memories to compare: name and size, with the selection."""

    def chance(patches: Tensor, size: int) -> Tensor:
        return torch.from_numpy(generator(1, "chance", draw, size).permutation(len(patches))[:size])

    return [("all", coreset), *((f"coreset {size}", coreset) for size in SIZES), *((f"random {size}", chance) for size in SIZES)]


def chosen(rows: Sequence[PictureRow], most: int, split: str = "train") -> list[PictureRow]:
    own = [row for row in rows if row.split == split]
    return [own[place] for place in sorted(generator(0, "chosen", split).permutation(len(own))[:most])]


def encoded(detector: PatchResidual, rows: Sequence[PictureRow]) -> Features:
    parts = [
        detector.encoder(read_tensors([row.image for row in rows[start : start + 16]], SIDE, CPU)) for start in range(0, len(rows), 16)
    ]
    return [torch.cat(stage) for stage in zip(*parts, strict=True)]


def metrics(detector: PatchResidual, asked: Features, memory: Features, queries: Sequence[PictureRow]) -> tuple[float, float, float]:
    """Return image AUROC and pixel AP in percent (NaN without masks), and the milliseconds of a comparison."""
    scores, maps, taken = list[float](), list[NDArray[np.float32]](), list[float]()
    for place in range(len(queries)):
        features = [stage[place : place + 1] for stage in asked]
        start = time.perf_counter()
        score, map_ = detector.conclude(features, detector.relate(features, memory))
        taken.append(time.perf_counter() - start)
        scores.append(float(score))
        maps.append(upsample(map_, (PIXELS, PIXELS)).numpy().ravel())
    labels = np.array([row.label for row in queries])
    masks = [np.zeros(PIXELS**2, bool) if row.mask is None else read_mask(Path(row.mask), PIXELS).ravel() for row in queries]
    pixels = average_precision_score(np.concatenate(masks), np.concatenate(maps)) if any(mask.any() for mask in masks) else np.nan
    return 100 * float(roc_auc_score(labels, scores)), 100 * float(pixels), 1000 * statistics.median(taken)


@torch.inference_mode()
def test_a_selection_of_several_patches_a_pass_is_faster_than_one_by_one() -> None:
    torch.set_num_threads(1)
    patches = torch.nn.functional.normalize(torch.randn(65536, 40, generator=torch.Generator().manual_seed(0)), dim=1)

    def one_by_one() -> None:
        place = int((patches @ patches.mean(dim=0)).argmin())
        highest = patches @ patches[place]
        for _ in range(4095):
            place = int(highest.argmin())
            highest = torch.maximum(highest, patches @ patches[place])

    fast, slow = medians(lambda: coreset(patches, 4096), one_by_one, times=3)
    print(f"\n4,096 of 65,536 patches: {fast:.2f} s, one by one {slow:.2f} s")
    assert slow > FASTER_THAN_ONE_BY_ONE * fast
