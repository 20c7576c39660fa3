"""The site opens from disk: its search finds pages without a server and without a network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from browser import browser, installed, requests
from conftest import ROOT
from processes import within


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
