"""in-use.html: what it says after each kind of decision, and how it looks in a real browser."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from browser import browser, console, installed, requests

from changepair.flows.promotion.history import Model, folder_of, write_current
from changepair.flows.promotion.page import PAGE_NAME, changes, in_use_before, write_page


def model(day: int, auroc: float, **others: object) -> Model:
    made = Model(
        hash=f"{day}" * 32 + ".dir",
        size=1,
        files=1,
        candidate=f"{day}" * 32,
        commit="c" * 40,
        figures={"parts": {"metauas": {"image_auroc": auroc, "pixel_aupro": None}, "patch-residual": {"image_auroc": 0.9}}},
        reason=f"the reason of day {day}",
        time=f"2026-01-0{day}T10:20:30+00:00",
    )
    return replace(made, **others)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("changepair.flows.promotion.page.LISTED", 3)


def text() -> str:
    page = (folder_of("small") / PAGE_NAME).read_text()
    body = page.partition("<body>")[2]
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body.replace("<code>", "").replace("</code>", "")))


def keep(*kept: Model) -> None:
    """Adds decisions to the history as a gate that keeps a model out does."""
    file = folder_of("small") / "history.jsonl"
    file.write_text(file.read_text() + "".join(json.dumps(one.__dict__) + "\n" for one in kept))


def test_before_there_is_a_model_there_is_no_page() -> None:
    write_page("small")
    assert not folder_of("small").exists()


def test_the_first_model_has_nothing_to_be_held_against() -> None:
    write_current("small", model(1, 0.8, reason="the first model of this pipeline", choice="patch-residual, I-AUROC 90.0 %"))
    write_page("small")
    assert "It is model 11111111, made at cccccccc, promoted 2026-01-01 10:20 UTC: the first model of this pipeline." in text()
    assert "Used by patch-residual, I-AUROC 90.0 %." in text() and "This is the first model of the pipeline." in text()


def test_what_was_promoted_is_held_against_what_was_in_use_and_so_is_what_was_kept_out() -> None:
    write_current("small", model(1, 0.8))
    write_current("small", model(2, 0.85))
    write_page("small")
    assert "It is model 22222222, made at cccccccc, promoted 2026-01-02 10:20 UTC: the reason of day 2." in text()
    assert "Decided last" not in text()  # once is enough
    assert "parts metauas I-AUROC 80.0 85.0 +5.0" in text() and "parts patch-residual I-AUROC 90.0 90.0 +0.0" in text()
    assert "P-AUPRO" not in text()  # neither has it
    keep(model(3, 0.7, action="kept", hash=""))
    write_page("small")
    assert "It is model 22222222" in text() and "model 33333333, made at cccccccc was kept out: the reason of day 3." in text()
    assert "in use kept out change" in text() and "parts metauas I-AUROC 85.0 70.0 -15.0" in text()
    write_current("small", model(1, 0.8, action="rolled back", time="2026-01-04T10:20:30+00:00", reason="rolled back from 22222222"))
    write_page("small")
    assert "It is model 11111111, made at cccccccc, rolled back 2026-01-04" in text() and "parts metauas I-AUROC 85.0 80.0 -5.0" in text()
    assert "1 more: changepair history small." in text() and text().count("the reason of day 1") == 0


def test_another_pipeline_of_targets_and_detectors() -> None:
    """What only one of the two has is shown, and not compared."""
    before, now = model(1, 0.8), model(2, 0.9, figures={"cells": {"metauas": {"image_auroc": 0.5}}})
    found = [(one.target, one.detector, one.before, one.now) for one in changes(before, now)]
    assert found == [
        ("cells", "metauas", None, 0.5),
        ("parts", "metauas", 0.8, None),
        ("parts", "patch-residual", 0.9, None),
    ]
    assert in_use_before([before, model(2, 0.1, action="kept"), now]) == before and in_use_before([now]) is None


def test_what_people_wrote_is_text() -> None:
    write_current("small", model(1, 0.8, reason="<script>alert(1)</script>"))
    write_page("small")
    assert "&lt;script&gt;" in (folder_of("small") / PAGE_NAME).read_text()


def test_it_is_written_only_where_it_says_something_else() -> None:
    write_current("small", model(1, 0.8))
    write_page("small")
    file = folder_of("small") / PAGE_NAME
    before = file.stat()
    write_page("small")
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@installed
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_it_opens_in_a_browser_and_fits(tmp_path: Path, width: int, dark: bool) -> None:
    write_current("small", model(1, 0.8))
    write_current(
        "small", model(2, 0.85, reason="metauas I-AUROC 85.0 % against 80.0 %, +5.0 (+1.0 to +9.0) points: not worse by more than 2 points")
    )
    write_page("small")
    file = (folder_of("small") / PAGE_NAME).resolve()
    with browser(tmp_path / "profile", width=width, dark=dark) as driver:
        driver.get(file.as_uri())
        (tmp_path / "page.png").write_bytes(driver.get_screenshot_as_png())
        assert driver.title == "changepair: small, the model in use"
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
        assert len(driver.find_elements("css selector", "article.current")) == 1
        assert [row.text for row in driver.find_elements("css selector", "tbody tr")] == [
            "parts metauas I-AUROC 80.0 85.0 +5.0",
            "parts patch-residual I-AUROC 90.0 90.0 +0.0",
        ]
        assert requests(driver) == [file.as_uri()] and console(driver) == []
