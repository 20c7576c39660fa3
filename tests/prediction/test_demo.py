"""The page of `changepair demo`: real uploads in a real Chromium, real answers."""

from __future__ import annotations

import csv
import io
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import skimage.data
from browser import browser, installed, requests
from conftest import save
from gradio_client import Client
from PIL import Image
from predictors import small
from processes import within
from servers import free_port

from changepair.flows.prediction.demo import Session, make_page
from changepair.flows.prediction.examples import EXAMPLES, FALSE_ALARM, FOUND, MISSED, RATE
from changepair.flows.prediction.histogram import ANOMALOUS_COLOUR, NORMAL_COLOUR, histogram
from changepair.flows.prediction.page import MOST_BODY, MOST_FIELD, Memory, gradio_in
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.sheets import heated
from changepair.tasks.prediction import costs
from changepair.tasks.prediction.costs import Costs, bytes_of
from changepair.tasks.prediction.memory import needs_of
from changepair.tasks.prediction.outputs import blended
from changepair.tasks.prediction.predictor import Predictor

BIN = Path(sys.executable).parent


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes], Path]]:
    """The page with the model that comes with the package, in a process of its own: its address, process and folder for files."""
    port = free_port()
    with (folder / "log").open("wb") as log:
        command = [str(BIN / "changepair"), "demo", "--port", str(port)]
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env={**os.environ, "TMPDIR": str(folder)})
    try:
        within(90, lambda: b"serving the page at" in (folder / "log").read_bytes() or process.poll() is not None)
        assert process.poll() is None, (folder / "log").read_text()
        yield f"http://127.0.0.1:{port}", process, folder
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, subprocess.Popen[bytes], Path]]:
    with served(tmp_path_factory.mktemp("demo")) as page:
        yield page


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, texture = tmp_path_factory.mktemp("pictures"), skimage.data.gravel()
    save(texture[:200, :200], folder / "normal.png")
    save(texture[200:400, 100:300], folder / "good.png")
    hole = texture[100:300, 250:450].copy()
    hole[80:120, 80:120] = 10
    save(hole, folder / "hole.png")
    return folder


@pytest.fixture
def driver(page: tuple[str, Any, Path], tmp_path: Path) -> Iterator[Any]:
    with browser(tmp_path / "profile", width=1280, height=1000) as driver:
        driver.get(page[0])
        within(30, lambda: driver.find_elements("css selector", "#normal input[type=file]"))
        yield driver


def upload(driver: Any, where: str, *files: Path) -> None:
    within(20, lambda: driver.find_elements("css selector", f"#{where} input[type=file]"))[0].send_keys("\n".join(map(str, files)))


def text(driver: Any, where: str) -> str:
    return str(driver.find_element("css selector", f"#{where}").text)


def _redness_of_the_hole(address: str) -> float:
    shown = np.asarray(Image.open(io.BytesIO(httpx.get(address).content)).convert("RGB"), dtype=float)
    assert shown.shape[:2] == (200, 200)
    redness = shown[..., 0] - shown[..., 2]
    return float(redness[80:120, 80:120].mean() - redness[:60, :60].mean())


@installed
def test_an_upload_is_answered_with_the_detectors_own_score(driver: Any, pictures: Path) -> None:
    upload(driver, "normal", pictures / "normal.png")
    within(30, lambda: "1 normal picture loaded" in text(driver, "ready"))
    upload(driver, "queries", pictures / "hole.png", pictures / "good.png")
    within(20, lambda: len(driver.find_elements("css selector", "#queries img")) == 2)
    driver.find_element("css selector", "#check").click()
    verdict = within(30, lambda: "ms per picture" in text(driver, "verdict") and text(driver, "verdict"))
    expected = Predictor.load().prompt(pictures / "normal.png")([pictures / "hole.png", pictures / "good.png"]).scores
    assert [float(number) for number in re.findall(r"0\.\d{6}", verdict)] == pytest.approx(expected, abs=1e-6)
    before = within(20, lambda: [image.get_attribute("src") for image in driver.find_elements("css selector", "#found img")])
    assert _redness_of_the_hole(before[0]) > 50
    slider = driver.find_element("css selector", "#strength input[type=number]")
    slider.clear()
    slider.send_keys("0\t")
    # Emptying the field is an event of its own, and the second may come while the first is answered.
    first = "return document.querySelector('#found img')?.src ?? ''"
    within(20, lambda: (address := driver.execute_script(first)) not in ("", before[0]) and _redness_of_the_hole(address) < 5)
    upload(driver, "queries", pictures / "good.png")  # the prompts are kept for the next
    foreign = [url for url in requests(driver) if "//127.0.0.1:" not in url]
    assert not foreign


