"""Scoring pictures in tiles: every episode gets the scores and maps of a predictor with its prompts."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from conftest import make_clip, make_layout, make_places, save, scored
from PIL import Image
from sklearn.metrics import roc_auc_score

from changepair.tasks.common import stopping, tensors
from changepair.tasks.common.stopping import Stopped
from changepair.tasks.common.tiles import WHOLE, Grid, boxes, grid_of
from changepair.tasks.detectors.metauas.settings import MetaUASSettings
from changepair.tasks.detectors.registry import kind_of
from changepair.tasks.detectors.residual.settings import PatchResidualSettings, RobustResidualSettings
from changepair.tasks.detectors.store import create_detector
from changepair.tasks.detectors.winclip.settings import WinCLIPSettings
from changepair.tasks.encoders.settings import EncoderSettings
from changepair.tasks.ingestion.ingest import ingest_folder
from changepair.tasks.prediction.models import Named
from changepair.tasks.prediction.predictor import Predictor
from changepair.tasks.sampling.episodes import Episode, EpisodeFiles, read_episodes, read_pictures
from changepair.tasks.sampling.sample import sample
from changepair.tasks.sampling.settings import SamplingSettings, Use
from changepair.tasks.scoring.batch_scoring import BATCH, TIMES, seconds_a_picture
from changepair.tasks.scoring.measure import measure
from changepair.tasks.scoring.score import MOST_CELLS, Contender, score, stored_map
from changepair.tasks.scoring.scores import ScoresFolder, read_scored
from changepair.tasks.scoring.settings import EvaluationSettings

CPU = torch.device("cpu")


def model_of(settings: Any) -> Named:
    torch.manual_seed(0)
    detector = create_detector(settings).eval()
    return Named(kind_of(settings), {kind_of(settings): settings}, detector)


def contender(model: Named, work: Path, queries: int | None = None) -> Contender:
    looks = model.looks
    return Contender(
        model.name, model.detector, looks.resolution, queries, ScoresFolder(work / model.name), looks.encoder.resize, looks.tiles
    )


def sampled(layout: Path, **settings: Any) -> EpisodeFiles:
    manifests, files = layout.parent / "manifests", EpisodeFiles.of(layout.parent / "episodes", "small")
    ingest_folder("parts", layout, licence="own", places=make_places(manifests))
    asked = SamplingSettings(**{"shots": (1,), "seeds": (0,), "protocols": ("class-specific",), **settings})
    sample(asked, Use((), ("parts",)), manifests=manifests, files=files)
    return files


def mixed(folder: Path) -> Path:
    """A dataset whose prompts have different sizes, two of the four so large that they are cut; so have the queries."""
    layout = make_layout(folder / "parts")
    shutil.rmtree(layout / "stones")
    for place, file in enumerate(sorted(layout.rglob("*.png"))):
        if place % 2:
            Image.open(file).resize((2100, 60), Image.Resampling.BICUBIC if "mask" not in file.name else Image.Resampling.NEAREST).save(
                file
            )
    return layout


PATCH = PatchResidualSettings(resolution=64, top_share=0.02, self_residual=0.6, tiles=(2, 3))


@pytest.mark.parametrize("resize", ["squash", "aligned", "crop"])
@pytest.mark.parametrize("batch_size", [1, 5, 32])
def test_scores_and_maps_are_the_predictors(layout: Path, tmp_path: Path, resize: Any, batch_size: int) -> None:
    model = model_of(replace(PATCH, encoder=EncoderSettings(resize=resize)))
    for file in layout.rglob("*.png"):  # not square, so that `crop` cuts something away
        Image.open(file).resize((120, 84), Image.Resampling.NEAREST).save(file)
    files = sampled(layout, shots=(1, 2))
    folder = scored([contender(model, tmp_path)], files, tmp_path / "scores", batch_size)["patch-residual"]
    episodes = read_episodes(files.episodes)
    for item in read_scored(folder):
        episode = episodes[item.number]
        expected, maps = Predictor(model).prompt(episode.prompts)(episode.queries)
        assert item.scores == pytest.approx(expected, abs=1e-6)
        assert item.maps is not None
        for stored, map_ in zip(item.maps, maps, strict=True):
            whole = cv2.resize(stored, (map_.shape[1], map_.shape[0]), interpolation=cv2.INTER_LINEAR)
            assert np.abs(whole - map_).mean() < 0.03 * np.ptp(map_)
            assert np.corrcoef(whole.ravel(), map_.ravel())[0, 1] > 0.99


def test_the_seams_of_tiles_are_left_out_of_the_score(layout: Path, tmp_path: Path) -> None:
    """Held against a loop that scores every tile on its own, and against a predictor."""
    settings = RobustResidualSettings(stages=(2, 3), patch=4, resolution=64, versions=False, tiles=(2, 3))
    model, files = model_of(settings), sampled(layout, shots=(1,), protocols=("class-specific", "class-agnostic"))
    folder = scored([contender(model, tmp_path)], files, tmp_path / "scores", 4)["robust-residual"]
    episodes, lower = read_episodes(files.episodes), []
    for item in read_scored(folder):
        episode = episodes[item.number]
        assert item.scores == pytest.approx([tile_by_tile(model, query, episode, seams=True) for query in episode.queries], abs=1e-5)
        lower += list(item.scores < np.asarray([tile_by_tile(model, query, episode) for query in episode.queries]) - 1e-4)
        if episode.protocol == "class-specific":
            assert item.scores == pytest.approx(Predictor(model).prompt(episode.prompts)(episode.queries).scores, abs=1e-6)
    assert any(lower)


@pytest.mark.parametrize(("resize", "shape"), [("squash", (6, 1, 4)), ("aligned", (6, 1, 4)), ("crop", None)])
def test_cropped_tiles_have_no_seams(resize: Any, shape: tuple[int, ...] | None) -> None:
    """Their sides are not scored, and the neighbour may not see them either."""
    model = model_of(RobustResidualSettings(EncoderSettings(resize=resize), resolution=64, versions=False, whole=0.0))
    memory = Predictor(model).prompt(skimage.data.brick()[:90, :150], grid=Grid(2, 3)).prompted.memory
    assert [tuple(part.shape) for part in memory[3:]] == ([] if shape is None else [shape])  # after three stages


def test_prompts_of_different_sizes_choose_a_grid_for_each_episode_as_for_a_predictor(tmp_path: Path) -> None:
    model = model_of(replace(PATCH, tiles="auto"))
    files = sampled(mixed(tmp_path), shots=(1, 2), seeds=(0, 1, 2, 3))
    folder = scored([contender(model, tmp_path)], files, tmp_path / "scores", 4)["patch-residual"]
    episodes, grids = read_episodes(files.episodes), set()
    for item in read_scored(folder):
        episode = episodes[item.number]
        own = Predictor(model).prompt(episode.prompts)
        grids.add(own.prompted.grid)
        assert item.scores == pytest.approx(own(episode.queries).scores, abs=1e-6)
        assert item.maps is not None and len(item.maps) == len(episode.queries)
    assert grids == {WHOLE, Grid(1, 3)}


def test_detectors_that_are_scored_together_may_cut_differently(layout: Path, tmp_path: Path) -> None:
    """They share the encoder; one has queries left out."""
    files = sampled(layout)
    patch = model_of(PATCH)
    settings = MetaUASSettings(resolution=64, decoder_channels=(16,) * 5, tiles=(1, 2))
    metauas = Named("metauas", {"metauas": settings}, create_detector(settings, patch.detector.encoder).eval())  # type: ignore[arg-type]
    folders = scored([contender(patch, tmp_path), contender(metauas, tmp_path, 3)], files, tmp_path / "scores")
    for model, count in ((patch, 4), (metauas, 3)):
        for item, episode in zip(read_scored(folders[model.name]), read_episodes(files.episodes), strict=True):
            expected = Predictor(model).prompt(episode.prompts)(episode.queries[:count]).scores
            assert item.scores == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("memory", [0, 50])  # of 64 patches of a prompt
def test_the_most_similar_prompts_of_a_pool_are_chosen_for_each_tile(memory: int, layout: Path, tmp_path: Path) -> None:
    """Held against a loop that scores every tile on its own, with the prompts' tiles that are most similar to it."""
    files = sampled(layout, shots=(1, 2), protocols=("class-agnostic",))
    model = model_of(replace(PATCH, memory=memory))
    folder = scored([contender(model, tmp_path)], files, tmp_path / "scores", 7)["patch-residual"]
    episodes = read_episodes(files.episodes)
    for item in read_scored(folder):
        episode = episodes[item.number]
        expected = [tile_by_tile(model, query, episode) for query in episode.queries]
        assert item.scores == pytest.approx(expected, abs=1e-5)


