"""What people say of a watched line's pictures: the dataset it becomes, and the page that they say it on, in a real Chromium."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
import yaml
from browser import browser, installed
from conftest import TINY, make_project, run, save
from gradio_client import Client
from lines import old, picture, predictor, review_page
from PIL import Image
from processes import within

from changepair.tasks.common.decoding import FULL
from changepair.tasks.common.errors import BadInput
from changepair.tasks.ingestion.listing import DatasetFolder, ListedPicture, Rejected
from changepair.tasks.ingestion.readers.trees import Tree
from changepair.tasks.monitoring.record import Judged, Record, arrived, judge
from changepair.tasks.monitoring.verdicts import Verdicts
from changepair.tasks.prediction.pictures import as_picture


def row(name: str, time: str = "2026-11-26T10:00:00.000+00:00", modified: int = 1) -> Judged:
    return Judged(name, 10, modified, time, 0.5, 0.2, "anomalous", None, "kit-1")


def listed(folder: Path) -> set[tuple[str, str, str]]:
    """What ingestion reads of a folder."""
    items = list(Tree()(DatasetFolder("line", folder, folder / "unused")))
    assert not [item for item in items if isinstance(item, Rejected)]
    return {(item.split, item.defect, item.image.name) for item in items if isinstance(item, ListedPicture)}


def test_verdicts_are_a_dataset_in_mvtec_ads_layout(tmp_path: Path) -> None:
    verdicts, normals = Verdicts(tmp_path / "verdicts"), [save(picture(place), tmp_path / f"{place}.png") for place in range(3)]
    verdicts.has_normals(normals, FULL)
    first, second = row("a/part.png"), row("b/part.jpg")
    verdicts.give(first, as_picture(picture(4)), "good")
    verdicts.give(second, as_picture(picture(5, hole=True)), "broken corner")
    [good, broken] = [f"{one.name}.png" for one in (first, second)]
    normal = {("train", "good", f"{place}_png.png") for place in range(3)}
    assert listed(verdicts.folder) == normal | {("test", "good", good), ("test", "broken corner", broken)}
    assert np.array_equal(np.asarray(Image.open(verdicts.folder / "test/broken corner" / broken))[..., 0], picture(5, hole=True))
    assert (verdicts.of(first), verdicts.of(second), verdicts.of(row("c.png"))) == ("good", "broken corner", None)
    verdicts.give(second, as_picture(picture(5, hole=True)), "good")  # after all
    assert verdicts.counts() == {"good": 2} and not (verdicts.folder / "test/broken corner").exists()
    verdicts.withdraw(second)
    assert verdicts.counts() == {"good": 1} and verdicts.names() == {first.name}


def test_the_normal_pictures_of_the_dataset_are_those_of_now(tmp_path: Path) -> None:
    verdicts, file = Verdicts(tmp_path / "verdicts"), save(picture(0), tmp_path / "0.png")
    verdicts.has_normals([file, save(picture(1), tmp_path / "1.png")], FULL)
    old(save(picture(2), file))  # replaced, by an older one
    verdicts.has_normals([file], FULL)
    [kept] = (verdicts.folder / "train/good").iterdir()
    assert np.array_equal(np.asarray(Image.open(kept))[..., 0], picture(2))


def test_pictures_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """As of a camera that always writes the same file."""
    verdicts = Verdicts(tmp_path)
    for modified in range(3):
        verdicts.give(row("now.png", modified=modified), as_picture(picture(modified)), "good")
    assert verdicts.counts().total() == 3


@pytest.mark.parametrize("name", ["", "..", "a/b", "/etc", " x", "x" * 65, "ä", "."])
def test_a_defects_name_is_a_folders(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is not a valid defect name"):
        Verdicts(tmp_path / "verdicts").give(row("a.png"), as_picture(picture(0)), name)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a line of eight pictures, three of them flagged, that were scored."""
    content = yaml.safe_load(yaml.safe_dump(TINY))
    content["pipelines"]["small"]["watch"] = {"folder": "line", "prompts": "parts/bricks/train/good/0.png", "normals": "normals"}
    folder = make_project(tmp_path_factory.mktemp("review") / "project", content)
    save(picture(0), folder / "normals/0.png")
    for place in range(8):
        old(save(picture(place, hole=place in (1, 4, 6)), folder / f"line/{place}.png"))
    record = Record(folder / "data/watch/small")
    list(judge(predictor(), "kit-1", arrived(folder / "line", record, settled=0), record))
    assert [one.picture for one in record.rows() if one.verdict == "anomalous"] == ["1.png", "4.png", "6.png"]
    return folder