@installed
@pytest.mark.parametrize("width", [1280, 390])
def test_an_example_is_answered_without_an_upload(page: tuple[str, Any, Path], tmp_path: Path, width: int) -> None:
    with browser(tmp_path / "profile", width=width, height=1000) as driver:
        driver.get(page[0])
        within(30, lambda: driver.find_elements("css selector", "#example-brick"))
        time.sleep(1)  # a button is there before it does anything
        driver.find_element("css selector", "#example-brick").click()
        verdict = within(60, lambda: "Ground truth" in text(driver, "verdict") and text(driver, "verdict"))
        assert "Normal" in verdict and "defect missed" in verdict
        assert driver.find_elements("css selector", "#histogram svg line[stroke-dasharray]")  # the threshold
        caption = within(20, lambda: driver.find_elements("css selector", "#found .caption-label"))[0]
        assert caption.text.endswith(", normal")
        cut = "const one = arguments[0]; return one.scrollWidth > one.clientWidth || one.scrollHeight > one.clientHeight"
        assert not driver.execute_script(cut, caption)
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
        driver.find_element("css selector", "#check").click()  # the threshold is kept
        within(30, lambda: "Ground truth" not in text(driver, "verdict") and "threshold" in text(driver, "verdict"))


def test_the_packaged_detector_has_the_stated_outcome_on_each_example(tmp_path: Path) -> None:
    predictor = Predictor.load()
    for example in EXAMPLES:
        normal, query = example.write(tmp_path)
        threshold = predictor.prompt([normal]).calibrate(example.normals(), false_alarms=RATE)
        [score] = predictor([query]).scores
        assert f"Result: {example.outcome}." in example.result(threshold.exceeded(score)), example.title
    assert {example.outcome for example in EXAMPLES} == {FOUND, MISSED, FALSE_ALARM}


def test_a_histogram_shows_normal_scores_the_threshold_and_checked_scores() -> None:
    drawn = histogram([0.1, 0.11, 0.12], 0.15, [0.14, 0.3], "3 <normal> pictures")
    assert drawn.count("<rect") == 3 and drawn.count("stroke-dasharray") == 1 and "3 &lt;normal&gt; pictures" in drawn
    assert drawn.count(f'fill="{NORMAL_COLOUR}"') == drawn.count(f'fill="{ANOMALOUS_COLOUR}"') == 1
    assert "<svg" in histogram([0.1], 0.1, [0.1], "1 normal picture")  # all scores are equal


@installed
def test_what_is_no_picture_is_told_in_a_line_and_no_path_is_shown(
    driver: Any, page: tuple[str, Any, Path], tmp_path: Path, pictures: Path
) -> None:
    (tmp_path / "broken.png").write_bytes((pictures / "normal.png").read_bytes()[:3000])
    upload(driver, "normal", pictures / "normal.png")
    within(30, lambda: "1 normal picture loaded" in text(driver, "ready"))
    upload(driver, "queries", pictures / "good.png", tmp_path / "broken.png", pictures / "hole.png")
    within(20, lambda: len(driver.find_elements("css selector", "#queries img")) == 3)
    driver.find_element("css selector", "#check").click()
    told = within(30, lambda: "truncated" in text(driver, "verdict") and text(driver, "verdict"))
    assert len(re.findall(r"0\.\d{6}", told)) == 2 and "Skipped: broken.png: truncated" in told  # and the others have their scores
    shown = driver.find_element("css selector", "body").text
    assert not re.search(r"[0-9a-f]{64}", shown) and str(page[2]) not in shown and "Traceback" not in (page[2] / "log").read_text()


@installed
def test_a_folder_is_scored_and_downloaded(driver: Any, pictures: Path) -> None:
    upload(driver, "normal", pictures / "normal.png")
    within(30, lambda: "1 normal picture loaded" in text(driver, "ready"))
    driver.find_element("xpath", "//button[contains(., 'Check a folder')]").click()
    upload(driver, "folder", pictures)
    within(20, lambda: text(driver, "folder").count("KB") == 3)
    driver.find_element("css selector", "#check-all").click()
    within(30, lambda: "3 pictures scored" in text(driver, "summary"))
    link = within(20, lambda: driver.find_elements("css selector", "#download a[href]"))[0].get_attribute("href")
    archive = zipfile.ZipFile(io.BytesIO(httpx.get(link).content))
    rows = list(csv.DictReader(io.StringIO(archive.read("scores.csv").decode())))
    assert {row["picture"] for row in rows} == {"normal.png", "good.png", "hole.png"}
    assert len([name for name in archive.namelist() if name.startswith("maps/") and name.endswith(".png")]) == 3


