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
from PIL import Image
from processes import within
from servers import free_port

from tasks.prediction.predictor import Predictor

BIN = Path(sys.executable).parent


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes], Path]]:
    """The page with the model that comes with the package, in a process of its own: its address, process and folder for files."""
    port = free_port()
    with (folder / "log").open("wb") as log:
        command = [str(BIN / "changepair"), "demo", "--port", str(port)]
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env={**os.environ, "TMPDIR": str(folder)})
    try:
        within(90, lambda: b"the page is at" in (folder / "log").read_bytes() or process.poll() is not None)
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
    within(30, lambda: "1 normal picture remembered" in text(driver, "ready"))
    upload(driver, "queries", pictures / "hole.png", pictures / "good.png")
    within(20, lambda: len(driver.find_elements("css selector", "#queries img")) == 2)
    driver.find_element("css selector", "#check").click()
    verdict = within(30, lambda: "ms a picture" in text(driver, "verdict") and text(driver, "verdict"))
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
def test_an_example_is_answered_without_an_upload(driver: Any) -> None:
    within(20, lambda: driver.find_elements("css selector", "#example-weave"))
    time.sleep(1)  # a button is there before it does anything
    driver.find_element("css selector", "#example-weave").click()
    within(30, lambda: "1 normal picture remembered" in text(driver, "ready"))
    within(20, lambda: driver.find_elements("css selector", "#queries img"))
    driver.find_element("css selector", "#check").click()
    within(30, lambda: "ms a picture" in text(driver, "verdict"))


@installed
def test_what_is_no_picture_is_told_in_a_line_and_no_path_is_shown(
    driver: Any, page: tuple[str, Any, Path], tmp_path: Path, pictures: Path
) -> None:
    (tmp_path / "broken.png").write_bytes((pictures / "normal.png").read_bytes()[:3000])
    upload(driver, "normal", pictures / "normal.png")
    within(30, lambda: "1 normal picture remembered" in text(driver, "ready"))
    upload(driver, "queries", pictures / "good.png", tmp_path / "broken.png", pictures / "hole.png")
    within(20, lambda: len(driver.find_elements("css selector", "#queries img")) == 3)
    driver.find_element("css selector", "#check").click()
    told = within(30, lambda: "truncated" in text(driver, "verdict") and text(driver, "verdict"))
    assert len(re.findall(r"0\.\d{6}", told)) == 2 and "Left out: broken.png: truncated" in told  # and the others have their scores
    shown = driver.find_element("css selector", "body").text
    assert not re.search(r"[0-9a-f]{64}", shown) and str(page[2]) not in shown and "Traceback" not in (page[2] / "log").read_text()


@installed
def test_a_folder_is_scored_and_downloaded(driver: Any, pictures: Path) -> None:
    upload(driver, "normal", pictures / "normal.png")
    within(30, lambda: "1 normal picture remembered" in text(driver, "ready"))
    driver.find_element("xpath", "//button[contains(., 'A whole folder')]").click()
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
        assert taken.returncode == 2 and "cannot listen there" in taken.stderr and taken.stderr.count("\n") == 1
        assert list(folder.glob("changepair-demo-*"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 143 and not list(folder.glob("changepair-demo-*"))