@torch.inference_mode()
def tile_by_tile(model: Named, query: str, episode: Episode, *, seams: bool = False) -> float:
    pictures = [np.asarray(Image.open(file).convert("RGB")) for file in (query, *episode.prompts)]
    scores = []
    for box in boxes(pictures[0].shape[:2], Grid(2, 3)):
        tiles = [Image.fromarray(picture[box.top : box.bottom, box.left : box.right]) for picture in pictures]
        squares = np.stack([np.asarray(tile.resize((64, 64), Image.Resampling.BICUBIC), np.float32) / 255 for tile in tiles])
        own, *prompts = torch.from_numpy(squares).permute(0, 3, 1, 2).split(1)
        looks = [torch.nn.functional.normalize(model.detector.encoder(tile)[-1].mean((2, 3)), dim=1) for tile in (own, *prompts)]
        alike = sorted(range(len(prompts)), key=lambda place: -float(looks[0] @ looks[place + 1].T))
        memory = model.detector.memorise(torch.cat([prompts[place] for place in alike[: episode.shots]]))
        memory = model.detector.bounded(memory)
        if seams:  # half the overlap: a sixteenth of a tile's share of the picture, where a neighbour begins
            rest = pictures[0].shape[0] - box.bottom, pictures[0].shape[1] - box.right
            sides = zip((box.top, box.left, *rest), (2, 3, 2, 3), pictures[0].shape[:2] * 2, box.size * 2, strict=True)
            memory = model.detector.of_tile(memory, [(end > 0) * side / count / 16 / length for end, count, side, length in sides])
        scores.append(float(model.detector.score(own, memory)[0]))
    return max(scores)


