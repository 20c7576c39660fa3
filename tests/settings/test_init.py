"""`changepair init`: a folder of pictures becomes a dataset and a pipeline of pipelines.yaml, whose other lines stay as they are."""

from __future__ import annotations

import difflib
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import yaml
from conftest import ROOT, TINY, make_places, make_project, run, save
from scipy.ndimage import gaussian_filter
from sklearn.metrics import roc_auc_score

from changepair.flows.init import init
from changepair.flows.settings.pipelines import read_pipelines
from changepair.tasks.common.errors import BadInput
from changepair.tasks.detectors.pretrained import use_model
from changepair.tasks.ingestion.ingest import ingest_folder
from changepair.tasks.sampling.episodes import EpisodeFiles, protocols_of, read_episodes
from changepair.tasks.sampling.sample import sample
from changepair.tasks.sampling.settings import Use
from changepair.tasks.scoring.batch_scoring import Scoring, score_detector
from changepair.tasks.scoring.decision import choose
from changepair.tasks.scoring.measure import measure
from changepair.tasks.scoring.results import results_of
from changepair.tasks.scoring.scores import read_scored


@pytest.fixture
def project(layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with this project's own pipelines.yaml, comments and all, and `parts` beside it."""
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copyfile(ROOT / "pipelines.yaml", folder / "pipelines.yaml")
    monkeypatch.chdir(folder)
    return folder


def test_a_pipeline_is_added_and_every_other_line_stays(project: Path, layout: Path) -> None:
    before = (project / "pipelines.yaml").read_text()
    init(str(layout), "my-line")
    after = (project / "pipelines.yaml").read_text()
    gone = [line for line in difflib.ndiff(before.splitlines(), after.splitlines()) if line.startswith("- ")]
    assert len(gone) == 2 and gone[0].startswith("- enabled: [quickstart]") and gone[1].startswith("-   folders: {}")
    read = read_pipelines()
    assert read.enabled == ["quickstart", "my-line"] and read.datasets.folders["my-line"].path == str(layout)
    mine = read.pipelines["my-line"]
    assert mine.targets == ["my-line"] and list(mine.sampling.shots) == [1, 2, 4] and mine.evaluation.resolution == 96
    assert "2 categories, 8 training pictures, 4 normal test pictures, 4 defective test pictures, masks" in after
    again = project.parent / "another"
    shutil.copytree(layout / "bricks", again)
    init(str(again))
    assert read_pipelines().enabled == ["quickstart", "my-line", "another"] and len(read_pipelines().datasets.folders) == 2


@pytest.mark.parametrize(
    ("folder", "name", "told"),
    [
        ("parts", "quickstart", "the name 'quickstart' is taken"),
        ("parts", "elpv", "the name 'elpv' is taken"),
        ("parts", "My Line", "invalid name for a pipeline"),
        ("nowhere", None, "no folder .*nowhere"),
        ("parts/bricks/train", "flat", "no picture in test/<defect>"),
        ("parts/bricks/train/good", "flat", r"nor a folder called good or ok or normal .*layout: photographs"),
    ],
)
def test_what_cannot_be_a_pipeline_is_told_and_nothing_is_written(
    project: Path, layout: Path, folder: str, name: str | None, told: str
) -> None:
    before = (project / "pipelines.yaml").read_text()
    with pytest.raises(BadInput, match=told):
        init(str(layout.parent / folder), name)
    assert (project / "pipelines.yaml").read_text() == before and [file.name for file in project.iterdir()] == ["pipelines.yaml"]


def test_without_a_picture_of_a_defect_what_to_do_is_told(project: Path, layout: Path) -> None:
    for category in ("bricks", "stones"):
        shutil.rmtree(layout / category / "test/hole")
        shutil.rmtree(layout / category / "ground_truth")
    with pytest.raises(BadInput, match=r"no picture in test/<defect>; metrics need normal and .*changepair predict --prompt"):
        init(str(layout))


def test_stated_folders_may_stand_next_to_the_project_and_in_it_but_not_where_stages_write(project: Path, layout: Path) -> None:
    normal, abnormal = layout / "bricks/train/good", layout / "bricks/test/hole"
    for place in (project.parent, project, project / "data/pictures"):
        shutil.copytree(normal, place / "ok")
        shutil.copytree(abnormal, place / "nok")
    init(None, "beside", normal=[str(project.parent / "ok")], abnormal=[str(project.parent / "nok")])
    init(None, "inside", normal=["ok"], abnormal=["nok"])
    read = (project / "pipelines.yaml").read_text()
    ingested = run(project, "changepair", "plan", PYTHONPATH=str(ROOT))
    assert ingested.returncode == 0, ingested.stderr
    ran = run(project, sys.executable, "-m", "changepair.flows.ingest", "beside", PYTHONPATH=str(ROOT))
    assert ran.returncode == 0 and (project / "data/manifests/beside.parquet").is_file(), ran.stderr
    with pytest.raises(BadInput, match="overlaps data/pictures, where stages write and delete files"):
        init(None, "written", normal=["data/pictures/ok"], abnormal=["data/pictures/nok"])
    assert (project / "pipelines.yaml").read_text() == read


def stated(folder: Path, source: Path) -> Path:
    """Copy normal and abnormal pictures of the tests to `ok` and `nok` in a folder."""
    for name, place in (("ok", "train/good"), ("nok", "test/hole")):
        shutil.copytree(source / "bricks" / place, folder / name)
    return folder


@pytest.mark.parametrize(
    ("folder", "name"), [("123", "123"), ("1e3", "1e3"), ("Null", "null"), ("..parts 2", "parts-2"), ("two\nlines: {x}", "two-lines-x")]
)
def test_any_name_of_a_folder_gives_a_pipeline(project: Path, layout: Path, folder: str, name: str) -> None:
    place = stated(project.parent / folder, layout)
    init("..", "above", normal=[f"{folder}/ok"], abnormal=[f"{folder}/nok/"])
    init(None, normal=[f"../{folder}/ok/"], abnormal=[f"../{folder}/nok"])
    read = read_pipelines()
    assert read.enabled == ["quickstart", "above", name] and read.pipelines[name].targets == [name]
    assert read.datasets.folders[name].path == str(place)


def test_a_folder_above_gives_its_name(project: Path, layout: Path) -> None:
    stated(project.parent, layout)
    init("..", normal=["ok"], abnormal=["nok"])
    assert [*read_pipelines().datasets.folders] == [re.sub("[^a-z0-9]+", "-", project.parent.name.lower()).strip("-")]


@pytest.mark.parametrize(
    ("folder", "normal", "abnormal", "told"),
    [
        (None, ["ok", "link"], ["nok"], "link is the same folder as ok; name it once"),
        (None, ["ok"], ["link"], "link is the same folder as ok; name it once"),
        (None, ["ok"], ["ok/"], "the folder ok occurs twice"),
        (None, ["ok"], [""], "--normal, --abnormal or --masks: is empty; name a folder"),
        ("", [], [], "the folder: is empty; name a folder"),
        (".", ["../parts"], ["nok"], r"\.\./parts: no such folder in \."),
        (None, ["no\nway"], ["nok"], "^no way: no such folder in "),
    ],
)
def test_wrong_folders_are_refused_in_one_line(
    project: Path, layout: Path, folder: str | None, normal: list[str], abnormal: list[str], told: str
) -> None:
    stated(project, layout)
    (project / "link").symlink_to("ok")
    before = (project / "pipelines.yaml").read_text()
    with pytest.raises(BadInput, match=told) as caught:
        init(folder, "mine", normal=normal, abnormal=abnormal)
    assert "\n" not in str(caught.value) and (project / "pipelines.yaml").read_text() == before


def test_the_home_of_an_unknown_user_is_refused_in_one_line(project: Path) -> None:
    refused = run(project, "changepair", "init", "~nobody-here/parts", PYTHONPATH=str(ROOT))
    assert refused.returncode == 2 and refused.stderr.startswith("changepair: ~: no such user") and refused.stderr.count("\n") == 1


@pytest.mark.parametrize("form", ["enabled:\n- quickstart\n", "enabled: [\n  quickstart]\n", "enabled: # these\n  - quickstart\n"])
def test_a_file_of_another_form_is_extended_too(project: Path, layout: Path, form: str) -> None:
    file = project / "pipelines.yaml"
    file.write_text(file.read_text().replace("enabled: [quickstart]\n", form))
    before = read_pipelines()
    init(str(layout))
    after = read_pipelines()
    assert after.enabled == [*before.enabled, "parts"] and list(after.datasets.folders) == ["parts"]
    assert {name: one for name, one in after.pipelines.items() if name != "parts"} == before.pipelines


def test_a_file_that_cannot_be_extended_is_left_and_what_to_add_is_told(project: Path, layout: Path) -> None:
    file = project / "pipelines.yaml"
    file.write_text(text := yaml.safe_dump(TINY, default_flow_style=True))
    with pytest.raises(BadInput, match=r"the layout of the file prevents an automatic edit; add 'mine' to enabled"):
        init(str(layout), "mine")
    assert file.read_text() == text


def test_what_init_writes_is_planned(layout: Path, tmp_path: Path) -> None:
    folder = make_project(tmp_path / "project", TINY)
    rest = {key: value for key, value in TINY.items() if key != "enabled"}
    (folder / "pipelines.yaml").write_text("enabled: [small]\n" + yaml.safe_dump(rest))
    result = run(folder, "changepair", "init", str(layout), "--name", "mine")
    assert result.returncode == 0 and "next: `changepair retrain mine`" in result.stdout, result.stderr
    planned = run(folder, "changepair", "plan")
    assert planned.returncode == 0, planned.stderr
    stages = yaml.safe_load((folder / "dvc.yaml").read_text())["stages"]
    assert {"ingest_mine", "score_mine_metric-residual-scales", "report_mine"} <= set(stages)


def _photographed(crop: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A crop under light of another strength and direction."""
    light = rng.uniform(0.6, 1.4) * (1 + rng.uniform(-0.3, 0.3) * np.linspace(-1, 1, crop.shape[1]))
    return np.clip(crop * light, 0, 255)


def _parts(folder: Path, defects: str) -> Path:
    """Crops of gravel. `local`: short dark bars in changing light; `whole`: the whole picture is out of focus."""
    photo, rng = skimage.data.gravel().astype(float), np.random.default_rng(0)

    def crop() -> np.ndarray:
        row, column = rng.integers(0, 512 - 128, 2)
        return photo[row : row + 128, column : column + 128]

    for number in range(4):
        save(crop().astype(np.uint8), folder / "train/good" / f"{number}.png")
    for number in range(12):
        good, bad = crop(), crop()
        if defects == "local":
            good, bad = _photographed(good, rng), _photographed(bad, rng)
            row, column = rng.integers(20, 90, 2)
            bad[row : row + 5, column : column + 24] *= 0.25
        else:
            bad = gaussian_filter(bad, 1.2)
        save(good.astype(np.uint8), folder / "test/good" / f"{number}.png")
        save(bad.astype(np.uint8), folder / "test/bad" / f"{number}.png")
    return folder


@pytest.mark.parametrize("defects", ["local", "whole"])
def test_the_measurement_chooses_between_the_variants_that_init_writes(project: Path, defects: str) -> None:
    """The self-residual helps with local defects in changing light, and hurts where the whole picture differs."""
    init(str(_parts(project / defects, defects)), "line")
    mine = read_pipelines().pipelines["line"]
    ingest_folder("line", project / defects, licence="own", places=make_places(Path("data/manifests")))
    files = EpisodeFiles.of(Path("data/episodes"), "line")
    sample(mine.sampling, Use((), ("line",)), manifests=Path("data/manifests"), files=files)
    models, scores = Path("data/models"), Path("data/scores")
    for name in mine.trained:
        use_model(name, mine.detectors[name], models / name)
    scoring = Scoring(mine.detectors, mine.evaluation, files, models, scores, Path("data/checkpoints"))
    for name in mine.detectors:
        score_detector(name, scoring)
    results = results_of(measure({name: scores / name for name in mine.detectors}, files, mine.evaluation), protocols_of(files.episodes))
    choice = choose(results.draws, mine.promotion, mine.trained)
    means, episodes = {}, read_episodes(files.episodes)
    for name in mine.detectors:
        items = read_scored(scores / name)
        means[name] = np.mean([roc_auc_score(episodes[item.number].labels, item.scores) for item in items])
    assert choice is not None and choice.detector == max(means, key=means.__getitem__)
    assert choice.value == pytest.approx(max(means.values()))
    gain = means["patch-residual-self"] - means["patch-residual"]
    assert gain > 0.04 if defects == "local" else gain < -0.08