def test_the_page_is_on_loopback_and_its_files_are_gone_when_it_ends(tmp_path: Path) -> None:
    with served(tmp_path) as (url, process, folder):
        assert httpx.get(url).status_code == 200
        port = url.rsplit(":", 1)[1]
        taken = subprocess.run([str(BIN / "changepair"), "demo", "--port", port], capture_output=True, text=True)
        assert taken.returncode == 2 and "cannot listen at this address" in taken.stderr and taken.stderr.count("\n") == 1
        assert list(folder.glob("changepair-demo-*"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 143 and not list(folder.glob("changepair-demo-*"))


# -- the memory of the page ------------------------------------------------------------------------------------------------------------


class Steps:
    """The functions of a page with a small detector, in this process. memory: bytes in addition to the detector's."""

    def __init__(self, work: Path, memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GRADIO_TEMP_DIR", str(work))
        monkeypatch.setattr(costs, "growth_of", lambda _work: 0)  # the activations are far larger than these pictures
        self.predictor, gradio = small(), gradio_in(work)
        self.error = gradio.Error
        page = make_page(gradio, self.predictor, work, bytes_of([self.predictor]) + memory)
        steps = {block.fn.__name__: block.fn for block in page.fns.values() if block.fn is not None}
        self.prompt, self.show, self.batch = steps["prompt"], steps["show"], steps["batch"]
        self._check = steps["check"]

    def check(self, session: Any, files: list[Path], strength: float = 1.0) -> tuple[list[float], str, list[Any]]:
        """Scores, the whole verdict, and what the gallery shows."""
        _session, verdict, shown, _drawn = self._check(session, tray(*files), strength)
        return [float(number) for number in re.findall(r"0\.\d{6}", verdict)], verdict, shown


def tray(*files: Path) -> list[tuple[str, None]]:
    return [(str(file), None) for file in files]


def wide(file: Path, number: int, side: int = 1100) -> Path:
    return save(np.resize(np.roll(skimage.data.gravel(), 40 * number, axis=0), (side, side)), file)


def test_pictures_that_do_not_fit_together_are_scored_one_by_one_and_those_that_never_fit_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures: Path
) -> None:
    files = [wide(tmp_path / f"{number}.png", number) for number in range(3)]
    needs = [needs_of(file.read_bytes()) for file in files]
    kept = 5 * 2 * 3 * 1024**2
    of_small = Costs.of(small(), prompts=1)
    alone = of_small.predicting(small().prompt(pictures / "normal.png"), needs[:1]) + kept
    steps = Steps(tmp_path / "work", alone + 1_000_000, monkeypatch)
    session, _ready = steps.prompt(tray(pictures / "normal.png"))
    large = save(np.zeros((2500, 2500), np.uint8), tmp_path / "large.png")
    scores, verdict, shown = steps.check(session, [files[0], large, files[1], pictures / "hole.png", files[2]])
    expected = small().prompt(pictures / "normal.png")([*files[:2], pictures / "hole.png", files[2]]).scores
    assert scores == pytest.approx(expected, abs=5e-6)  # batches of one
    assert re.search(r"Skipped: large\.png: needs 0\.\d+ GB of memory, more than the 0\.\d+ GB that the page has", verdict)
    assert [caption.split(":")[0] for _picture, caption in shown] == ["0.png", "1.png", "hole.png", "2.png"]
    assert session.size < kept
    summary, archive = steps.batch(session, [str(file) for file in (*files, large)], lambda _share: None)
    with zipfile.ZipFile(archive) as opened:
        rows = list(csv.DictReader(io.StringIO(opened.read("scores.csv").decode())))
    assert [row["picture"] for row in rows] == [f"{number}.png" for number in range(3)] and "Skipped: large.png: needs" in summary
    assert [float(row["score"]) for row in rows] == pytest.approx([*expected[:2], expected[3]], abs=5e-6)


def test_prompts_that_do_not_fit_are_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(tmp_path / "work", 30_000_000, monkeypatch)
    large = save(np.zeros((3000, 3000), np.uint8), tmp_path / "large.png")
    with pytest.raises(steps.error) as refused:
        steps.prompt(tray(large))
    assert re.fullmatch(r"normal pictures: needs 0\.\d+ GB .* start the page with more --memory", refused.value.message)


def test_a_detector_that_leaves_no_memory_is_refused_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match=r"the detector and one batch need .* increase --memory"):
        Steps(tmp_path, 0, monkeypatch)


def test_sessions_are_dropped_when_their_memory_is_needed_the_longest_unused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures: Path
) -> None:
    files = [wide(tmp_path / f"{number}.png", number) for number in range(4)]
    needs = [needs_of(file.read_bytes()) for file in files]
    one = Costs.of(small(), prompts=1).predicting(small().prompt(pictures / "normal.png"), needs) + 4 * 2 * 3 * 1024**2
    steps = Steps(tmp_path / "work", one + 60_000_000, monkeypatch)  # a session keeps 25 MB
    first, second, third, fourth = (steps.prompt(tray(pictures / "normal.png"))[0] for _visitor in range(4))
    for session in (first, second, first, third):
        steps.check(session, files)
    assert not any(session.dropped for session in (first, second, third, fourth))
    steps.check(first, files)
    assert [session.dropped for session in (first, second, third, fourth)] == [False, True, False, True]
    assert second.size == fourth.size == 0 and first.size == third.size > 24_000_000
    with pytest.raises(steps.error, match="your normal pictures were dropped to free memory for other visitors"):
        steps.check(second, files)
    assert steps.show(second, 0.5) == []
    again, _ready = steps.prompt(tray(pictures / "normal.png"))
    assert steps.check(again, files)[0] == steps.check(third, files)[0]