def test_without_prompts_the_setting_alone_decides(layout: Path, tmp_path: Path) -> None:
    files = sampled(layout, shots=(0, 1))
    settings = WinCLIPSettings(EncoderSettings("open_clip", make_clip(tmp_path / "clip"), "hub"), resolution=64, tiles=(1, 2))
    model = model_of(settings)
    folder = scored([contender(model, tmp_path)], files, tmp_path / "scores")["winclip"]
    episodes = read_episodes(files.episodes)
    for item in read_scored(folder):
        episode = episodes[item.number]
        own = Predictor(model).prompt(episode.prompts, category=episode.category)
        assert own.prompted.grid == Grid(1, 2)
        assert item.scores == pytest.approx(own(episode.queries).scores, abs=1e-5)
    assert Predictor(model).prompted.grid == Grid(1, 2) and grid_of("auto", []) == WHOLE


def test_killed_in_the_middle_it_ends_with_the_same_scores(tmp_path: Path, polite: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """With mixed grids, resumed at another batch size."""
    model, files = model_of(replace(PATCH, tiles="auto")), sampled(mixed(tmp_path), shots=(1, 2), seeds=(0, 1, 2, 3))
    whole = scored([contender(model, tmp_path / "whole")], files, tmp_path / "whole-scores")["patch-residual"]
    folders = {"patch-residual": tmp_path / "scores" / "patch-residual"}

    def stop(share: float) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped, match=r"^score parts/bricks, 1 of 4 queries scored$"):
        score([contender(model, tmp_path)], files, folders, batch_size=4, device=CPU, report=stop)
    monkeypatch.setattr(stopping, "_asked", threading.Event())
    score([contender(model, tmp_path)], files, folders, batch_size=9, device=CPU)
    for one, other in zip(read_scored(folders["patch-residual"]), read_scored(whole), strict=True):
        assert one.scores == pytest.approx(other.scores, abs=1e-6)
        assert one.maps is not None and other.maps is not None and np.allclose(one.maps, other.maps, atol=1e-5)


def test_a_query_is_read_once_however_many_tiles_and_grids_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, files = model_of(replace(PATCH, tiles="auto")), sampled(mixed(tmp_path), shots=(1,), seeds=(0, 1, 2, 3))
    times: Counter[str] = Counter()
    read = tensors.read_picture

    def counted(path: Path) -> np.ndarray:
        times[str(path)] += 1
        return read(path)

    monkeypatch.setattr(tensors, "read_picture", counted)
    scored([contender(model, tmp_path)], files, tmp_path / "scores")
    queries = read_episodes(files.episodes)[0].queries
    assert [times[query] for query in queries] == [1] * len(queries)


