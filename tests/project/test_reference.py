"""The reference pages: what is generated is complete, and what is written by hand has every name that the code has."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from mkdocs.exceptions import PluginError

import changepair
from changepair.flows.cli import parser
from changepair.flows.promotion.history import Model
from changepair.flows.runs.states import RunState
from changepair.flows.settings import reference
from changepair.flows.settings.keys import SECTIONS, every
from changepair.tasks.detectors.registry import BUILT_IN
from changepair.tasks.ingestion.manifest import PictureRow
from changepair.tasks.ingestion.objects.table import ObjectRow
from changepair.tasks.ingestion.packaged import PACKAGED
from changepair.tasks.ingestion.readers.catalogue import LAYOUTS
from changepair.tasks.monitoring.record import Judged
from changepair.tasks.prediction.outputs import OutputRow
from changepair.tasks.sampling.episodes import Episode
from changepair.tasks.scoring.metrics import METRICS, heading
from changepair.tasks.scoring.operating import OperatingRow
from changepair.tasks.scoring.perturbation_names import KINDS
from changepair.tasks.scoring.results import ComparisonRow, DrawRow, MetricRow, read_metrics
from changepair.tasks.scoring.robustness import RobustnessRow
from changepair.tasks.scoring.scores import PERTURBED, SCORES
from changepair.tasks.synthesis.shards import PairRow
from changepair.tasks.training.log import LogLine

PAGES = ROOT / "docs" / "pages"


def module_of_docs(name: str) -> Any:
    """Import a file of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hooks, docstrings = module_of_docs("hooks"), module_of_docs("docstrings")


def page(name: str) -> str:
    return (PAGES / "reference" / f"{name}.md").read_text()


def section(text: str, title: str) -> str:
    """Return one section of a page, to the next title of its level."""
    level = re.search(rf"^(#+) {re.escape(title)}$", text, re.MULTILINE)
    assert level is not None, title
    after = text[level.end() :]
    return re.split(rf"^#{{1,{len(level[1])}}} ", after, maxsplit=1, flags=re.MULTILINE)[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Resolution {{ default: synthesis.resolution }}.", "Resolution 256."),
        ("`{{default:sampling.shots}}`", "`[1, 2, 4, 8]`"),
        ("{{ default: pipelines.mine.detectors.patch-residual.encoder.name }}", "tf_efficientnet_lite0"),
        ("{{ default: predict --false-alarms }}", "0.01"),
        ("{{ default: watch.schedule }}", "null"),
        ("`{name: x}` and {{ other }}", "`{name: x}` and {{ other }}"),
    ],
)
def test_placeholders_are_replaced(text: str, expected: str) -> None:
    assert hooks.filled(text, "a.md") == expected


def test_a_metric_is_that_of_the_quickstart() -> None:
    rows = read_metrics(ROOT / "data" / "evaluation" / "quickstart" / "metrics.csv")
    wanted = ("elpv", "", "patch-residual", "class-specific", 1, "image_auroc")
    [row] = [one for one in rows if (one.target, one.category, one.detector, one.protocol, one.shots, one.metric) == wanted]
    assert hooks.filled("{{ metric: elpv patch-residual image_auroc 1 }} %", "a.md") == f"{100 * row.mean:.1f} ± {100 * row.std:.1f} %"


@pytest.mark.parametrize(
    "placeholder",
    [
        "{{ default: synthesis.resolutoin }}",
        "{{ default: targets }}",
        "{{ default: predict --false-alarm }}",
        "{{ default: predict --kit }}",
        "{{ default: synthesis }}",
        "{{ metric: elpv patch-residual image_auroc 3 }}",
        "{{ metric: elpv }}",
        "{{ figure: elpv }}",
        "{{ default: predict --help }}",
    ],
)
def test_an_unknown_placeholder_fails_the_build_with_page_and_key(placeholder: str) -> None:
    with pytest.raises(PluginError) as caught:
        hooks.filled(f"Some text.\n\n{placeholder}", "how-to/x.md")
    assert str(caught.value).startswith(f"how-to/x.md: {placeholder}: ")


@pytest.mark.parametrize(
    "written", ["{{ default sampling.shots }}", "{{ default:\n sampling.shots }}", "{{metric elpv}}", "{{ Default= x }}"]
)
def test_a_misspelt_placeholder_fails_the_build(written: str) -> None:
    with pytest.raises(
        PluginError, match=r"^how-to/x\.md: \{\{ ?(default|metric|Default).*: not a placeholder; write \{\{ (default|metric): … "
    ):
        hooks.filled(f"Some text.\n\n{written} more.", "how-to/x.md")


@pytest.mark.parametrize("file", sorted(PAGES.rglob("*.md")), ids=lambda file: str(file.relative_to(PAGES)))
def test_every_placeholder_of_a_page_has_a_value(file: Path) -> None:
    assert "{{ default" not in hooks.filled(file.read_text(), file.name)


