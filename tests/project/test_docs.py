"""The pages: the site opens from disk without a network, and what a how-to says works."""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import yaml
from browser import browser, installed, requests
from conftest import ROOT
from prefect.blocks.webhook import Webhook
from prefect.settings import PREFECT_API_URL, temporary_settings
from processes import within
from receiver import receiver
from servers import request

from changepair.flows.runs.states import OF_AN_END, RunState, emit


@installed
def test_the_search_of_the_site_works_from_disk(tmp_path: Path) -> None:
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--config-file", "docs/site.yml", "--site-dir", str(site)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    with browser(tmp_path / "profile") as driver:
        driver.get(f"file://{site}/index.html")
        query = driver.find_element("css selector", "input.md-search__input")
        driver.execute_script("arguments[0].focus()", query)
        query.send_keys("conformal")
        found = within(20, lambda: [one.get_attribute("href") for one in driver.find_elements("css selector", ".md-search-result__link")])
        assert any("evaluation.html" in link or "use.html" in link for link in found)
        assert all(url.startswith("file:") for url in requests(driver))


def test_the_documented_automation_notifies_by_a_webhook(api: str) -> None:
    page = (ROOT / "docs/pages/operations.md").read_text()
    [automation] = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "call-webhook" in block)
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