def test_pixel_metrics_are_those_of_the_predictors_maps(tmp_path: Path) -> None:
    """Held against scikit-learn's AUROC of the predictor's own maps, pixel by pixel at the pictures' size."""
    parts = tmp_path / "parts"
    photo = skimage.data.brick()
    save(photo[:256, :384], parts / "train" / "good" / "0.png")
    for number in range(3):
        picture, mask = photo[20 * number + 200 :][:256, 100:484].copy(), np.zeros((256, 384), np.uint8)
        mask[70 * number + 20 :][:40, 90 * number + 30 : 90 * number + 70] = 255
        save(np.where(mask > 0, 255 - picture, picture), parts / "test" / "hole" / f"{number}.png")
        save(mask, parts / "ground_truth" / "hole" / f"{number}_mask.png")
        save(photo[20 * number + 190 :][:256, 60:444], parts / "test" / "good" / f"{number}.png")
    model, files = model_of(PATCH), sampled(parts)
    folders = scored([contender(model, tmp_path)], files, tmp_path / "scores")
    [measured] = measure(folders, files, EvaluationSettings(resolution=256))
    [episode] = read_episodes(files.episodes)
    maps = Predictor(model).prompt(episode.prompts)(episode.queries).maps
    masks = [mask_of(query) for query in episode.queries]
    expected = roc_auc_score(np.stack(masks).ravel(), np.stack(maps).ravel())
    assert measured.metrics["pixel_auroc"].value == pytest.approx(expected, abs=0.005) and expected > 0.8


def mask_of(query: str) -> np.ndarray:
    file = Path(query.replace("/test/", "/ground_truth/").replace(".png", "_mask.png"))
    return np.asarray(Image.open(file)) > 0 if file.is_file() else np.zeros((256, 384), bool)


@pytest.mark.parametrize(("grid", "side", "size"), [
    (WHOLE, 37, (37, 37)),
    (Grid(5, 1), 32, (320, 64)),
    (Grid(5, 1), 256, (320, 256)),
    (Grid(3, 4), 15, (192, 256)),
    (Grid(64, 20), 64, (1024, 960)),
])  # fmt: skip
def test_a_stored_map_is_small_and_has_the_geometry_of_the_picture(grid: Grid, side: int, size: Sequence[int]) -> None:
    """Each tile's map says where in the picture its cells lie; joined, every cell says so again."""
    places = boxes((6400, 6400), grid)
    tiles = []
    for box in places:
        ends = ((box.top, box.bottom), (box.left, box.right))
        rows, columns = (low + (np.arange(side) + 0.5) * (high - low) / side for low, high in ends)
        tiles.append(((rows[:, None] + 0 * columns) / 6400).astype(np.float32)[None])
    whole = stored_map(tiles, grid)
    assert whole.shape == (1, *size) and max(size) <= MOST_CELLS
    expected = (np.arange(size[0]) + 0.5) / size[0]
    assert np.abs(whole[0] - expected[:, None]).max() < 0.7 / (grid.rows * min(side, size[0] // grid.rows))


def test_a_picture_is_timed_with_all_its_tiles(layout: Path, tmp_path: Path) -> None:
    model, files = model_of(replace(PATCH, tiles=(3, 4))), sampled(layout)
    episode = read_episodes(files.episodes)[0]
    sizes = {row.image: (row.height, row.width) for row in read_pictures(files.targets)}
    encoded: list[int] = []
    hook = model.detector.encoder.register_forward_pre_hook(lambda _module, inputs: encoded.append(len(inputs[0])))  # type: ignore[attr-defined]
    assert seconds_a_picture(contender(model, tmp_path), episode, sizes, CPU) > 0
    hook.remove()
    prompts, queries = encoded[:12], encoded[12:]
    assert prompts == [1] * 12 and queries == [BATCH, 12 - BATCH] * (TIMES + 1)


def test_pictures_are_cut_and_encoded_for_no_detector_that_has_scored_its_queries(layout: Path, tmp_path: Path) -> None:
    files, patch = sampled(layout), model_of(PATCH)
    other = replace(contender(patch, tmp_path, 2), name="other", tiles=(1, 1))
    encoded: list[int] = []
    hook = patch.detector.encoder.register_forward_pre_hook(lambda _module, inputs: encoded.append(len(inputs[0])))  # type: ignore[attr-defined]
    scored([contender(patch, tmp_path), replace(other, work=ScoresFolder(tmp_path / "other"))], files, tmp_path / "scores", 6)
    hook.remove()
    prompts, queries = 1, 4
    assert sum(encoded) == 2 * (6 * (prompts + queries) + 1 * (prompts + 2))  # two categories; six tiles of one, the whole of the other
