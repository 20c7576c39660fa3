"""Sampling: recorded episodes, the same bytes every time, and no picture both trained on and tested on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import skimage.data
from conftest import make_places, save
from hypothesis import given as given_hashes
from hypothesis import strategies as st
from PIL import Image

from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.files import sha256
from changepair.tasks.common.rows import table_of
from changepair.tasks.ingestion.ingest import ingest_folder
from changepair.tasks.ingestion.manifest import PictureRow
from changepair.tasks.ingestion.objects.table import ObjectRow, to_row, write_objects
from changepair.tasks.sampling.episodes import Episode, EpisodeFiles, read_episodes, read_pictures, undefined_metrics
from changepair.tasks.sampling.sample import near_duplicates, sample
from changepair.tasks.sampling.settings import SamplingSettings, Use


@pytest.fixture
def manifests(layout: Path) -> Path:
    folder = layout.parent / "manifests"
    ingest_folder("parts", layout, licence="own", places=make_places(folder))
    ingest_folder("photos", layout / "bricks" / "test" / "hole", layout="photographs", licence="own", places=make_places(folder))
    other = layout.parent / "other"
    shutil.copytree(layout / "bricks" / "train" / "good", other)
    for number, file in enumerate(sorted(other.iterdir())):
        file.write_bytes(file.read_bytes() + b"\0" * (number + 1))  # other bytes, still the same picture to a decoder
    ingest_folder("other", other, layout="photographs", licence="own", places=make_places(folder))
    return folder


SETTINGS = SamplingSettings(shots=(1, 2, 4), seeds=(0, 1))


def files(manifests: Path) -> EpisodeFiles:
    return EpisodeFiles.of(manifests.parent / "episodes", "small")


def test_there_is_an_episode_for_every_category_protocol_shots_and_seed(manifests: Path) -> None:
    count = sample(SETTINGS, Use(("other",), ("parts",)), manifests=manifests, files=files(manifests)).episodes
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
    labels = {row.image: row.label for row in read_pictures(files(manifests).targets)}
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
    with pytest.raises(BadInput, match=r"parts: category 'bricks' has 4 normal training pictures, fewer than the 8 of sampling\.shots"):
        sample(SamplingSettings(shots=(8,)), Use(("other",), ("parts",)), manifests=manifests, files=files(manifests))


def test_a_target_without_test_pictures_is_told(manifests: Path) -> None:
    with pytest.raises(BadInput, match="other: category 'other' has no test picture to score"):
        sample(SETTINGS, Use(("photos",), ("other",)), manifests=manifests, files=files(manifests))


def test_sources_are_the_normal_training_pictures(manifests: Path) -> None:
    sample(SETTINGS, Use(("other",), ("parts",)), manifests=manifests, files=files(manifests))
    assert pq.read_table(files(manifests).sources).num_rows == 4


def test_textures_are_a_datasets_own_or_the_sources(manifests: Path) -> None:
    sample(SETTINGS, Use(("other",), ("parts",)), manifests=manifests, files=files(manifests))
    assert read_pictures(files(manifests).textures) == read_pictures(files(manifests).sources)
    folder = manifests.parent / "textures"
    save(skimage.data.grass()[:64, :64], folder / "grass.png")
    ingest_folder("textures", folder, layout="photographs", licence="own", places=make_places(manifests))
    sample(SETTINGS, Use(("other",), ("parts",), ("textures",)), manifests=manifests, files=files(manifests))
    assert [Path(row.image).name for row in read_pictures(files(manifests).textures)] == ["grass.png"]


def test_a_texture_that_is_also_a_target_is_refused(manifests: Path) -> None:
    with pytest.raises(BadInput, match=r"pictures are both a source and a target, the first .*; remove one of the datasets"):
        sample(SETTINGS, Use(("other",), ("parts",), ("parts",)), manifests=manifests, files=files(manifests))


def test_the_sources_objects_come_along_and_no_others(manifests: Path) -> None:
    other = [row["image"] for row in pq.read_table(manifests / "other.parquet").to_pylist()]
    mask = np.zeros((96, 96), dtype=bool)
    mask[10:30, 40:60] = True
    rows = [to_row(image, "brick", mask) for image in (*reversed(other), "elsewhere.png")]
    write_objects(manifests / "other.objects.parquet", table_of(ObjectRow, rows))
    sample(SETTINGS, Use(("other",), ("parts",)), manifests=manifests, files=files(manifests))
    sampled = pq.read_table(files(manifests).objects).to_pylist()
    assert [row["image"] for row in sampled] == sorted(other) and {row["label"] for row in sampled} == {"brick"}


def episodes_of(manifests: Path, settings: SamplingSettings, targets: tuple[str, ...] = ("parts",)) -> list[Episode]:
    sample(settings, Use((), targets), manifests=manifests, files=files(manifests))
    return read_episodes(files(manifests).episodes)


@pytest.fixture
def classes(manifests: Path) -> Path:
    """Beside the others a dataset of three classes, all normal, of 3, 3 and 6 training pictures."""
    photo, folder = skimage.data.gravel(), manifests.parent / "classes"
    for place, (name, count) in enumerate((("0", 3), ("1", 3), ("2", 6))):
        for split, number in [("training", number) for number in range(count)] + [("testing", 90 + number) for number in range(2)]:
            save(photo[place * 60 + number :][:40, number * 3 : number * 3 + 40], folder / split / name / f"{number}.png")
    ingest_folder("classes", folder, layout="mnist", places=make_places(manifests))
    return manifests


def test_one_vs_all_takes_each_class_as_normal_in_turn(classes: Path) -> None:
    episodes = episodes_of(classes, SamplingSettings(shots=(2,), seeds=(0,), protocols=("one-vs-all",)), ("classes",))
    assert [episode.category for episode in episodes] == ["0", "1", "2"]
    for episode in episodes:
        assert len(episode.queries) == 6 and sum(episode.labels) == 4
        for image, label in zip(episode.queries, episode.labels, strict=True):
            assert label == (f"/{episode.category}/" not in image)
        assert all(f"/training/{episode.category}/" in image for image in episode.prompts) and len(episode.prompts) == 2


def test_multi_class_takes_the_named_classes_as_normal(classes: Path) -> None:
    settings = SamplingSettings(shots=(2,), seeds=(0, 1), protocols=("multi-class",), normal_classes={"classes": ("0", "2")})
    episodes = episodes_of(classes, settings, ("classes",))
    assert [(episode.category, episode.seed) for episode in episodes] == [("0+2", 0), ("0+2", 1)]
    assert all(label == ("/1/" in image) for image, label in zip(episodes[0].queries, episodes[0].labels, strict=True))
    assert sorted(image.split("/")[-2] for image in episodes[0].prompts) == ["0", "0", "2", "2"]
    for wrong, message in (
        ({}, "must name some"),
        ({"classes": ("0", "7")}, "has no category '7'"),
        ({"classes": ("0", "1", "2")}, "but not all"),
    ):
        with pytest.raises(BadInput, match=rf"classes: sampling\.normal_classes\.classes .*{message}"):
            episodes_of(classes, SamplingSettings(shots=(2,), protocols=("multi-class",), normal_classes=wrong), ("classes",))


def test_targets_may_have_protocols_of_their_own(classes: Path) -> None:
    settings = SamplingSettings(shots=(1,), seeds=(0,), protocols=("class-specific",), target_protocols={"classes": ("one-vs-all",)})
    episodes = episodes_of(classes, settings, ("parts", "classes"))
    assert {(episode.target, episode.protocol) for episode in episodes} == {("parts", "class-specific"), ("classes", "one-vs-all")}
    with pytest.raises(BadInput, match="other: one-vs-all needs several categories"):
        episodes_of(classes, SamplingSettings(shots=(1,), protocols=("one-vs-all",)), ("other",))


def given(manifests: Path, content: str, **changes: Any) -> list[Episode]:
    file = manifests.parent / "prompts.json"
    file.write_text(content)
    return episodes_of(manifests, SamplingSettings(**{"shots": (1, 2), "seeds": (3, 4), "prompts": str(file), **changes}))


def test_prompts_are_taken_from_a_list_of_ones_own(manifests: Path) -> None:
    listed = {
        "parts": {
            "bricks": ["bricks/train/good/3.png", "bricks/train/good/1.png"],
            "stones": ["stones/train/good/0.png", "stones/train/good/2.png"],
        }
    }
    episodes = given(manifests, json.dumps(listed))
    assert {episode.seed for episode in episodes} == {3}
    by_shots = {
        episode.shots: [Path(image).name for image in episode.prompts]
        for episode in episodes
        if (episode.category, episode.protocol) == ("bricks", "class-specific")
    }
    assert by_shots == {1: ["3.png"], 2: ["3.png", "1.png"]}


def test_prompts_are_taken_from_the_authors_one_prompt_lists(manifests: Path) -> None:
    listed = {name: {"filename": f"{name}/train/good/2.png", "label": 0, "clsname": name} for name in ("bricks", "stones")}
    episodes = given(manifests, json.dumps(listed), shots=(1,))
    assert [[Path(image).parts[-4:] for image in episode.prompts] for episode in episodes if episode.protocol == "class-specific"] == [
        [("bricks", "train", "good", "2.png")],
        [("stones", "train", "good", "2.png")],
    ]


def test_prompts_are_taken_from_the_authors_top_k_lists(manifests: Path) -> None:
    queries = [f"{name}/test/{defect}/{number}.png" for name in ("bricks", "stones") for defect in ("good", "hole") for number in range(2)]
    lines = [
        json.dumps({query: [f"{query.split('/')[0]}/train/good/{place % 4}.png", "bricks/train/good/0.png"]})
        for place, query in enumerate(queries)
    ]
    episodes = given(manifests, "\n".join(lines), shots=(1,), protocols=("class-agnostic",))
    for episode in episodes:
        assert len(episode.own) == len(episode.queries) == 4
        for query, own in zip(episode.queries, episode.own, strict=True):
            place = next(place for place, name in enumerate(queries) if query.endswith(name))
            assert own.endswith(f"{episode.category}/train/good/{place % 4}.png") and own in episode.prompts
    with pytest.raises(BadInput, match=r"has no prompts for .* more queries"):
        given(manifests, "\n".join(lines[:3]), shots=(1,), protocols=("class-agnostic",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "neither JSON nor one JSON object a line"),
        ("[1]", "not a JSON object of prompts"),
        ('{"elsewhere": {}}', "names none of the targets parts, and none of their categories"),
        ('{"parts": {"bricks": ["bricks/train/good/9.png"]}}', "'bricks/train/good/9.png' is not a picture of parts"),
        ('{"parts": {"bricks": ["bricks/test/hole/0.png"]}}', "is not a normal training picture, so it cannot be a prompt"),
        ('{"parts": {"bricks": 3}}', "'bricks' has neither a list of paths nor a filename"),
    ],
)
def test_what_is_wrong_with_a_list_of_prompts_is_told(manifests: Path, content: str, message: str) -> None:
    with pytest.raises(BadInput, match=rf"prompts\.json: sampling\.prompts: .*{message}"):
        given(manifests, content)


def test_near_duplicates_are_reported(manifests: Path) -> None:
    """A test picture in another compression is no sha256's business, and is found all the same."""
    folder = manifests.parent / "copies"
    folder.mkdir()
    with Image.open(manifests.parent / "parts/stones/test/good/0.png") as image:
        image.save(folder / "copy.jpg", quality=90)
    save(skimage.data.grass()[:96, :96], folder / "grass.png")
    ingest_folder("copies", folder, layout="photographs", licence="own", places=make_places(manifests))
    sampled = sample(SETTINGS, Use(("copies",), ("parts",)), manifests=manifests, files=files(manifests))
    assert sampled.near_duplicates == 1
    header, row = files(manifests).near_duplicates.read_text().splitlines()
    assert header == "seen,tested_on,bits,how" and "copies/copy.jpg" in row and "stones/test/good/0.png" in row


