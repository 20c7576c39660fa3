"""Sharing work between combinations changes no byte of a score. A sweep has the metrics of the metrics stage."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from conftest import make_places

from changepair.tasks.common.errors import BadInput
from changepair.tasks.detectors.detector import Detector
from changepair.tasks.detectors.metauas.settings import MetaUASSettings
from changepair.tasks.detectors.residual.metric import MetricResidual
from changepair.tasks.detectors.residual.patch import PatchResidual
from changepair.tasks.detectors.residual.robust import RobustResidual
from changepair.tasks.detectors.residual.settings import MetricResidualSettings, PatchResidualSettings, RobustResidualSettings
from changepair.tasks.detectors.store import create_detector
from changepair.tasks.detectors.subspace.settings import SubspaceSettings
from changepair.tasks.encoders.build import build_encoder
from changepair.tasks.encoders.encoder import FrozenEncoder
from changepair.tasks.encoders.settings import EncoderSettings
from changepair.tasks.ingestion.ingest import ingest_folder
from changepair.tasks.sampling.episodes import EpisodeFiles, TargetFiles, protocols_of, read_episodes
from changepair.tasks.sampling.sample import sample
from changepair.tasks.sampling.settings import SamplingSettings, Use
from changepair.tasks.scoring.batch_scoring import Scoring, score_detector
from changepair.tasks.scoring.decision import PromotionSettings
from changepair.tasks.scoring.measure import measure
from changepair.tasks.scoring.results import ALL, results_of
from changepair.tasks.scoring.score import Contender, score
from changepair.tasks.scoring.scores import ScoresFolder, read_scores
from changepair.tasks.scoring.settings import EvaluationSettings
from changepair.tasks.scoring.sharing import encoder_of, share
from changepair.tasks.scoring.sweep import Sweep, on_targets, sweep, write_sweep

CPU = torch.device("cpu")
SIDE = 64
ONE, TWO, HALF = (EncoderSettings(scales=scales) for scales in ((1.0,), (1.0, 0.5), (0.5,)))
PATCH = PatchResidualSettings(resolution=SIDE, top_share=0.02)
METRIC, ROBUST = MetricResidualSettings(resolution=SIDE), RobustResidualSettings(encoder=TWO, resolution=SIDE, stages=(3, 4))
METAUAS = MetaUASSettings(resolution=SIDE, decoder_channels=(16, 16, 16, 16, 16), residual=20)


@pytest.fixture
def files(layout: Path) -> EpisodeFiles:
    return sampled(layout, "class-specific", "class-agnostic")


def sampled(layout: Path, *protocols: Any) -> EpisodeFiles:
    manifests, files = layout.parent / "manifests", EpisodeFiles.of(layout.parent / "episodes", "small")
    ingest_folder("parts", layout, licence="own", places=make_places(manifests))
    settings = SamplingSettings(shots=(1, 2), seeds=(0, 1), protocols=protocols)
    sample(settings, Use((), ("parts",)), manifests=manifests, files=files)
    return files


@contextmanager
def relating(detectors: Sequence[Detector]) -> Iterator[list[int]]:
    """Count the queries of each call of the detectors' `relate`."""
    calls: list[int] = []

    def counting(real: Any) -> Any:
        def relate(queries: Any, memory: Any) -> Any:
            calls.append(len(queries[0]))
            return real(queries, memory)

        return relate

    with pytest.MonkeyPatch.context() as patch:
        for one in detectors:
            patch.setattr(one, "relate", counting(one.relate))
        yield calls


@contextmanager
def counted() -> Iterator[list[tuple[int, int]]]:
    """Count the pictures of each pass of an encoder's network, with their side in pixels."""
    passes: list[tuple[int, int]] = []
    real = FrozenEncoder.run

    def run(self: FrozenEncoder, normalised: torch.Tensor) -> Any:
        passes.append((normalised.shape[0], normalised.shape[-1]))
        return real(self, normalised)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FrozenEncoder, "run", run)
        yield passes