def test_the_site_has_the_generated_pages_and_the_python_api(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--config-file", "docs/site.yml", "--site-dir", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    for path in hooks.GENERATED:
        assert (tmp_path / path).with_suffix(".json" if path.endswith(".json") else ".html").is_file()
        assert not (PAGES / path).exists()
    text = re.sub(r"<[^>]+>", "", (tmp_path / "reference" / "api.html").read_text())
    for name in ("Predictor", "Kit", "load_detector", "list_detectors", "ChangePairs", "BadInput"):
        assert re.search(rf"^\s*{name}\b", text, re.MULTILINE), name
    assert "false_alarms: float = 0.01" in text and "&gt;&gt;&gt; import skimage.data" in text


def test_the_page_of_the_command_line_has_every_command_and_option() -> None:
    text = hooks.GENERATED["reference/cli.md"]()
    commands = parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    for name, command in commands.items():  # type: ignore[union-attr]
        own = section(text, f"changepair {name}")
        for action in command._actions:
            assert action.dest == "help" or not action.option_strings or f"`{action.option_strings[0]}" in own, (name, action.dest)
    assert "%(" not in text


def test_the_page_of_all_settings_has_every_key_with_a_description() -> None:
    text = reference.page()
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) == len(list(every())) and text.count("\n## ") == len(SECTIONS)
    for row in rows:
        assert all(cell.strip() for cell in (row.split(" | ")[0], row.split(" | ")[-1].strip("|"))), row


def test_the_page_of_the_python_api_has_every_exported_name() -> None:
    for name in changepair.__all__:
        assert name == "__version__" or re.search(rf"^::: changepair\..*\.{name}$", page("api"), re.MULTILINE), name


@pytest.mark.parametrize(
    ("title", "names"),
    [
        ("Manifest", [field.name for kind in (PictureRow, ObjectRow) for field in fields(kind)]),
        ("Episodes", [field.name for field in fields(Episode)]),
        ("Change pairs", [field.name for field in fields(PairRow)]),
        ("Models", [field.name for kind in (Model, LogLine) for field in fields(kind)]),
        ("Scores", [*SCORES.names, *PERTURBED.names]),
        ("Evaluation", [field.name for kind in (MetricRow, ComparisonRow, OperatingRow, RobustnessRow, DrawRow) for field in fields(kind)]),
        ("Outputs of predict", [field.name for field in fields(OutputRow)]),
        ("Records of a watched line", [field.name for field in fields(Judged)]),
        ("Records of runs", list(RunState)),
    ],
)
def test_the_page_of_file_formats_has_every_column(title: str, names: list[str]) -> None:
    own = section(page("file-formats"), title)
    assert not [name for name in names if f"`{name}`" not in own]


def test_the_pages_of_datasets_detectors_and_metrics_have_every_one() -> None:
    datasets = page("datasets")
    for name, layout in LAYOUTS.items():
        assert f"| `{name}`" in datasets and layout.home in datasets, name
    assert not [name for name in PACKAGED if f"`{name}`" not in section(datasets, "Packaged datasets")]
    assert not [name for name in BUILT_IN if f"| `{name}` |" not in section(page("detectors"), "Kinds")]
    for metric in METRICS:
        assert f"| `{metric}` | {heading(metric)} |" in page("metrics")
    robustness = section(page("metrics"), "Robustness")
    for kind, strengths in KINDS.items():
        [row] = [line for line in robustness.splitlines() if line.startswith(f"| `{kind}` |")]
        mild = row.rpartition(" | ")[2]
        assert {f"{strengths.mild.low:g}", f"{strengths.mild.high:g}"} & set(re.findall(r"[\d.]+\d|\d", mild)), kind


def test_docstrings_are_formatted_for_the_page() -> None:
    text = "Do it. size: pixels a side. Raises BadInput if there is none.\n\n>>> do()\n1\n>>> do(2)\n2\n\nMore: text."
    assert docstrings.formatted(text, ["size"]).split("\n") == [
        "Do it. ",
        "",
        "- `size`: pixels a side.",
        "",
        "Raises BadInput if there is none.",
        "",
        "```pycon",
        ">>> do()",
        "1",
        ">>> do(2)",
        "2",
        "```",
        "",
        "More: text.",
    ]


OF_A_RUN = {"PARENT_TASK_RUN", "TOLD", "LISTENER", "CONSOLE", "SERVER", "FORK_SERVER"}  # set by a run for its stages


def test_every_environment_variable_is_on_the_page() -> None:
    files = [file for room in ("flows", "tasks") for file in (ROOT / room).rglob("*.py")]
    in_code = {name for file in files for name in re.findall(r'"CHANGEPAIR_([A-Z_]+)"', file.read_text(encoding="utf-8"))}
    on_page = set(re.findall(r"^\| `CHANGEPAIR_([A-Z_]+)`", page("environment"), re.MULTILINE))
    assert on_page == in_code - OF_A_RUN and in_code > OF_A_RUN