def test_a_test_picture_that_may_prompt_itself_is_refused_by_its_bytes_and_reported_by_its_look(manifests: Path, layout: Path) -> None:
    shutil.copy(layout / "stones/train/good/1.png", layout / "stones/test/good/again.png")
    ingest_folder("parts", layout, licence="own", places=make_places(manifests))
    with pytest.raises(
        BadInput, match=r"parts: 1 pictures are both in its training and its test set, the first .*good/1\.png and .*again\.png"
    ):
        sample(SETTINGS, Use((), ("parts",)), manifests=manifests, files=files(manifests))
    with (layout / "stones/test/good/again.png").open("ab") as again:
        again.write(b"\0")  # other bytes, the same picture
    ingest_folder("parts", layout, licence="own", places=make_places(manifests))
    assert sample(SETTINGS, Use((), ("parts",)), manifests=manifests, files=files(manifests)).repeated == 1
    _header, row = files(manifests).near_duplicates.read_text().splitlines()
    assert "train/good/1.png" in row and "test/good/again.png" in row and row.endswith(",0,prompts")


def test_ones_own_normal_pictures_are_trained_on_and_others_of_them_prompt(manifests: Path) -> None:
    with pytest.raises(BadInput, match=r"or set sampling\.to_train to the share"):
        sample(SETTINGS, Use(("parts",), ("parts",)), manifests=manifests, files=files(manifests))
    halves = SamplingSettings(shots=(1, 2), seeds=(0, 1), to_train=0.5)
    sample(halves, Use(("parts", "other"), ("parts",)), manifests=manifests, files=files(manifests))
    trained_on = {row.image for row in read_pictures(files(manifests).sources)}
    episodes = read_episodes(files(manifests).episodes)
    prompts = {image for episode in episodes for image in episode.prompts}
    own = {image for image in trained_on if "/parts/" in image}
    assert len(own) == 2 * 2 and len(trained_on - own) == 4  # half of each of two categories' four; of the other dataset all
    assert len(prompts) == 2 * 2 and not prompts & trained_on
    assert not trained_on & {image for episode in episodes for image in episode.queries}
    before = files(manifests).sources.read_bytes()
    sample(halves, Use(("parts", "other"), ("parts",)), manifests=manifests, files=files(manifests))
    assert files(manifests).sources.read_bytes() == before
    few = SamplingSettings(shots=(1,), to_train=0.1)
    with pytest.raises(
        BadInput, match=r"parts: category 'bricks' has 4 normal training pictures, too few to split by sampling\.to_train, 0\.1"
    ):
        sample(few, Use(("parts",), ("parts",)), manifests=manifests, files=files(manifests))