def contenders(detectors: Sequence[Detector], settings: Sequence[Any], work: Path, queries: Sequence[int | None] = ()) -> list[Contender]:
    each = zip(detectors, settings, queries or [None] * len(settings), strict=True)
    return [
        Contender(str(number), one.eval(), SIDE, count, ScoresFolder(work / str(number)), own.encoder.resize, own.tiles)
        for number, (one, own, count) in enumerate(each)
    ]


def together(settings: Sequence[Any], network: FrozenEncoder) -> list[Detector]:
    """Create detectors around one network; trained parts are the same in each."""
    created = []
    for own in settings:
        torch.manual_seed(0)
        created.append(create_detector(own, network.at(own.encoder.scales)))
    return created


def contents(folder: Path) -> dict[str, Any]:
    """Read everything that was scored, except for the detector's name."""
    maps = {file.name: file.read_bytes() for file in (folder / "maps").iterdir()}
    return {"scores": read_scores(folder).drop_columns("detector"), **maps}


SETTINGS: dict[str, list[Any]] = {
    "scales": [replace(PATCH, encoder=encoder) for encoder in (ONE, TWO, HALF)],
    "scores": [
        replace(PATCH, encoder=encoder, self_residual=own, top_share=top)
        for encoder in (ONE, TWO)
        for own in (0.0, 0.5)
        for top in (0.0, 0.05)
    ],
    "maps": [
        PATCH,
        replace(PATCH, contrast=0.02),
        replace(PATCH, smoothing=2.0),
        replace(PATCH, foreground=1.0),
        replace(PATCH, foreground=1.0, encoder=TWO),
        replace(PATCH, foreground=1.0, encoder=TWO, background=0.5),
    ],
    "views": [replace(PATCH, rotations=turns, mirrored=both) for turns in (1, 3) for both in (False, True)],
    "stages": [replace(PATCH, stages=stages, tiles=tiles) for stages in ((3,), (2, 4)) for tiles in ((1, 1), (2, 3))],
    "memory": [replace(PATCH, memory=size, encoder=encoder) for encoder in (ONE, TWO) for size in (0, 10, 70)],
    "metric": [replace(METRIC, encoder=encoder, background=weight) for encoder in (ONE, TWO) for weight in (0.0, 0.5)],
    "robust": [replace(ROBUST, whole=whole, positions=positions) for whole in (0.0, 0.5, 1.0) for positions in ("off", "auto")],
    "subspace": [SubspaceSettings(encoder=encoder, resolution=SIDE, variance=share) for encoder in (ONE, TWO) for share in (0.9, 0.99)],
    "metauas": [replace(METAUAS, encoder=encoder, top_share=top) for encoder in (ONE, TWO) for top in (0.0, 0.01)],
}


@pytest.mark.parametrize("name", SETTINGS)
def test_sharing_changes_no_byte(name: str, files: EpisodeFiles, tmp_path: Path) -> None:
    """Each setting is scored alone, with its own encoder, and compared."""
    settings = SETTINGS[name]
    queries = [None, 3, *[None] * (len(settings) - 2)]  # one detector has fewer queries
    scales = tuple(dict.fromkeys(scale for own in settings for scale in own.encoder.scales))
    network = build_encoder(replace(settings[0].encoder, scales=scales), SIDE)
    shared = contenders(together(settings, network), settings, tmp_path / "work", queries)
    folders = {one.name: tmp_path / "together" / one.name for one in shared}
    score(shared, files, folders, batch_size=4, device=CPU)
    for number, own in enumerate(settings):
        [alone] = contenders(together([own], build_encoder(own.encoder, SIDE)), [own], tmp_path / "alone-work", [queries[number]])
        score([alone], files, {"0": tmp_path / "alone" / str(number)}, batch_size=4, device=CPU)
        assert contents(folders[str(number)]) == contents(tmp_path / "alone" / str(number)), own
    different = {contents(folder)["scores"]["score"].combine_chunks().to_numpy().tobytes() for folder in folders.values()}
    assert len(different) > 1


