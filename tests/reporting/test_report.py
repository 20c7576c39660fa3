"""report.html: what is in it, and how it looks and works in a real browser."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from browser import browser, console, installed, requests
from conftest import make_layout, make_places, save, scored
from PIL import Image

from changepair.tasks.detectors.metauas.settings import MetaUASSettings
from changepair.tasks.detectors.residual.settings import PatchResidualSettings
from changepair.tasks.detectors.store import create_detector
from changepair.tasks.encoders.build import build_encoder
from changepair.tasks.encoders.settings import EncoderSettings
from changepair.tasks.ingestion.ingest import ingest_folder
from changepair.tasks.reporting.advice import LEAST_SPLIT
from changepair.tasks.reporting.curves import Curves, curves_of
from changepair.tasks.reporting.galleries import KINDS, galleries_of
from changepair.tasks.reporting.report import PUBLISHED, Inputs, Origin, markdown, published_rows, write_report
from changepair.tasks.sampling.episodes import EpisodeFiles, protocols_of, read_episodes, read_pictures
from changepair.tasks.sampling.sample import sample
from changepair.tasks.sampling.settings import SamplingSettings, Use
from changepair.tasks.scoring.decision import PromotionSettings
from changepair.tasks.scoring.measure import measure
from changepair.tasks.scoring.metrics import METRICS
from changepair.tasks.scoring.operating import kinds_of, operating_rows
from changepair.tasks.scoring.recommendation import recommend
from changepair.tasks.scoring.results import Results, results_of
from changepair.tasks.scoring.robustness import RobustnessRow
from changepair.tasks.scoring.score import Contender
from changepair.tasks.scoring.scores import ScoresFolder, read_scored, read_scores
from changepair.tasks.scoring.settings import EvaluationSettings
from changepair.tasks.training.log import LogLine, write_log


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    """The report of two untrained detectors on real textures, which calls them MVTec AD so that published metrics are listed."""
    folder = tmp_path_factory.mktemp("report")
    layout, manifests = make_layout(folder / "parts"), folder / "manifests"
    files = EpisodeFiles.of(folder / "episodes", "small")
    ingest_folder("parts", layout, licence="own", places=make_places(manifests))
    (folder / "other/train/good").mkdir(parents=True)
    (folder / "other/train/good/0.png").write_bytes((layout / "bricks/train/good/0.png").read_bytes() + b"\0")
    (folder / "other/train/good/broken.png").write_bytes(b"not a picture")
    ingest_folder("other", folder / "other", licence="own", places=make_places(manifests))
    sample(SamplingSettings(shots=(1, 2), seeds=(0, 1)), Use(("other",), ("parts",)), manifests=manifests, files=files)
    torch.manual_seed(1)  # of MetaUAS, which has learnt nothing: worse than patch residual here
    encoder = build_encoder(EncoderSettings(), 64)
    detectors = {
        "patch-residual": create_detector(PatchResidualSettings(resolution=64), encoder),
        "metauas": create_detector(MetaUASSettings(resolution=64, decoder_channels=(16,) * 5), encoder),
    }
    contenders = [Contender(name, detector.eval(), 64, None, ScoresFolder(folder / "work" / name)) for name, detector in detectors.items()]
    scores = scored(contenders, files, folder / "scores")
    measured = measure(scores, files, EvaluationSettings(resolution=64))
    results = results_of(measured, protocols_of(files.episodes))
    table = pa.concat_tables([read_scores(place) for place in scores.values()])
    curves_of(measured, table, results.rows, protocols_of(files.episodes)).write(folder / "curves")
    pairs, models = folder / "overview", folder / "models"
    save(np.zeros((8, 8), dtype=np.uint8), pairs / "appearance.png")
    (pairs / "kinds.csv").write_text("kind,pairs\nappearance,30\nnone,10\n")
    (pairs / "changed_area.csv").write_text("changed_area,pairs,appearance\n0.01,30,30\n")
    (pairs / "drops.csv").write_text("reason,draws\nlocal-region: nothing changed,7\n")
    write_log(models / "metauas", [LogLine(10, 0, 0.5, 0.1), LogLine(20, 0, 0.4, 0.1, 0.45)])
    file = folder / "report.html"
    operating = operating_rows(
        {name: read_scored(place) for name, place in scores.items()},
        read_episodes(files.episodes),
        kinds_of(read_pictures(files.targets)),
    )
    recommendation = recommend(
        results.draws,
        results.shared,
        read_episodes(files.episodes),
        {name: list(read_scored(place)) for name, place in scores.items()},
        PromotionSettings(),
        ["metauas"],
        robustness=robustness(),
    )
    write = partial(
        write_report,
        origin=Origin(
            "small",
            {"targets": ["parts"], "note": "<b>not HTML</b>"},
            {"parts": "mvtec-ad"},
            {"data/x": "f00d"},
            {"dvc": "3"},
        ),
        inputs=Inputs(pairs, [models / name for name in ("metauas",)], folder / "inpainter", files.rejected, files.near_duplicates),
        metrics=results.rows,
        comparisons=results.comparisons,
        recommendation=replace(recommendation, robustness=()),
        curves=Curves.read(folder / "curves"),
        galleries=galleries_of(scores, files, 2),
        evaluation=EvaluationSettings(resolution=256),
        scores=scores,
        trained=["metauas"],
        undefined=["category x of parts: all 4 test pictures are anomalous"],
    )
    write(file, operating=operating)
    write(folder / "robust.html", operating=operating, robustness=robustness(), recommendation=recommendation)
    write(folder / "many.html", operating=[replace(row, pictures=LEAST_SPLIT) for row in operating])
    return file, results


def robustness() -> list[RobustnessRow]:
    """Both detectors at both numbers of shots under three perturbations. Patch residual flags 37.5 % under JPEG at one shot."""
    return [
        RobustnessRow("parts", category, detector, "class-specific", shots, name, 0.01, 0.0125, *shares, 0.6, 80)
        for detector in ("patch-residual", "metauas")
        for shots in (1, 2)
        for category in ("", "bricks")
        for name, shares in {
            "jpeg-50": (0.375, 0.27, 0.49) if detector == "patch-residual" and shots == 1 else (0.05, 0.014, 0.123),
            "noise-15": (0.2, 0.119, 0.304),
            "rotation-15": (0.9, 0.812, 0.956),
        }.items()
    ]


def test_the_report_shows_what_detectors_flag_under_perturbations(report: tuple[Path, Results]) -> None:
    page, without = (report[0].with_name(name).read_text() for name in ("robust.html", "report.html"))
    assert "obustness" not in without and "perturbation" not in without.partition("<details><summary>Settings")[0]
    short, section = page.partition('id="summary"')[2].partition('id="metrics"')[0], page.partition('id="robustness"')[2]
    assert '<p class="high">Not robust: patch-residual flags 38 % of normal pictures under jpeg-50. See <a' in short
    main, others = section.partition("Other numbers of shots")[::2]
    heads = re.findall(r"<th[^>]*>([^<]*)</th>", main.partition("</thead>")[0])
    assert heads == ["detector", "shots", "unchanged", "jpeg-50", "noise-15", "rotation-15", "pictures"]
    [patch, metauas] = re.findall(r"<tr>(<td.*?)</tr>", main.partition("<tbody>")[2].partition("</tbody>")[0], re.DOTALL)
    cells = [re.sub(r"<[^>]+>", " ", cell).split() for cell in patch.split("</td>")[:-1]]
    assert cells[:4] == [["patch-residual"], ["1"], ["1.2"], ["37.5", "27.0", "to", "49.0", "AUROC", "60"]] and cells[-1] == ["80"]
    assert (patch.count('class="high"'), metauas.count('class="high"')) == (2, 1)  # 37.5 and 90; 20 is not above 20
    assert others.partition("</table>")[0].count("<td>2</td>") == 2
    chart = re.search(r'src="data:image/svg\+xml;base64,([^"]*)" alt="normal pictures flagged under perturbations, parts, 1 shot"', section)
    assert chart is not None
    svg = base64.b64decode(chart[1]).decode()
    for text in ("jpeg-50", "rotation-15", "patch-residual", "metauas", "target false-alarm rate", "normal pictures flagged, %"):
        assert f">{text}</text>" in svg


def test_the_chart_of_robustness_has_the_measured_shares() -> None:
    """Read from the axes themselves: points, their intervals, and the lines of the target rate and of 20 %."""
    from matplotlib.figure import Figure

    from changepair.tasks.reporting.charts import _robustness

    axes, rows = Figure().add_subplot(), [row for row in robustness() if not row.category and row.shots == 1]
    _robustness(axes, pd.DataFrame([vars(row) for row in rows]))
    drawn = {container.get_label(): container[0].get_xdata().tolist() for container in axes.containers}
    names = ("patch-residual", "metauas")
    assert drawn == {name: pytest.approx([100 * row.flagged for row in rows if row.detector == name]) for name in names}
    ends = [segment[:, 0].tolist() for segment in axes.containers[0][2][0].get_segments()]
    assert ends == [pytest.approx([100 * row.low, 100 * row.high]) for row in rows if row.detector == "patch-residual"]
    assert [line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 2] == pytest.approx([1, 20])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["jpeg-50", "noise-15", "rotation-15"]


def test_it_holds_all_there_is_to_know(report: tuple[Path, Results]) -> None:
    file, results = report
    page = file.read_text()
    short = page.partition('id="summary"')[2].partition('id="metrics"')[0]
    for row in results.rows:
        assert f"{100 * row.mean:.1f} ± {100 * row.std:.1f}<small>{100 * row.low:.1f} to {100 * row.high:.1f}</small>" in page
    for name in ("ROC curve, images", "Precision-recall curve", "Per-region overlap", "Image scores at the most shots", "Metrics by shots"):
        assert name in page
    assert page.count("data:image/svg+xml") == 4 * 2 + 7 + 1  # four kinds of each detector, a metric by shots each, a training
    gallery = page.count("<figcaption") - short.count("<figcaption")
    assert 2 * 3 <= gallery <= 2 * 4 * 2 and 1 <= short.count("<figcaption") <= 2  # of each detector up to two of each kind
    assert "has the highest mean image AUROC over targets" in short and "I-AUROC" not in short
    labels = "</span><span>".join(("normal prompt", "query with the clearest defect", "mask", "anomaly map"))
    assert f'<figcaption class="labels"><span>{labels}</span></figcaption>' in short
    assert page.count("data:image/jpeg") == page.count("<figcaption") + 2  # and the contact sheet and the colour scale
    assert all(f"<h3>{kind}</h3>" in page for kind in KINDS) and "the threshold of best F1" in page
    assert "train/good/broken.png" in page and "local-region: nothing changed" in page and "<td>7</td>" in page
    assert "-S f00d -- dvc.lock" in page and "f00d" in page and "torch" in page and "&lt;b&gt;not HTML&lt;/b&gt;" in page
    best = max((row for row in results.rows if row.metric == "image_auroc" and not row.category), key=lambda row: row.mean)
    assert (
        "<strong>Not ready: " in short and f"Recommended: {best.detector} with 1 normal picture." in short
    )  # two are no better by a point
    assert "Thresholds of 2 categories, target false-alarm rate 33 %" in short  # two normal test pictures each
    assert "<code>changepair predict --model small --category parts/bricks part.png</code>" in short
    assert "Add normal test pictures. 2 of bricks set the threshold now; a false-alarm rate of 1 of 100 needs 99." in page
    assert best.detector == "patch-residual" and "Skip training metauas" in page
    assert page.count("<td>33 %</td>") == 2 and "<li>category x of parts: all 4 test pictures are anomalous.</li>" in page
    main = page.partition('id="compared"')[2].partition("<details>")[0]
    assert main.count("<tr><td") == 2 and "I-AUROC" in main and "P-AUPRO" in main  # one pair of detectors, at the fewest shots
    assert "normal, flagged" not in page and "needs at least 20 of them. This target has 4." in page
    many = file.with_name("many.html").read_text()
    assert "normal, flagged" in many and "hole, missed" in many and "needs at least 20" not in many
    assert "<h1>changepair: small</h1>" in page and "2 detectors on parts." in page  # one target: its name is not repeated
    assert '<h2 id="target-1">Details</h2>' in page and "The protocol is class-specific." in page
    assert "90.7 ± 0.7" in page and "arXiv 2505.09265" in page and "published</code> follows them" in page
    assert "Pixel metrics use 256×256 pixels. A pixel is anomalous if it covers an anomalous pixel of the mask." in page
    assert "Other protocols give the same metrics as class-specific and are left out" in page and ">class-agnostic<" not in page
    assert ">nan" not in page.lower()
    assert markdown(results.rows).count("\n| parts |") == 8


def test_published_metrics_are_listed_for_the_same_protocol_and_resolution_only() -> None:
    assert [row.name for row in published_rows("mvtec-ad", 256, [("class-specific", 1)])] == [
        "MetaUAS, 256",
        "MetaUAS, retrained by others",
    ]
    assert published_rows("mvtec-ad", 256, [("class-specific", 2)]) == published_rows("elpv", 256, [("class-specific", 1)]) == []
    assert published_rows("mvtec-ad", 512, [("class-specific", 1)]) == [] and len(published_rows("visa", 512, [("class-specific", 1)])) == 1
    assert all(set(row.metrics) == set(METRICS) and row.source for row in PUBLISHED)


def test_the_curves_are_tables_that_dvc_draws(report: tuple[Path, Results]) -> None:
    file, _results = report
    heads = {table.stem: table.read_text().splitlines()[0] for table in sorted((file.parent / "curves").iterdir())}
    assert heads == {
        "histogram": "target,detector,label,score,share",
        "pr": "target,detector,shots,recall,precision",
        "pro": "target,detector,shots,false_positive_rate,overlap",
        "roc": "target,detector,shots,false_positive_rate,true_positive_rate",
        "shots": "target,detector,metric,low,high,shots,mean",
    }
    assert "nan" not in "".join(table.read_text() for table in (file.parent / "curves").iterdir()).lower()


def variety(png: bytes) -> int:
    """Counts the colours a screenshot has: a blank one has one."""
    with Image.open(io.BytesIO(png)) as image:
        return len(image.convert("RGB").resize((200, 200)).getcolors(40_000) or [])


@installed
@pytest.mark.parametrize("name", ["report.html", "robust.html"])
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_it_opens_in_a_browser_without_an_error_and_without_asking_for_anything(
    report: tuple[Path, Results], tmp_path: Path, width: int, dark: bool, name: str
) -> None:
    file = report[0].with_name(name)
    with browser(tmp_path / "profile", width=width, dark=dark) as driver:
        driver.get(file.as_uri())
        assert driver.title == "changepair: small"
        (tmp_path / "page.png").write_bytes(driver.get_screenshot_as_png())
        assert variety((tmp_path / "page.png").read_bytes()) > 100
        ground = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert ground == ("rgb(22, 24, 27)" if dark else "rgb(255, 255, 255)")
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
        driver.execute_script("document.querySelectorAll('details').forEach(part => part.open = true)")
        wide = (
            "return [...document.querySelectorAll('*')]"
            ".filter(e => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX != 'visible')"
        )
        if width < 600:  # readable on a phone: nothing scrolls sideways, and the first screen has the metric and a picture
            assert driver.execute_script(f"{wide}.map(e => e.outerHTML.slice(0, 80))") == []
            driver.execute_script("scrollTo(0, 0)")
            verdict, picture = (driver.find_element("css selector", f".verdict {part}").rect for part in ("strong", "img"))
            assert max(verdict["y"] + verdict["height"], picture["y"] + picture["height"]) < 844
        driver.find_element("css selector", "nav a[href='#compared']").click()  # what a link leads to is not below the bar
        top, bar = (driver.find_element("css selector", name).rect for name in ("#compared", "nav"))
        assert top["y"] >= bar["y"] + bar["height"]
        driver.execute_script(
            "document.querySelectorAll('details').forEach(part => part.open = true); window.scrollTo(0, document.body.scrollHeight)"
        )
        broken = "return [...document.images].filter(i => { i.loading = 'eager'; return i.complete && !i.naturalWidth }).map(i => i.alt)"
        assert driver.execute_script(broken) == []
        assert requests(driver) == [file.as_uri()]
        assert console(driver) == []


@installed
def test_tables_sort_and_filter(report: tuple[Path, Results], tmp_path: Path) -> None:
    file, _results = report
    with browser(tmp_path / "profile") as driver:
        driver.get(file.as_uri())
        column = (
            "return [...document.querySelector('table.sortable').tBodies[0].rows]"
            ".filter(row => !row.hidden).map(row => row.cells[arguments[0]].textContent)"
        )
        head: Any = driver.find_elements("css selector", "table.sortable thead button")
        assert [button.text for button in head][:5] == ["detector", "shots", "I-AUROC", "I-AP", "I-F1max"]
        shown = driver.execute_script(column, 0)
        assert shown[0] == "patch-residual" and len(shown) == 4 + 2  # without class-agnostic, which has the same prompts here
        head[2].click()
        falling = [float(text.split()[0]) for text in driver.execute_script(column, 2)]
        assert falling == sorted(falling, reverse=True)
        head[2].click()
        assert [float(text.split()[0]) for text in driver.execute_script(column, 2)] == sorted(falling)
        head[0].click()
        names = driver.execute_script(column, 0)
        # Whatever the browser's language makes of an asterisk.
        assert [re.split(r"\W", name)[0].lower() for name in names] == ["metauas"] * 4 + ["patch"] * 2
        driver.find_element("css selector", ".filter").send_keys("patch resid")
        assert set(driver.execute_script(column, 0)) == {"patch-residual"}
        assert console(driver) == [] and requests(driver) == [file.as_uri()]
