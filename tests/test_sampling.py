"""Sampling: recorded episodes, the same bytes every time, and no picture both trained on and tested on."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import skimage.data
from conftest import save

from tasks.errors import BadInput
from tasks.files import sha256
from tasks.ingestion.ingest import ingest_folder
from tasks.ingestion.objects.table import SCHEMA, to_row, write_objects
from tasks.sampling.episodes import EpisodeFiles, read_episodes, read_pictures
from tasks.sampling.sample import sample
from tasks.sampling.settings import SamplingSettings, Use


@pytest.fixture
def manifests(layout: Path) -> Path:
    folder = layout.parent / "manifests"
    ingest_folder("parts", layout, licence="own", manifests=folder, workers=1)
    ingest_folder("photos", layout / "bricks" / "test" / "hole", licence="own", manifests=folder, workers=1)
    other = layout.parent / "other"
    shutil.copytree(layout / "bricks" / "train" / "good", other)
    for number, file in enumerate(sorted(other.iterdir())):
        file.write_bytes(file.read_bytes() + b"\0" * (number + 1))  # other bytes, still the same picture to a decoder
    ingest_folder("other", other, licence="own", manifests=folder, workers=1)
    return folder


SETTINGS = SamplingSettings(shots=(1, 2, 4), seeds=(0, 1))


def files(manifests: Path) -> EpisodeFiles:
    return EpisodeFiles.of(manifests.parent / "episodes", "small")


def test_there_is_an_episode_for_every_category_protocol_shots_and_seed(manifests: Path) -> None:
    count = sample(SETTINGS, Use(("other",), ("parts",)), manifests=manifests, files=files(manifests))
    episodes = read_episodes(files(manifests).episodes)
    assert count == len(episodes) == 2 * 2 * 3 * 2
    assert len({(e.category, e.protocol, e.shots, e.seed) for e in episodes}) == count


def test_prompts_are_normal_training_pictures_and_queries_test_pictures(manifests: Path) -> None:
    sample(SETTINGS, Use(("other",), ("parts",)), manifests=manifests, files=files(manifests))
    for episode in read_episodes(files(manifests).episodes):
        assert all("/train/good/" in image for image in episode.prompts)
        assert len(set(episode.prompts)) == episode.shots * (1 if episode.protocol == "class-specific" else 2)
        assert all(f"/{episode.category}/test/" in image for image in episode.queries) and len(set(episode.queries)) == 4
        if episode.protocol == "class-specific":
            assert all(f"/{episode.category}/" in image for image in episode.prompts)


def test_more_shots_only_add_prompts(manifests: Path) -> None:
    sample(SETTINGS, Use(("other",), ("parts",)), manifests=manifests, files=files(manifests))
    by_shots = {
        e.shots: e.prompts
        for e in read_episodes(files(manifests).episodes)
        if (e.category, e.protocol, e.seed) == ("bricks", "class-specific", 1)
    }
    assert by_shots[4][:2] == by_shots[2] and by_shots[2][:1] == by_shots[1]


def test_any_first_queries_have_the_labels_in_proportion(manifests: Path) -> None:
    sample(SETTINGS, Use(("other",), ("parts",)), manifests=manifests, files=files(manifests))
    labels = {row["image"]: row["label"] for row in read_pictures(files(manifests).targets)}
    queries = read_episodes(files(manifests).episodes)[0].queries
    assert sorted(labels[image] for image in queries[:2]) == [0, 1]


def test_the_same_bytes_twice(manifests: Path) -> None:
    sums = []
    for _attempt in range(2):
        sample(SETTINGS, Use(("other",), ("parts",)), manifests=manifests, files=files(manifests))
        sums.append([sha256(file) for file in (files(manifests).episodes, files(manifests).sources, files(manifests).targets)])
    assert sums[0] == sums[1]


def test_a_seed_changes_the_prompts_and_nothing_else(manifests: Path) -> None:
    sample(SETTINGS, Use(("other",), ("parts",)), manifests=manifests, files=files(manifests))
    first, second = (
        [e for e in read_episodes(files(manifests).episodes) if (e.seed, e.shots, e.protocol) == (seed, 4, "class-specific")]
        for seed in (0, 1)
    )
    assert [e.prompts for e in first] != [e.prompts for e in second]
    assert [e.queries for e in first] == [e.queries for e in second]


def test_a_picture_in_a_source_and_a_target_is_refused(manifests: Path) -> None:
    with pytest.raises(BadInput, match=r"2 pictures are both a source and a target, the first .*/hole/0\.png and .*/hole/0\.png"):
        sample(SETTINGS, Use(("photos",), ("parts",)), manifests=manifests, files=files(manifests))
    assert not files(manifests).episodes.exists()


def test_too_few_normal_pictures_are_told(manifests: Path) -> None:
    with pytest.raises(BadInput, match="parts: category 'bricks' has 4 normal training pictures, fewer than the 8 shots"):
        sample(SamplingSettings(shots=(8,)), Use(("other",), ("parts",)), manifests=manifests, files=files(manifests))


def test_a_target_without_test_pictures_is_told(manifests: Path) -> None:
    with pytest.raises(BadInput, match="other: category 'other' has no normal test picture"):
        sample(SETTINGS, Use(("photos",), ("other",)), manifests=manifests, files=files(manifests))


def test_sources_are_the_normal_training_pictures(manifests: Path) -> None:
    sample(SETTINGS, Use(("other",), ("parts",)), manifests=manifests, files=files(manifests))
    assert pq.read_table(files(manifests).sources).num_rows == 4


def test_textures_are_a_datasets_own_or_the_sources(manifests: Path) -> None:
    sample(SETTINGS, Use(("other",), ("parts",)), manifests=manifests, files=files(manifests))
    assert read_pictures(files(manifests).textures) == read_pictures(files(manifests).sources)
    folder = manifests.parent / "textures"
    save(skimage.data.grass()[:64, :64], folder / "grass.png")
    ingest_folder("textures", folder, licence="own", manifests=manifests, workers=1)
    sample(SETTINGS, Use(("other",), ("parts",), ("textures",)), manifests=manifests, files=files(manifests))
    assert [Path(row["image"]).name for row in read_pictures(files(manifests).textures)] == ["grass.png"]


def test_a_texture_that_is_also_a_target_is_refused(manifests: Path) -> None:
    with pytest.raises(BadInput, match=r"pictures are both a source and a target, the first .*; take one of the datasets out"):
        sample(SETTINGS, Use(("other",), ("parts",), ("parts",)), manifests=manifests, files=files(manifests))


def test_the_sources_objects_come_along_and_no_others(manifests: Path) -> None:
    other = [row["image"] for row in pq.read_table(manifests / "other.parquet").to_pylist()]
    mask = np.zeros((96, 96), dtype=bool)
    mask[10:30, 40:60] = True
    rows = [to_row(image, "brick", mask) for image in (*reversed(other), "elsewhere.png")]
    write_objects(manifests / "other.objects.parquet", pa.Table.from_pylist(rows, schema=SCHEMA))
    sample(SETTINGS, Use(("other",), ("parts",)), manifests=manifests, files=files(manifests))
    came = pq.read_table(files(manifests).objects).to_pylist()
    assert [row["image"] for row in came] == sorted(other) and {row["label"] for row in came} == {"brick"}