@installed
def test_flagged_pictures_are_confirmed_and_refuted_on_the_page(project: Path, tmp_path: Path) -> None:
    verdicts = Verdicts(project / "data/watch/small/verdicts")
    with review_page(project) as (url, _process), browser(tmp_path / "profile") as driver:

        def text(where: str) -> str:
            return " ".join(element.text for element in driver.find_elements("css selector", f"#{where}"))

        def shown() -> list[str]:
            return [str(image.get_attribute("src")) for image in driver.find_elements("css selector", "#picture img, #overlay img")]

        driver.get(url)
        within(30, lambda: "3 flagged pictures left" in text("progress") and len(shown()) == 2)
        first, before = text("about"), shown()
        assert driver.find_elements("css selector", "#histogram svg line[stroke-dasharray]") and "5 passed pictures" in text("histogram")
        driver.find_element("css selector", "body").send_keys("n")
        within(
            20, lambda: "2 flagged pictures left, 1 labelled: 1 normal" in text("progress") and text("about") != first and shown() != before
        )
        assert verdicts.counts() == {"good": 1}
        defect = driver.find_element("css selector", "#defect input")
        defect.clear()
        defect.send_keys("hole\t")
        driver.find_element("css selector", "#anomalous").click()
        within(20, lambda: "1 flagged picture left, 2 labelled: 1 normal, 1 anomalous" in text("progress"))
        assert verdicts.counts() == {"good": 1, "hole": 1}
        driver.find_element("css selector", "#undo").click()
        within(20, lambda: "2 flagged pictures left, 1 labelled" in text("progress"))
        assert verdicts.counts() == {"good": 1}
        for left in (1, 0):
            within(20, lambda: shown())
            driver.find_element("css selector", "#anomalous").click()
            within(20, lambda left=left: f"{left} flagged picture" in text("progress"))
        within(20, lambda: "No pictures are left" in text("about"))
        driver.find_element("xpath", "//label[contains(., 'passed')]").click()
        within(20, lambda: "5 passed pictures left" in text("progress") and len(shown()) == 1)  # a miss can be told too; it has no map
    for one in Record(project / "data/watch/small").rows():
        verdicts.withdraw(one)


def test_a_picture_that_is_gone_from_the_line_is_still_reviewed_if_it_was_flagged(project: Path, tmp_path: Path) -> None:
    files = list((project / "line").iterdir())
    for file in files:
        file.rename(tmp_path / file.name)
    verdicts = Verdicts(project / "data/watch/small/verdicts")
    with review_page(project) as (url, process):
        client = Client(url, download_files=False, verbose=False)
        assert "**3** flagged" in client.predict("flagged", api_name="/begin")[0]
        with pytest.raises(Exception, match="is not a valid defect name"):
            client.predict("../../x", api_name="/anomalous")
        for _ in range(3):
            said = client.predict("hole", api_name="/anomalous")
        assert "No pictures are left" in said[3] and verdicts.counts() == {"hole": 3}
        passed = client.predict("passed", api_name="/begin")
        assert "no longer exist" in passed[3]
        working = set(project.parent.glob("changepair-review-*"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 143 and len(set(project.parent.glob("changepair-review-*"))) == len(working) - 1
    for one in Record(project / "data/watch/small").rows():
        verdicts.withdraw(one)
    for file in files:
        (tmp_path / file.name).rename(file)


def test_a_picture_that_was_removed_after_it_was_shown_gets_no_label(project: Path, tmp_path: Path) -> None:
    verdicts = Verdicts(project / "data/watch/small/verdicts")
    with review_page(project) as (url, _process):
        client = Client(url, download_files=False, verbose=False)
        name = str(client.predict("passed", api_name="/begin")[3]).split(":")[0]
        (project / "line" / name).rename(tmp_path / name)
        said = client.predict("hole", api_name="/anomalous")
        assert not verdicts.counts() and not str(said[3]).startswith(name) and "threshold" in said[3]
    (tmp_path / name).rename(project / "line" / name)


def test_what_is_wrong_is_told_in_a_line(project: Path, tmp_path: Path) -> None:
    away = run(project, "changepair", "review", "small", "--record", str(tmp_path / "none"))
    assert away.returncode == 2 and "contains no scores yet" in away.stderr and away.stderr.count("\n") == 1
    unknown = run(project, "changepair", "review", "smal")
    assert unknown.returncode == 2 and "did you mean" in unknown.stderr and unknown.stderr.count("\n") == 1
    exposed = run(project, "changepair", "review", "small", "--host", "0.0.0.0", "--port", "0", CHANGEPAIR_API_TOKEN="")
    assert exposed.returncode == 2 and "other machines can reach this address, but no token is set" in exposed.stderr
