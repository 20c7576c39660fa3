"""The Prefect UI of a retrain as a person opens it: a real server, a real browser. KEEP_SCREENSHOTS names a folder for what it sees."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import browser, installed, requests
from conftest import ROOT, run
from PIL import Image
from processes import wait_until, within
from selenium.webdriver.common.by import By
from servers import AUTHENTICATION, ask, free_port, request
from team import Team

pytestmark = pytest.mark.slow
PAGE = {"width": 1440, "height": 1000}


def runs(api: str, name: str) -> list[dict[str, Any]]:
    """Lists the runs of that name, the oldest first."""
    return sorted((item for item in ask(api, "flow_runs") if item["name"] == name), key=lambda item: item["created"])


def body(driver: Any) -> str:
    return str(driver.execute_script("return document.body.innerText"))


def log_in(driver: Any, url: str, login: str) -> None:
    """Type a login into the server's own page, which keeps it in the browser."""
    driver.get(f"{url}/login")
    field = within(30, lambda: driver.find_elements(By.CSS_SELECTOR, "input"), "the login page")[0]
    field.send_keys(login)
    driver.find_element(By.CSS_SELECTOR, "button[type=submit], form button").click()


def page(driver: Any, url: str, text: str) -> str:
    """Opens a page, waits until it shows `text`, and gives all that it shows."""
    driver.get(url)
    wait_until(lambda: text in body(driver), what=f"{text!r} on {url}")
    time.sleep(1.5)  # the timeline draws itself after the text
    return body(driver)


def screenshot(driver: Any, folder: Path, name: str) -> None:
    """Keeps a picture of the page, of which something must be seen."""
    file = folder / f"{name}.png"
    driver.save_screenshot(str(file))
    colours = {tuple(pixel) for pixel in np.asarray(Image.open(file).convert("RGB"))[::4, ::4].reshape(-1, 3).tolist()}
    assert len(colours) > 50
    if "KEEP_SCREENSHOTS" in os.environ:
        shutil.copyfile(file, Path(os.environ["KEEP_SCREENSHOTS"]) / file.name)


def test_a_run_shows_its_stages_in_order_each_linked_to_its_own_run(team: Team) -> None:
    first = runs(team.api, "retrain small")[0]
    graph = request("GET", f"{team.api}/flow_runs/{first['id']}/graph-v2")
    nodes = sorted((node for _id, node in graph["nodes"]), key=lambda node: node["start_time"])
    assert [node["label"].rpartition(" / ")[2] for node in nodes] == [
        "code",
        "ingest parts",
        *(f"{stage} small" for stage in ("sample", "inpainter", "synthesize")),
        "score small patch-residual",
        "metrics small",
        "report small",
        "promotion gate small",
    ]
    assert all(node["kind"] == "flow-run" for node in nodes[1:-1])  # what the timeline opens: the stage's own run


def test_the_log_has_one_line_a_milestone(team: Team) -> None:
    first = runs(team.api, "retrain small")[0]
    asked = {"logs": {"flow_run_id": {"any_": [first["id"]]}}, "sort": "TIMESTAMP_ASC"}
    lines = [line["message"] for line in request("POST", f"{team.api}/logs/filter", asked)]
    assert len(lines) <= 16 and all("\n" not in line for line in lines), lines
    for stage in ("ingest_parts", "sample_small", "report_small"):
        assert sum(f"Ran('{stage}, " in line for line in lines) == 1


@installed
def test_the_run_page_in_a_browser(team: Team, tmp_path: Path) -> None:
    url, first = team.api.removesuffix("/api"), runs(team.api, "retrain small")[0]
    with browser(tmp_path / "profile", **PAGE) as driver:
        log_in(driver, url, AUTHENTICATION)
        shown = page(driver, f"{url}/runs/flow-run/{first['id']}", "Finished in state Ran('report_small")
        assert "Promoted" in shown and "Subflow Runs" in shown
        screenshot(driver, tmp_path, "ui-run")
        task = next(item for item in ask(team.api, "task_runs") if item["name"] == "metrics_small" and item["flow_run_id"] == first["id"])
        page(driver, f"{url}/runs/task-run/{task['id']}", "metrics_small")
        driver.find_elements(By.XPATH, "//*[text()='Artifacts']")[-1].click()
        own = next(item for item in ask(team.api, "flow_runs") if item["parent_task_run_id"] == task["id"])
        links = lambda: [link.get_attribute("href") for link in driver.find_elements(By.LINK_TEXT, "run of metrics small")]  # noqa: E731
        wait_until(lambda: links() == [f"{url}/runs/flow-run/{own['id']}"], what="the link to the stage's run")
        assert all(asked.startswith((url, "blob:")) for asked in requests(driver)), set(requests(driver))


@installed
def test_an_artifact_and_its_versions_in_a_browser(team: Team, tmp_path: Path) -> None:
    url = team.api.removesuffix("/api")
    versions = [item for item in ask(team.api, "artifacts") if item["key"] == "small-results"]
    assert len(versions) == 2
    with browser(tmp_path / "profile", **PAGE) as driver:
        log_in(driver, url, AUTHENTICATION)
        shown = page(driver, f"{url}/artifacts/key/small-results", "metrics small")
        assert shown.count("metrics small") == 2
        shown = page(driver, f"{url}/artifacts/artifact/{versions[0]['id']}", "patch-residual")
        assert "class-specific" in shown and "±" in shown
        screenshot(driver, tmp_path, "ui-artifact")
        overlays = next(item for item in ask(team.api, "artifacts") if item["key"] == "small-overlays-parts")
        page(driver, f"{url}/artifacts/artifact/{overlays['id']}", "small-overlays-parts")
        wait_until(lambda: driver.execute_script("return [...document.images].some(i => i.naturalWidth > 200)"), what="the picture")


def test_the_server_listens_on_loopback_and_asks_for_a_password_before_it_does_on_more(tmp_path: Path) -> None:
    result = run(ROOT, "changepair", "ui", "--host", "0.0.0.0", "--port", str(free_port()))
    assert result.returncode == 2 and "PREFECT_SERVER_API_AUTH_STRING" in result.stderr


def test_a_port_that_is_taken_is_told_in_one_line(team: Team) -> None:
    result = run(ROOT, "changepair", "ui", "--port", team.api.removesuffix("/api").rpartition(":")[2])
    told = result.stderr.splitlines()[-1]
    assert result.returncode == 2 and "cannot listen at this address" in told and "another server runs there" in told
