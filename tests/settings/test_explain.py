"""`changepair explain`: every setting is described with a valid example, and the JSON Schema agrees with our own reader."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from conftest import ROOT, SMALL, run, write_pipelines

from changepair.flows.explain import example_of, explain
from changepair.flows.settings.keys import NAME, Setting, every, find
from changepair.flows.settings.pipelines import read_pipelines
from changepair.flows.settings.reader import load_yaml, parse_yaml
from changepair.flows.settings.schema import schema_of_file
from changepair.tasks.common.errors import BadInput

SCHEMA = schema_of_file()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
SETTINGS = list(every())


def explained(capsys: pytest.CaptureFixture[str], *key: str) -> list[str]:
    explain(*key or (None,))
    return capsys.readouterr().out.splitlines()


def test_a_setting_is_printed_with_type_default_place_and_example(capsys: pytest.CaptureFixture[str]) -> None:
    lines = explained(capsys, "synthesis.resolution")
    assert lines[0] == "synthesis.resolution" and find("synthesis.resolution").about in lines[1]
    assert lines[3:] == [
        "  type     integer, between 64 and 2048",
        "  default  256",
        "  place    pipelines.yaml: pipelines.<name>.synthesis.resolution",
        "  example",
        "      pipelines:",
        "        mine:",
        "          synthesis:",
        "            resolution: 256",
    ]


@pytest.mark.parametrize(
    ("key", "place", "default"),
    [
        ("pipelines.mine.synthesis.resolution", "pipelines.<name>.synthesis.resolution", "256"),
        ("detectors.patch-residual.resolution", "pipelines.<name>.detectors.patch-residual.resolution", "256"),
        ("detectors.multi-scale-residual.top_share", "pipelines.<name>.detectors.multi-scale-residual.top_share", "0.01"),
        ("detectors.inctrl.encoder.name", "pipelines.<name>.detectors.inctrl.encoder.name", "tf_efficientnet_lite0"),
        ("training.inctrl.epochs", "pipelines.<name>.training.inctrl.epochs", "10"),
        ("execution.runner", "execution.runner", "processes"),
        ("runs.overlap", "runs.overlap", "wait"),
        ("pipelines.mine.runs.overlap", "pipelines.<name>.runs.overlap", "null"),
        ("datasets.folders.my-parts.layout", "datasets.folders.<name>.layout", "folder"),
        ("schedule.timezone", "pipelines.<name>.schedule.timezone", "UTC"),
        ("watch.false_alarms", "pipelines.<name>.watch.false_alarms", "0.01"),
        ("targets", "pipelines.<name>.targets", "required"),
        ("detectors.multi-scale-residual.resolution", "pipelines.<name>.detectors.multi-scale-residual.resolution", "320"),
        (
            "detectors.multi-scale-residual.encoder.scales",
            "pipelines.<name>.detectors.multi-scale-residual.encoder.scales",
            "[1, 0.4, 0.3]",
        ),
        ("detectors.metric-residual.resolution", "pipelines.<name>.detectors.metric-residual.resolution", "256"),
        ("detectors.<name>.encoder.scales", "pipelines.<name>.detectors.<name>.encoder.scales", "[1]"),
        ("pipelines.mine.evaluation.subset.metauas", "pipelines.<name>.evaluation.subset", "{}"),
        ("sampling.target_protocols.digits", "pipelines.<name>.sampling.target_protocols", "{}"),
    ],
)
def test_a_key_is_found_from_the_top_of_the_file_or_within_a_pipeline(key: str, place: str, default: str) -> None:
    assert (find(key).place, find(key).default) == (place, default)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("synthesis.resolutoin", "synthesis.resolutoin: no such setting; did you mean synthesis.resolution"),
        ("shots", "shots: no such setting; did you mean sampling.shots"),
        ("detectors.metauaz", "detectors.metauaz: not a detector of pipelines.yaml and not a kind of detector; did you mean 'metauas'?"),
        ("training.winclip.epochs", "training.winclip: a winclip needs no training"),
        ("enabled.x", "enabled.x: no such setting"),
        ("", "'': no such setting"),
        ("detectors.", "detectors.'': not a detector of pipelines.yaml"),
        ("\n\x1b[31m", r"'\n\x1b[31m': no such setting"),
        ("x" * 5000, "x: no such setting"[1:]),
    ],
)
def test_a_wrong_key_is_reported_in_one_line_with_the_nearest_keys(key: str, message: str) -> None:
    with pytest.raises(BadInput) as caught:
        find(key)
    assert message in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_the_kind_of_a_named_detector_is_read_from_the_file_even_if_the_file_is_invalid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    content = copy.deepcopy(SMALL)
    content["pipelines"]["small"]["detectors"]["coarse"] = {"kind": "metauas", "resolutoin": 64}  # type: ignore[index]
    write_pipelines(tmp_path, content)
    assert "pipelines.<name>.detectors.coarse.alignment" in "\n".join(explained(capsys, "pipelines.small.detectors.coarse.alignment"))


def test_detectors_of_one_name_in_two_pipelines_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    content = copy.deepcopy(SMALL)
    kinds = ("metauas", "subspace")
    content["pipelines"] = {f"of-{kind}": {"targets": ["parts"], "detectors": {"mine": {"kind": kind}}} for kind in kinds}
    write_pipelines(tmp_path, content)
    for kind in kinds:
        listed = explained(capsys, f"pipelines.of-{kind}.detectors.mine")
        assert listed[-1:] == explained(capsys, f"detectors.{kind}")[-1:] and any("alignment" in one for one in listed) == (
            kind == "metauas"
        )


def test_without_a_key_the_sections_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    lines = explained(capsys)
    for name in ("enabled", "datasets", "execution", "runs", "pipelines", "synthesis", "sampling", "watch"):
        assert any(line.startswith(f"  {name} ") for line in lines), name


def test_every_setting_has_a_description_and_is_found_by_its_key() -> None:
    assert len(SETTINGS) > 250 and not [one.place for one in SETTINGS if not one.about]
    for one in SETTINGS:
        assert find(one.place).place == one.place


def schema_at(place: str) -> dict[str, Any]:
    """Return the schema of one key."""
    schema: Any = SCHEMA
    for part in place.split("."):
        schema = _resolved(schema, part)
    return {**schema, "$defs": SCHEMA["$defs"]}


def _resolved(schema: Any, part: str) -> Any:
    if "$ref" in schema:
        return _resolved(SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]], part)
    if part in schema.get("properties", {}) and not (part == "kind" and "allOf" in schema):
        return schema["properties"][part]
    for one in (*schema.get("anyOf", ()), *schema.get("allOf", ())):
        if found := _resolved(one, part):
            return found
    inner = [*schema.get("patternProperties", {}).values(), schema.get("additionalProperties") or {}]
    return inner[0] if part == NAME else None


@pytest.mark.parametrize(
    "setting", [one for one in SETTINGS if example_of(one) and f"detectors.{NAME}" not in one.place], ids=lambda one: one.place
)
def test_an_example_is_a_valid_value(setting: Setting) -> None:
    jsonschema.Draft202012Validator(schema_at(setting.place)).validate(parse_yaml(example_of(setting), "example"))


def test_most_settings_have_an_example() -> None:
    without = [one.place for one in SETTINGS if one.section is None and not example_of(one)]
    assert len(without) < len(SETTINGS) / 4, without


@pytest.mark.parametrize(
    "file", [*ROOT.glob("pipelines.yaml"), *ROOT.glob("examples/*/pipelines.yaml"), *ROOT.glob("flows/project/pipelines.yaml")], ids=str
)
def test_the_schema_accepts_every_file_of_this_repository(file: Path) -> None:
    assert not [(list(error.absolute_path), error.message) for error in VALIDATOR.iter_errors(load_yaml(file))]


def test_the_schema_is_one_and_describes_every_key() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    VALIDATOR.validate(SMALL)
    for section in SCHEMA["$defs"].values():
        assert all(field.get("description") for field in section["properties"].values())


WRONG: list[tuple[str, Any]] = [
    ("enabeld", []),
    ("enabled", "small"),
    ("enabled", ["small", "small"]),
    ("datasets.packaged", ["elpw"]),
    ("datasets.folders.parts", {"pth": "x"}),
    ("datasets.folders.parts", {}),
    ("datasets.folders.Parts", {"path": "x"}),
    ("datasets.folders.parts", {"path": "  "}),
    ("datasets.folders.parts", {"path": "x", "intensity": "wide"}),
    ("execution", {"workers": 0}),
    ("execution", {"runner": "thread"}),
    ("runs", {"tags": ["a b"]}),
    ("pipelines.small.target", []),
    ("pipelines.small.targets", "parts"),
    ("pipelines.small.targets", []),
    ("pipelines.small.schedule", {"interval": "6 hour s"}),
    ("pipelines.small.schedule", {"cron": 3}),
    ("pipelines.small.synthesis.pair", 3),
    ("pipelines.small.synthesis.pairs", "many"),
    ("pipelines.small.synthesis.pairs", -1),
    ("pipelines.small.synthesis.resolution", 32),
    ("pipelines.small.synthesis.kinds", {"exchanged": 1}),
    ("pipelines.small.synthesis.kinds", {"exchange": 2}),
    ("pipelines.small.synthesis.crop", [0.5]),
    ("pipelines.small.synthesis.augmentation", {"rotatoin": 1}),
    ("pipelines.small.sampling.shots", []),
    ("pipelines.small.sampling.shots", [1, 1]),
    ("pipelines.small.sampling.shots", [-1]),
    ("pipelines.small.sampling.protocols", ["class-specfic"]),
    ("pipelines.small.detectors", {}),
    ("pipelines.small.detectors.metauaz", {}),
    ("pipelines.small.detectors.metauas", {"aligned_stage": 3}),
    ("pipelines.small.detectors.metauas", {"alignment": "sof"}),
    ("pipelines.small.detectors.metauas", {"kind": "winclip"}),
    ("pipelines.small.detectors.metauas", {"tiles": "3x4"}),
    ("pipelines.small.detectors.metauas", {"tiles": [0, 1]}),
    ("pipelines.small.detectors.metauas", {"tiles": [3]}),
    ("pipelines.small.detectors.mine", {"kind": "metauaz"}),
    ("pipelines.small.detectors.mine", {"kind": "metauas", "x": 1}),
    ("pipelines.small.detectors.My", {"kind": "metauas"}),
    ("pipelines.small.detectors.winclip", {"encoder": {"nam": "x"}}),
    ("pipelines.small.training.metauas", {"epoch": 1}),
    ("pipelines.small.training.metauas", {"shots": 1}),
    ("pipelines.small.evaluation.subset", {"metauas": 1}),
    ("pipelines.small.evaluation.convention", "publishd"),
    ("pipelines.small.evaluation.perturbations", ["jpg-50"]),
    ("pipelines.small.evaluation.perturbations", ["jpeg"]),
    ("pipelines.small.evaluation.perturbations", ["jpeg-50", "jpeg-50"]),
    ("pipelines.small.evaluation.perturbations", "jpeg-50"),
    ("pipelines.small.evaluation.perturbed", 1),
    ("pipelines.small.promotion", {"metric": "image_aurok"}),
    ("pipelines.small.promotion", {"tolerance": 2}),
    ("pipelines.small.watch", {"folder": "a", "prompts": "b"}),
    ("datasets.folders.parts", {"path": "x", "snapshot": "maybe"}),
    ("pipelines.small.schedule", {"interval": "1\u0662 hours"}),
    ("pipelines.small.sampling", None),
    ("pipelines.small.detectors.patch-residual", {"own": "much"}),
]


@pytest.mark.parametrize(("keys", "value"), WRONG, ids=str)
def test_the_schema_rejects_what_our_reader_rejects(tmp_path: Path, keys: str, value: Any) -> None:
    content = changed(keys, value)
    with pytest.raises(BadInput):
        read_pipelines(write_pipelines(tmp_path, content))
    assert not VALIDATOR.is_valid(content)


RIGHT: list[tuple[str, Any]] = [
    ("datasets.folders.parts.snapshot", "yes"),
    ("datasets.folders.parts.snapshot", "Off"),
    ("datasets.folders.parts.snapshot", 1),
    ("datasets.folders.parts.intensity", [0, "4095"]),
    ("execution.workers", "3"),
    ("pipelines.small.schedule", "0 3 * * 1"),
    ("pipelines.small.schedule", {"interval": "6 hours"}),
    ("pipelines.small.watch", {"folder": "a", "prompts": "b", "normals": "c", "schedule": "*/5 * * * *"}),
    ("pipelines.small.sampling.seeds", ["0", 1.0]),
    ("pipelines.small.synthesis.swapped", "0.25"),
    ("pipelines.small.promotion", {"figure": "image_auroc"}),
    ("pipelines.small.evaluation.perturbations", ["side-light-0.3", "jpeg-50", "gain-0.80"]),
    ("pipelines.small.detectors.patch-residual", {"own": 0.5}),
    ("pipelines.small.detectors.multi-scale-residual", {"model": "packaged", "own": 0.5}),
    ("pipelines.small.detectors.multi-scale-residual", {"kind": "patch-residual", "background": 0.5}),
    ("pipelines.small.detectors.metric-residual", {"kind": "multi-scale-residual", "model": "packaged"}),
    ("pipelines.small.detectors.metauas+", {"model_of": "metauas"}),
    ("pipelines.small.detectors.mine", {"kind": "winclip", "tiles": [1, 2]}),
    ("pipelines.none", {"targets": ["parts"], "inpainter": None, "synthesis": None}),
]


@pytest.mark.parametrize(("keys", "value"), RIGHT, ids=str)
def test_the_schema_accepts_what_our_reader_accepts(tmp_path: Path, keys: str, value: Any) -> None:
    content = changed(keys, value)
    read_pipelines(write_pipelines(tmp_path, content))
    VALIDATOR.validate(content)


def changed(keys: str, value: Any) -> dict[str, Any]:
    """Return the settings of the tests with one key set."""
    content = copy.deepcopy(SMALL)
    *path, last = keys.split(".")
    inner: Any = content
    for key in path:
        inner = inner.setdefault(key, {})
    inner[last] = value
    return content


def test_the_command_prints_the_schema_and_refuses_a_key_with_it(tmp_path: Path) -> None:
    printed = run(tmp_path, "changepair", "explain", "--schema", PYTHONPATH=str(ROOT))
    assert json.loads(printed.stdout) == json.loads(json.dumps(SCHEMA))
    refused = run(tmp_path, "changepair", "explain", "targets", "--schema", PYTHONPATH=str(ROOT))
    assert refused.returncode == 2 and refused.stderr == "changepair: --schema: describes the whole file; leave out the key\n"


def test_a_reader_that_ends_early_ends_the_command_without_a_word(tmp_path: Path) -> None:
    for arguments in ("explain --schema", "explain"):
        script = f"changepair {arguments} | head -c 1; echo ${{PIPESTATUS[0]}}"
        ended = run(tmp_path, "bash", "-c", script, PYTHONPATH=str(ROOT))
        assert ended.stderr == "" and ended.stdout[1:] in ("141\n", "0\n"), ended
