"""pipelines.yaml: an error is one line with the path of the key and the nearest valid name."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, SMALL, run, write_pipelines

from changepair.flows.plan import planned
from changepair.flows.settings.pipelines import enabled_pipeline, read_pipelines
from changepair.flows.settings.reader import _say_renamed
from changepair.tasks.common.errors import BadInput
from changepair.tasks.detectors.residual.settings import MetricResidualSettings
from changepair.tasks.encoders.settings import EncoderSettings
from changepair.tasks.sampling.settings import SamplingSettings
from changepair.tasks.scoring.settings import EvaluationSettings
from changepair.tasks.synthesis.settings import SynthesisSettings


def changed(keys: str, value: Any) -> dict[str, Any]:
    """SMALL with one key, given as a.b.c, set to another value."""
    content = copy.deepcopy(SMALL)
    *path, last = keys.split(".")
    inner: Any = content
    for key in path:
        inner = inner[key]
    inner[last] = value
    return content


def test_the_projects_own_file_is_valid() -> None:
    assert read_pipelines(ROOT / "pipelines.yaml").enabled == ["quickstart"]


@pytest.mark.parametrize(
    ("keys", "value", "expected"),
    [
        ("enabeld", [], "enabeld: unknown key; did you mean 'enabled'?"),
        ("enabled", ["smal"], "enabled[0]: no pipeline 'smal'; did you mean 'small'?"),
        ("datasets.packaged", ["elpw"], "datasets.packaged[0]: expected 'sample-photos', .* or 'elpv', not 'elpw'; did you mean 'elpv'?"),
        ("datasets.folders.parts", {"pth": "x"}, "datasets.folders.parts.pth: unknown key; did you mean 'path'?"),
        ("pipelines.small.target", [], "pipelines.small.target: unknown key; did you mean 'targets'?"),
        ("pipelines.small.targets", ["part"], "pipelines.small.targets[0]: no dataset 'part' under datasets; did you mean 'parts'?"),
        ("pipelines.small.targets", "parts", "pipelines.small.targets: expected a list, not 'parts'"),
        ("pipelines.small.synthesis.pair", 3, "pipelines.small.synthesis.pair: unknown key; did you mean 'pairs'?"),
        ("pipelines.small.synthesis.pairs", "many", "pipelines.small.synthesis.pairs: expected a whole number, not 'many'"),
        ("pipelines.small.synthesis.kinds", {"none": 0.5}, "pipelines.small.synthesis.kinds: expected shares that sum to 1, not 0.5"),
        ("pipelines.small.synthesis.kinds", {"exchanged": 1}, "pipelines.small.synthesis.kinds.exchanged.* did you mean 'exchange'?"),
        (
            "pipelines.small.synthesis.augmentation",
            {"rotatoin": 1},
            "synthesis.augmentation.rotatoin: unknown key; did you mean 'rotation'?",
        ),
        ("pipelines.small.detectors.metauaz", {}, "detectors.metauaz: not a detector kind, and kind is not set; did you mean 'metauas'?"),
        ("pipelines.small.detectors.metauas", {"aligned_stage": 3}, "metauas.aligned_stage: unknown key; did you mean 'aligned_stages'?"),
        ("pipelines.small.detectors.metauas", {"resolution": 100}, "metauas.resolution: expected a multiple of 32, not 100"),
        (
            "pipelines.small.detectors.metauas",
            {"encoder": {"scales": [0.3, 1]}, "residual": 20},
            "metauas.resolution: expected a multiple of 32 at the first of encoder.scales, not 77",
        ),
        (
            "pipelines.small.detectors.metauas",
            {"encoder": {"scales": [1, 0.5]}},
            "metauas.residual: expected above 0, because later encoder.scales are for the residual alone, not 0",
        ),
        ("pipelines.small.detectors.metauas", {"alignment": "sof"}, "metauas.alignment: expected .*, not 'sof'; did you mean 'soft'?"),
        *(
            (
                "pipelines.small.detectors.metauas",
                {"tiles": wrong},
                "metauas.tiles: expected auto, or [rows, columns] of 1 to 64 each, not",
            )
            for wrong in ("3x4", [3], [0, 1], [1, 65], [1.0, 2], [True, 1], None)
        ),
        ("pipelines.small.schedule", "weekly", "pipelines.small.schedule.cron: expected a cron line such as .*, not 'weekly'"),
        ("pipelines.small.inpainter", {"modl": "own"}, "pipelines.small.inpainter.modl: unknown key; did you mean 'model'?"),
        ("pipelines.small.inpainter", {"resolution": 70}, "pipelines.small.inpainter.resolution: expected a multiple of 16, not 70"),
        (
            "pipelines.small.inpainter",
            {"model": "none"},
            "inpainter.model: must not be 'none': appearance, disappearance, exchange in synthesis.kinds need an inpainting model; set",
        ),
        ("pipelines.small.textures", ["partz"], "pipelines.small.textures[0]: no dataset 'partz' under datasets; did you mean 'parts'?"),
        ("pipelines.small.synthesis.kinds", {"apearance": 1}, "synthesis.kinds.apearance.* did you mean 'appearance'?"),
        ("pipelines.small.synthesis.objects", {"proposals": "slic"}, "synthesis.objects.proposals: expected .*, not 'slic'"),
        ("pipelines.small.synthesis.inpainting", {"dtype": "float8"}, "synthesis.inpainting.dtype: expected .*, not 'float8'"),
        ("datasets.objects", {"part": {"format": "coco", "path": "x"}}, "datasets.objects.part: no dataset 'part'.*did you mean 'parts'?"),
        ("datasets.objects", {"parts": {"format": "koko", "path": "x"}}, "datasets.objects.parts.format: expected 'coco', .*, not 'koko'"),
        (
            "pipelines.small.training.metauas",
            {"epochs": 1},
            r"training.metauas.batch_size: must be at most 22, the number of training pairs .*, not 128; lower it, or raise",
        ),
        ("execution.runner", "ray", "execution.runner: expected 'threads', 'processes' or 'dask', not 'ray'"),
        ("execution", {"gpu": "GPU"}, "execution.gpu: must be null, unless runner is dask and address names a cluster"),
        ("pipelines.small.training", {"metauas": {"epoch": 1}}, "small.training.metauas.epoch: unknown key; did you mean 'epochs'?"),
        ("pipelines.small.training", {"inctl": {}}, "pipelines.small.training.inctl: unknown key; did you mean 'inctrl'?"),
        ("pipelines.small.training", {}, "pipelines.small.auxiliary: must not be empty: inctrl trains on it; add a dataset, or set"),
        ("pipelines.small.auxiliary", ["partz"], "pipelines.small.auxiliary[0]: no dataset 'partz' under datasets; did you mean 'parts'?"),
        ("pipelines.small.sources", [], "pipelines.small.sources: must not be empty: pairs are made from photographs; add"),
        ("pipelines.small.synthesis.pairs", 0, "pipelines.small.synthesis.pairs: must be at least 1: metauas trains on pairs; or set"),
        ("pipelines.small.detectors", {"metauas+": {}}, r"detectors.metauas\+.model_of: expected the name of a detector of kind metauas"),
        (
            "pipelines.small.detectors",
            {"inctrl": {"encoder": {}}},
            "detectors.inctrl.texts: expected false, because tf_efficientnet_lite0 of timm",
        ),
        ("pipelines.small.detectors", {"winclip": {"encoder": {"nam": "x"}}}, "winclip.encoder.nam: unknown key; did you mean 'name'?"),
        ("pipelines.small.evaluation.subset", {"metauas": 1}, "pipelines.small.evaluation.subset.metauas: expected at least 2, not 1"),
        (
            "pipelines.small.evaluation.perturbations",
            ["blur-1", "jpg-50"],
            "small.evaluation.perturbations: expected a kind and a strength, such as jpeg-50 .kinds: jpeg, blur, .* crop., not 'jpg-50'",
        ),
        (
            "pipelines.small.evaluation.perturbations",
            ["noise-900"],
            "pipelines.small.evaluation.perturbations: expected noise with a strength between 0.5 and 128, not 'noise-900'",
        ),
        ("pipelines.small.evaluation.convention", "publishd", "evaluation.convention: expected .* did you mean 'published'?"),
        ("pipelines.small.promotion", {"metric": "image_aurok"}, "promotion.metric: expected .* did you mean 'image_auroc'?"),
        ("pipelines.small.promotion", {"tolerance": 2}, "promotion.tolerance: expected between 0 and 1, not 2"),
        (
            "pipelines.small.detectors",
            {"mine": {"kind": "metauaz"}},
            "detectors.mine.kind: expected a detector kind.* did you mean 'metauas'?",
        ),
        ("pipelines.small.detectors", {"mine": {"kind": "metauas", "x": 1}}, "pipelines.small.detectors.mine.x: unknown key; choose from"),
        ("pipelines.small.detectors", {"mine": {}}, "detectors.mine: not a detector kind, and kind is not set; choose from .*, 'winclip'"),
        ("pipelines.small.detectors", {"My": {"kind": "metauas"}}, "detectors.My: a detector name must have at most 64 lowercase letters"),
        ("pipelines.small.detectors", {"metauas": {"kind": "winclip"}}, "detectors.metauas: metauas is the name of another detector kind"),
        ("pipelines.small.training", {"patch-residual": {}}, "training.patch-residual: a patch-residual detector is not trained"),
        ("pipelines.small.training", {"metauaz": {}}, "training.metauaz: unknown key; did you mean 'metauas'?"),
        ("pipelines.small.promotion", {"detectors": ["winclip"]}, "promotion.detectors[0]: no detector 'winclip' under detectors"),
        ("execution.processes", 0, "execution.processes: expected greater than or equal to 1 or 'auto', not 0"),
        (
            "datasets.folders.parts",
            {"path": "x", "intensity": [3, 1]},
            "datasets.folders.parts.intensity: expected 'auto' or 'full' or ascending numbers, not [3, 1]",
        ),
        ("pipelines.small.sampling", None, "pipelines.small.sampling: expected a section, not null"),
        ("pipelines.small.promotion", {"metric": "image_auroc", "figure": "f1"}, "small.promotion.figure: must not be set together with"),
        ("pipelines.small.runs", {"revision": "-x"}, "pipelines.small.runs.revision: expected text that matches '.*', not '-x'"),
        ("pipelines.small.sampling.protocols", ["class-specfic"], "sampling.protocols[0]: expected .* did you mean 'class-specific'?"),
    ],
)
def test_a_wrong_key_is_told_in_one_line(tmp_path: Path, keys: str, value: Any, expected: str) -> None:
    file = write_pipelines(tmp_path, changed(keys, value))
    with pytest.raises(BadInput) as caught:
        read_pipelines(file)
    message = str(caught.value)
    assert "\n" not in message
    assert re.search(expected.replace("[", r"\[").replace("]", r"\]").replace("?", r"\?"), message), message


def test_a_kind_of_an_earlier_version_is_the_kind_it_is_now_with_its_own_defaults(tmp_path: Path) -> None:
    content = copy.deepcopy(SMALL)
    own = content["pipelines"]["small"]
    own["detectors"] = {
        "multi-scale-residual": {"model": "packaged"},
        "mine": {"kind": "multi-scale-residual", "own": 0.0, "encoder": {"scales": [1, 0.5]}},
        "metric-residual": {},
    }
    own["training"] = {"mine": {"batch_size": 4}, "metric-residual": {"batch_size": 4}}
    detectors = read_pipelines(write_pipelines(tmp_path, content)).pipelines["small"].detectors
    at_scales = MetricResidualSettings(
        model="packaged", encoder=EncoderSettings(scales=(1.0, 0.4, 0.3)), resolution=320, self_residual=0.6, contrast=0.02
    )
    assert detectors == {
        "multi-scale-residual": at_scales,
        "mine": replace(at_scales, model=None, self_residual=0.0, encoder=EncoderSettings(scales=(1.0, 0.5))),
        "metric-residual": MetricResidualSettings(),
    }
    own["training"]["mine"] = {"shots": 1}
    with pytest.raises(BadInput, match=r"training\.mine\.shots: unknown key"):
        read_pipelines(write_pipelines(tmp_path, content))


def test_a_kind_of_detector_may_stand_in_a_pipeline_under_several_names(tmp_path: Path) -> None:
    """Each with its own settings, and its own training."""
    content = copy.deepcopy(SMALL)
    small = content["pipelines"]["small"]
    small["detectors"] |= {"coarse": {"kind": "metauas", "resolution": 96}, "prior": {"kind": "metauas+", "model_of": "coarse"}}
    small["training"]["coarse"] = {"epochs": 3, "batch_size": 4}
    read = read_pipelines(write_pipelines(tmp_path, content)).pipelines["small"]
    assert type(read.detectors["coarse"]) is type(read.detectors["metauas"]) and read.detectors["coarse"].resolution == 96
    assert read.detectors["metauas"].resolution == 64
    assert read.training_of("coarse").epochs == 3 and read.training_of("metauas").epochs == 1
    assert read.trained == ["metauas", "inctrl", "coarse"]
    stages = {stage.name: stage for stage in planned(tmp_path)}
    assert "data/models/small/candidate/coarse" in stages["score_small_prior"].deps
    assert {"data/code/train_metauas.json", "data/pairs/small"} <= set(stages["train_small_coarse"].deps)
    assert {"pipelines.small.detectors.coarse", "pipelines.small.detectors.prior"} <= stages["score_small_prior"].settings.keys()


def test_the_targets_are_all_that_a_pipeline_has_to_name(tmp_path: Path) -> None:
    content = copy.deepcopy(SMALL)
    content["pipelines"] = {"small": {"targets": ["parts"]}}
    read = read_pipelines(write_pipelines(tmp_path, content)).pipelines["small"]
    assert list(read.detectors) == ["patch-residual", "metric-residual"] and read.trained_on == {}
    assert read.sources == [] and read.synthesis.pairs == 0 and read.inpainter.model == "none"
    assert read.sampling == SamplingSettings() and read.evaluation == EvaluationSettings()
    content["pipelines"] = {"small": {"sources": ["sample-photos"]}}
    with pytest.raises(BadInput, match=r"pipelines\.small\.targets: missing"):
        read_pipelines(write_pipelines(tmp_path, content))


def test_with_sources_pairs_are_made_by_default(tmp_path: Path) -> None:
    content = copy.deepcopy(SMALL)
    content["pipelines"] = {"small": {"targets": ["parts"], "sources": ["sample-photos"]}}
    read = read_pipelines(write_pipelines(tmp_path, content)).pipelines["small"]
    assert read.synthesis == SynthesisSettings() and read.inpainter.model == "own"


def test_what_is_not_yaml_is_told_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "pipelines.yaml"
    file.write_text("enabled: [a]\npipelines: {a: [}\n")
    with pytest.raises(BadInput, match="invalid YAML in line 2"):
        read_pipelines(file)


def test_a_pipeline_that_does_not_exist_or_is_not_enabled_is_not_run(tmp_path: Path) -> None:
    content = copy.deepcopy(SMALL)
    content["pipelines"]["other"] = content["pipelines"]["small"]
    file = write_pipelines(tmp_path, content)
    with pytest.raises(BadInput, match="no pipeline 'smalll'; did you mean 'small'"):
        enabled_pipeline("smalll", file)
    with pytest.raises(BadInput, match="enabled: pipeline 'other' is not enabled"):
        enabled_pipeline("other", file)


def test_the_command_exits_with_2_and_one_line(tmp_path: Path) -> None:
    write_pipelines(tmp_path, changed("pipelines.small.synthesis.pair", 3))
    for arguments in (("pipelines",), ("retrain", "small")):
        result = run(tmp_path, "changepair", *arguments, PYTHONPATH=str(ROOT))
        assert result.returncode == 2
        assert result.stdout == ""
        assert result.stderr.splitlines() == [
            "changepair: pipelines.yaml: pipelines.small.synthesis.pair: unknown key; did you mean 'pairs'?"
        ]


def test_the_pipelines_are_listed() -> None:
    result = run(ROOT, "changepair", "pipelines", COLUMNS="260")
    assert result.returncode == 0
    names = ("quickstart", "patch-residual", "robust-residual", "metric-residual", "multi-scale-residual", "metauas", "inctrl")
    assert all(name in result.stdout for name in names) and "missing for" not in result.stdout


def test_what_an_example_is_missing_is_listed_with_where_to_get_it() -> None:
    result = run(ROOT / "examples/metauas", "changepair", "pipelines", COLUMNS="260", PYTHONPATH=str(ROOT))
    missing = result.stdout.partition("missing for metauas:")[2]
    assert "dataset mvtec-ad: no folder /data/mvtec-ad; download it from https://www.mvtec.com/" in missing
    assert "weights laion400m_e32 of ViT-B-16-plus-240: open_clip downloads on first use" in missing
    assert "then run `changepair import metauas <checkpoint> --out data/imported/metauas-256`" in missing


@pytest.mark.parametrize("example", sorted(file.parent.name for file in ROOT.glob("examples/*/pipelines.yaml")))
def test_an_example_is_valid_and_has_a_page(example: str) -> None:
    folder = ROOT / "examples" / example
    read = read_pipelines(folder / "pipelines.yaml")
    assert set(read.enabled) <= set(read.pipelines) and not read.datasets.elsewhere
    page = (folder / "README.md").read_text()
    assert f"changepair new {example} --from examples/{example}" in page and all(name in page for name in read.pipelines)


def test_a_pipeline_whose_dataset_is_elsewhere_is_not_run(tmp_path: Path) -> None:
    content = changed("pipelines.small.targets", ["parts", "far-parts"])
    content["datasets"]["elsewhere"] = {"far-parts": {"layout": "visa"}}
    file = write_pipelines(tmp_path, content)
    assert read_pipelines(file).datasets.names == ["sample-photos", "parts", "far-parts"]
    with pytest.raises(BadInput, match=r"dataset far-parts of pipeline small is missing; download it .*layout: visa"):
        enabled_pipeline("small", file)


def test_what_is_in_the_hubs_cache_is_not_missing(tmp_path: Path) -> None:
    for repository in ("models--timm--tf_efficientnet_b4.ns_jft_in1k", "models--stable-diffusion-v1-5--stable-diffusion-inpainting"):
        snapshot = tmp_path / repository / "snapshots" / "abc"
        snapshot.mkdir(parents=True)
        (tmp_path / repository / "refs").mkdir()
        (snapshot / "config.json").write_text("{}")
    result = run(ROOT / "examples/metauas", "changepair", "pipelines", COLUMNS="200", HF_HUB_CACHE=str(tmp_path), PYTHONPATH=str(ROOT))
    retrained = result.stdout.partition("missing for metauas-retrained:")[2].partition("missing for")[0]
    assert "dataset coco: no folder /data/coco/train2017; download it from https://cocodataset.org" in retrained
    assert "tf_efficientnet_b4" not in retrained and "stable-diffusion" not in retrained


def test_every_command_says_in_its_help_how_it_is_used() -> None:
    from changepair.flows.cli import parser

    commands = parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    for name, command in commands.items():  # type: ignore[union-attr]
        assert "example" in command.format_help() and f"changepair {name}" in command.format_help(), name
        assert command.description and command.description[0].isupper() and command.description.rstrip()[-1] in ".:", name
    listed = parser().format_help().splitlines()
    for name in commands:  # type: ignore[union-attr]
        assert sum(line.startswith(f"  {name} ") for line in listed) == 1, name


def test_commands_that_use_a_model_start_without_the_other_groups() -> None:
    from changepair.flows.cli import USE, parser

    choices = parser(("use",))._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    everything = parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    assert tuple(choices) == USE  # type: ignore[arg-type]
    assert all(choices[name].format_help() == everything[name].format_help() for name in USE)  # type: ignore[index]
    program = (
        "import sys; sys.argv = ['changepair', 'predict']; from changepair.flows.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert stop.code == 2\n"
        "assert 'changepair.flows.cli.use' in sys.modules and 'changepair.flows.cli.pipelines' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_settings_are_read_by_their_earlier_names_and_a_line_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    small = SMALL["pipelines"]["small"]  # type: ignore[index]
    read = {}
    _say_renamed.cache_clear()  # it says each once a process
    for weight, metric in (("own", "figure"), ("self_residual", "metric")):
        detectors = {"patch-residual": {weight: 0.5}, "multi-scale-residual": {"model": "packaged"}}
        pipeline = {**small, "detectors": detectors, "promotion": {metric: "pixel_ap"}, "training": {}}
        write_pipelines(tmp_path, {**SMALL, "pipelines": {"small": pipeline}})
        read[weight] = read_pipelines(tmp_path / "pipelines.yaml").pipelines["small"]
        said = capfd.readouterr().err
        assert ("detectors.<name>.own was renamed to self_residual" in said) == (weight == "own")
        assert ("promotion.figure was renamed to metric" in said) == (metric == "figure")
    assert read["own"] == read["self_residual"] and read["own"].promotion.metric == "pixel_ap"
    assert read["own"].detectors["patch-residual"].self_residual == 0.5
    residual = {"patch-residual": {"own": 0.5, "self_residual": 0.1}}
    for both in ({"detectors": residual}, {"promotion": {"metric": "pixel_ap", "figure": "image_ap"}}):
        write_pipelines(tmp_path, {**SMALL, "pipelines": {"small": {**small, "training": {}, **both}}})
        with pytest.raises(BadInput, match=r"must not be set together with (self_residual|metric), its new name"):
            read_pipelines(tmp_path / "pipelines.yaml")


def test_a_section_that_is_there_keeps_the_defaults_of_a_pipeline_without_sources(tmp_path: Path) -> None:
    sections = {"synthesis": {"resolution": 64}, "inpainter": {}}
    write_pipelines(tmp_path, {**SMALL, "pipelines": {"small": {"targets": ["parts"], **sections}}})
    pipeline = read_pipelines(tmp_path / "pipelines.yaml").pipelines["small"]
    assert (pipeline.synthesis.pairs, pipeline.synthesis.resolution, pipeline.inpainter.model) == (0, 64, "none")


def test_the_earlier_name_of_watch_still_runs_it(tmp_path: Path) -> None:
    write_pipelines(tmp_path, SMALL)
    earlier, now = (run(tmp_path, "changepair", name, "small", PYTHONPATH=str(ROOT)) for name in ("score", "watch"))
    renamed, *rest = earlier.stderr.splitlines()
    assert renamed == "changepair: `changepair score` was renamed; use `changepair watch`"
    assert rest == now.stderr.splitlines() and earlier.returncode == now.returncode == 2