def test_a_category_without_defects_has_episodes_and_is_named(manifests: Path, layout: Path) -> None:
    shutil.rmtree(layout / "stones/test/hole")
    shutil.rmtree(layout / "stones/ground_truth")
    ingest_folder("parts", layout, licence="own", places=make_places(manifests))
    sampled = sample(SETTINGS, Use((), ("parts",)), manifests=manifests, files=files(manifests))
    assert sampled.unmeasured == ["category stones of parts: all 2 test pictures are normal, so every metric is undefined"]
    assert {episode.labels for episode in read_episodes(files(manifests).episodes) if episode.category == "stones"} == {(0, 0)}


@given_hashes(
    st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=8),
    st.lists(st.tuples(st.integers(0, 7), st.sets(st.integers(0, 63), max_size=5)), max_size=6),
)
def test_near_duplicates_are_the_nearest_within_three_bits(trained: list[int], tested: list[tuple[int, set[int]]]) -> None:
    others = [trained[place % len(trained)] ^ sum(1 << bit for bit in bits) for place, bits in tested]
    rows = [
        [PictureRow(f"{side}{number}", "", f"{value:016x}", 8, 8, "", "", "", 0, "", None, None, "") for number, value in enumerate(values)]
        for side, values in (("a", trained), ("b", others))
    ]
    nearest = {f"b{number}": min((one ^ other).bit_count() for one in trained) for number, other in enumerate(others)}
    pairs = near_duplicates(*rows)
    assert {pair.tested_on: pair.bits for pair in pairs} == {name: bits for name, bits in nearest.items() if bits <= 3}
    for pair in pairs:
        assert (trained[int(pair.seen[1:])] ^ others[int(pair.tested_on[1:])]).bit_count() == pair.bits


def test_undefined_metrics_are_reported_with_the_reason() -> None:
    def episode(category: str, protocol: str, *labels: int) -> Episode:
        queries = tuple(f"{category}/{place}.png" for place in range(len(labels)))
        return Episode("parts", category, protocol, 1, 0, ("p.png",), queries, labels)

    episodes = [
        episode("a", "class-specific", 0, 1), episode("b", "class-specific", 1, 1, 1, 1), episode("b", "class-agnostic", 1, 1, 1, 1),
        episode("c", "class-specific", 1), episode("d", "class-specific", 0, 0), episode("e", "one-vs-all", 1, 1),
    ]  # fmt: skip
    rows = [
        PictureRow(f"{category}/0.png", "", "", 1, 1, "parts", category, "test", 1, "hole", f"{category}/0_mask.png", "", "own")
        for category in "abe"
    ]
    assert undefined_metrics(episodes, rows) == [
        "category b of parts: all 4 test pictures are anomalous, so image AUROC, AP and F1max are undefined; pixel metrics are computed",
        "category c of parts: its one test picture is anomalous, so every metric is undefined",
        "category d of parts: all 2 test pictures are normal, so every metric is undefined",
        "category e of parts: all 2 test pictures are anomalous, so every metric is undefined",
    ]