def test_a_session_of_a_kit_keeps_its_prompts(pictures: Path) -> None:
    own = small().prompt(pictures / "normal.png")
    session = Session(own)
    session.drop()
    assert not session.dropped and session.predictor is own


def test_memory_that_a_forgotten_session_held_is_free(pictures: Path) -> None:
    memory = Memory(1000)
    sessions = [Session(small(), 400) for _visitor in range(2)]
    for session in sessions:
        memory.keep(session)
    del sessions[0], session
    memory.claim(600, "pictures")
    assert not sessions[0].dropped
    with pytest.raises(BadInput, match="pictures: needs"):
        memory.claim(601, "pictures", sessions[0])
    memory.claim(601, "pictures")
    assert sessions[0].dropped and memory.room(sessions[0]) == 1000


def test_the_slider_blends_what_the_overlay_and_the_picture_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures: Path) -> None:
    """A large picture is made small before it is blended, and not after: the results differ by rounding alone."""
    file = wide(tmp_path / "wide.png", 0)
    steps = Steps(tmp_path / "work", 10**9, monkeypatch)
    session, _ready = steps.prompt(tray(pictures / "normal.png"))
    _scores, _verdict, [(whole, _caption)] = steps.check(session, [file])
    [(bare, _caption)], [(half, _caption)] = steps.show(session, 0.0), steps.show(session, 0.5)
    reference = Image.open(file).convert("RGB")
    reference.thumbnail((1024, 1024))
    assert np.array_equal(np.asarray(bare), np.asarray(reference))
    [one] = small().prompt(pictures / "normal.png").each([file])
    drawn = heated(one.picture, one.map, small().prompt(pictures / "normal.png").top)
    for shown, strength in ((whole, 1.0), (half, 0.5)):
        late = Image.fromarray(blended(drawn, one.picture, strength))
        late.thumbnail((1024, 1024))
        apart = np.abs(np.asarray(shown).astype(int) - np.asarray(late).astype(int))
        assert apart.max() <= (4 if strength < 1 else 0) and apart.mean() < 1


def test_no_request_passes_the_queue_or_fills_memory_before_it(page: tuple[str, Any, Path]) -> None:
    url, api = page[0], f"{page[0]}/gradio_api"
    direct = httpx.post(f"{api}/run/check", json={"data": [None, [], 1.0]})
    assert direct.status_code == 404 and "join the queue" in direct.json()["detail"]
    for path in ("queue/join", "component_server", "process_recording"):
        large = httpx.post(f"{api}/{path}", content=bytes(MOST_BODY + 1), headers={"content-type": "application/json"})
        assert large.status_code == 413, path
    field = httpx.post(f"{api}/upload", data={"files": "x" * (MOST_FIELD + 1)}, files={"other": b"x"})
    assert field.status_code == 413 and "a field exceeds" in field.text
    assert httpx.post(f"{api}/upload", files={"files": ("a.png", bytes(MOST_BODY + 1))}).status_code == 200
    picture = {"image": {"path": "http://127.0.0.1:9/a.png", "meta": {"_type": "gradio.FileData"}}, "caption": None}
    with pytest.raises(Exception, match="the page does not read URLs; upload the file"):
        Client(url, download_files=False, verbose=False).predict([picture], api_name="/prompt")
