"""The pages: the site opens from disk without a network, and what a how-to says works."""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import yaml
from browser import browser, installed, requests
from conftest import ROOT
from prefect.blocks.webhook import Webhook
from prefect.settings import PREFECT_API_URL, temporary_settings
from processes import within
from receiver import receiver
from servers import request

from changepair.flows.runs.states import OF_AN_END, RunState, emit


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site. A broken link or anchor, or a page outside the navigation, fails the build."""
    folder = tmp_path_factory.mktemp("site") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", "docs/site.yml", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_the_site_has_its_four_parts(site: Path) -> None:
    assert {"tutorials", "how-to", "reference", "explanation"} <= {one.name for one in site.iterdir()}
    assert (site / "tutorials/first-answer.html").is_file()


@installed
def test_the_search_of_the_site_works_from_disk(site: Path, tmp_path: Path) -> None:
    """It finds a tutorial, a setting and a name of the API."""
    with browser(tmp_path / "profile") as driver:
        for words, page in (
            ("production line", "tutorials/production-line.html"),
            ("false_alarms", "reference/settings"),
            ("Predictor", "reference/api.html"),
        ):
            driver.get(f"file://{site}/index.html")
            query = driver.find_element("css selector", "input.md-search__input")
            driver.execute_script("arguments[0].focus()", query)
            query.send_keys(words)
            within(20, partial(found, driver, page), f"{page} among the results for {words}")
        driver.get(driver.execute_script(f"return {LINKS}[0]"))  # a result opens from disk too
        assert "predictor" in driver.find_element("css selector", "main").text.lower()
        assert all(url.startswith("file:") for url in requests(driver))


LINKS = "Array.from(document.querySelectorAll('.md-search-result__link'), (one) => one.href)"


def found(driver: Any, page: str) -> bool:
    """Tell whether a page is among the results that are shown."""
    return any(page in link for link in driver.execute_script(f"return {LINKS}"))


def test_the_documented_automation_notifies_by_a_webhook(api: str) -> None:
    pages = "".join(file.read_text() for file in sorted((ROOT / "docs/pages").rglob("*.md")))
    blocks = re.findall(r"^( *)```yaml[^\n]*\n(.*?)^ *```", pages, re.DOTALL | re.MULTILINE)
    [automation] = (yaml.safe_load(dedent(block)) for _indent, block in blocks if "call-webhook" in block)
    reason = 'metauas "may be" worse\nby 2 points'
    with receiver() as server, temporary_settings({PREFECT_API_URL: api}):
        block = Webhook(url=server.url).save("team", overwrite=True)
        automation["actions"][0]["block_document_id"] = str(block)
        made = request("POST", f"{api}/automations/", automation)
        try:
            emit("mine", OF_AN_END[RunState.PROMOTED], {"reason": "better"})
            for _attempt in range(20):  # the server takes a moment to act on a new automation
                emit("mine", OF_AN_END[RunState.KEPT], {"reason": reason})
                with suppress(AssertionError):
                    within(3, lambda: server.received)
                    break
        finally:
            request("DELETE", f"{api}/automations/{made['id']}")
    assert server.received and all(content == {"text": f"mine, changepair.kept: {reason}"} for content in server.received)