def test_a_picture_is_encoded_and_related_once_for_all_settings(layout: Path, tmp_path: Path) -> None:
    settings, files = SETTINGS["scores"], sampled(layout, "class-specific")
    network = build_encoder(TWO, SIDE)
    shared = contenders(together(settings, network), settings, tmp_path / "work")
    with relating([one.detector for one in shared]) as related, counted() as passes:
        score(shared, files, {one.name: tmp_path / one.name for one in shared}, batch_size=32, device=CPU)
    episodes = read_episodes(files.episodes)
    prompts, queries = {image for one in episodes for image in one.prompts}, {image for one in episodes for image in one.queries}
    full, half = (sum(count for count, own in passes if own == side) for side in (SIDE, SIDE // 2))
    assert full == half == len(prompts) + len(queries)
    last = contenders([create_detector(settings[-1])], settings[-1:], tmp_path / "alone")
    with relating([last[0].detector]) as alone:
        score(last, files, {"0": tmp_path / "last"}, batch_size=32, device=CPU)
    assert related == alone != []


OTHER: dict[str, Any] = {
    "stages": (4, 5),
    "top_share": 0.3,
    "background": 0.25,
    "rotations": 2,
    "mirrored": True,
    "self_residual": 0.7,
    "foreground": 0.5,
    "contrast": 0.1,
    "smoothing": 1.0,
    "memory": 10,
    "encoder": EncoderSettings(scales=(1.0, 0.75, 0.5)),
    "patch": 16,
    "versions": False,
    "magnitude": False,
    "whole": 0.25,
    "positions": "auto",
    "radius": 0.3,
}
UNRELATED = {"resolution", "tiles", "model"}
"""Settings that are equal for detectors that are scored together, or that no relation depends on."""


@pytest.mark.parametrize(
    "settings",
    [
        PATCH,
        replace(PATCH, self_residual=0.5, foreground=1.0),
        replace(PATCH, self_residual=0.5, memory=20),
        METRIC,
        ROBUST,
        replace(ROBUST, whole=0.0, positions="on"),
    ],
)
def test_a_selected_part_of_a_relation_equals_the_detectors_own(settings: Any) -> None:
    """Each setting is changed in turn. Some need a relation of their own."""
    names = set(type(settings).__dataclass_fields__) - UNRELATED
    assert names <= set(OTHER)
    network, pictures = build_encoder(ONE, SIDE), crops(5)
    shared = 0
    for name in sorted(names):
        other = replace(settings, **{name: OTHER[name]})
        pair = together([settings, other], network)
        for one, host in (pair, pair[::-1]):
            part = one.part_of(host)
            own, expected = relation(host, pictures), relation(one, pictures)
            if part is not None:
                shared += 1
                assert all(torch.equal(a, b) for a, b in zip(part(own), expected, strict=True)), name
    assert shared > 3


def crops(count: int, side: int = SIDE) -> torch.Tensor:
    """Crops of a real texture, (count, 3, side, side) in [0, 1]."""
    return torch.stack([torch.from_numpy(skimage.data.brick()[40 * n :][:side, :side]).expand(3, -1, -1) / 255 for n in range(count)])


@torch.inference_mode()
def relation(detector: Detector, pictures: torch.Tensor) -> list[torch.Tensor]:
    prompts, queries = pictures[:2], pictures[2:]
    return detector.relate(detector.encoder(queries), detector.bounded(detector.memorise(prompts)))


def test_another_metric_has_a_relation_of_its_own() -> None:
    network = build_encoder(ONE, SIDE)
    one, other = (create_detector(METRIC, network) for _ in range(2))
    assert isinstance(other, MetricResidual) and one.part_of(other) is not None
    with torch.no_grad():
        other.log_scales[1][3] = 0.5
    assert one.part_of(other) is None and set(share({"a": one, "b": other}).hosts.values()) == {"a", "b"}


@pytest.mark.parametrize("kind", [PatchResidual, MetricResidual, RobustResidual])
def test_a_subclass_shares_no_relation_unless_it_defines_part_of(kind: Any) -> None:
    class Own(kind):
        """A detector of another package, which may relate otherwise."""

    network = build_encoder(ONE, SIDE)
    own, base = (Own(network), Own(network)), kind(network)
    assert own[0].part_of(own[1]) is own[0].part_of(base) is base.part_of(own[0]) is None
    assert own[0].part_of(own[0]) is not None


def test_encoders_at_other_scales_have_one_network_and_their_own_geometry() -> None:
    network = build_encoder(EncoderSettings(scales=(1.0, 0.5, 0.3)), 128)
    picture = crops(2, 128)
    for scales in ((1.0,), (0.3,), (0.3, 1.0), (1.0, 0.5, 0.3)):
        own, alone = network.at(scales), build_encoder(EncoderSettings(scales=scales), 128)
        assert own.network is network.network
        assert (own.channels, own.strides, own.maps, own.scales) == (alone.channels, alone.strides, alone.maps, alone.scales)
        assert all(torch.equal(a, b) for a, b in zip(own(picture), alone(picture), strict=True))
    assert network.scales == (1.0, 0.5, 0.3) and encoder_of([network, network]) is network
    assert encoder_of([network.at((0.3,)), network.at((1.0, 0.3))]).scales == (0.3, 1.0)


def swept_of(files: TargetFiles, settings: Sequence[Any], **more: Any) -> Sweep:
    evaluation = EvaluationSettings(resolution=SIDE, batch_size=4)
    return Sweep("mine", [{"mine": one} for one in settings], evaluation, PromotionSettings(**more), files, Path("models"))


def test_a_sweep_gives_the_metrics_of_the_stages(files: EpisodeFiles, tmp_path: Path) -> None:
    """Each combination is also a detector of a pipeline, scored by its own stage and measured with the others."""
    settings = [*SETTINGS["scores"], replace(PATCH, resolution=2 * SIDE)]
    with counted() as passes:
        swept = sweep(swept_of(files, settings), tmp_path / "sweep", CPU)
    detectors = {f"d-{number}": one for number, one in enumerate(settings)}
    evaluation = EvaluationSettings(resolution=SIDE, batch_size=4)
    scoring = Scoring(detectors, evaluation, files, tmp_path / "models", tmp_path / "scores", tmp_path / "checkpoints")
    for name in detectors:
        score_detector(name, scoring)
    folders = {name: scoring.scores / name for name in detectors}
    results = results_of(measure(folders, files, evaluation), protocols_of(files.episodes))
    assert sorted(one.number for one in swept) == list(range(len(settings)))
    for one in swept:
        stage = [row for row in results.rows if row.detector == f"d-{one.number}"]
        assert [replace(row, detector="") for row in one.rows] == [replace(row, detector="") for row in stage]
        deciding = [row.mean for row in stage if row.metric == "image_auroc" and row.category == ALL]
        assert one.overall.mean == pytest.approx(np.mean(deciding), abs=1e-6) and set(one.targets) == {"parts"}
    assert [one.overall.mean for one in swept] == sorted((one.overall.mean for one in swept), reverse=True)
    assert swept[0].close and {side for _count, side in passes} == {SIDE, SIDE // 2, 2 * SIDE}


def test_the_table_has_a_row_for_each_combination_target_and_metric(files: EpisodeFiles, tmp_path: Path) -> None:
    swept = sweep(swept_of(files, SETTINGS["scales"], metric="pixel_aupro"), tmp_path, CPU)
    write_sweep(tmp_path / "out.csv", ["encoder.scales"], [["[1]"], ["[1, 0.5]"], ["[0.5]"]], swept)
    with (tmp_path / "out.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == sum(len(one.rows) for one in swept) and "detector" not in rows[0]
    assert list(dict.fromkeys(row["encoder.scales"] for row in rows)) == [["[1]", "[1, 0.5]", "[0.5]"][one.number] for one in swept]
    assert {float(row["mean"]) for row in rows} == {row.mean for one in swept for row in one.rows}


def test_targets_are_selected_by_name(files: EpisodeFiles, tmp_path: Path) -> None:
    assert read_episodes(on_targets(files.tested, ["parts"], tmp_path).episodes) == read_episodes(files.episodes)
    with pytest.raises(BadInput, match="--target part: the pipeline has no such target; choose from parts"):
        on_targets(files.tested, ["part"], tmp_path)
