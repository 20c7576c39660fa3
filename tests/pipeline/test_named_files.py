"""Files and folders that settings name are what their stages depend on, wherever they lie: replaced, the stages are run again."""

from __future__ import annotations

import copy
import dataclasses
import json
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL, TINY, make_project, run, with_every_key, write_pipelines
from pydantic import BaseModel

from changepair.flows.plan import planned
from changepair.flows.settings.pipelines import Pipelines
from changepair.flows.settings.reader import parse
from changepair.tasks.common.bounds import FileName

CLIP = {"library": "open_clip", "name": "local-dir:elsewhere/one", "weights": "hub"}
NAMED: dict[str, tuple[str, Any, set[str]]] = {
    "sampling.prompts": ("elsewhere/one.pth", None, {"sample_small"}),
    "inpainter.model": ("elsewhere/one", None, {"inpainter_small"}),
    "synthesis.objects": ("elsewhere/one", {"proposals": "sam", "sam": "elsewhere/one"}, {"synthesize_small"}),
    "detectors.metauas.model": ("elsewhere/one", None, {"train_small_metauas"}),
    "training.metauas.init": ("elsewhere/one", None, {"train_small_metauas"}),
    "detectors.metauas.encoder": ("elsewhere/one.pth", {"weights": "elsewhere/one.pth"}, {"train_small_metauas", "score_small_metauas"}),
    "detectors.patch-residual.encoder": ("elsewhere/one.pth", {"weights": "elsewhere/one.pth"}, {"score_small_patch-residual"}),
    "detectors.winclip.encoder": ("elsewhere/one", CLIP, {"score_small_winclip"}),
}


def named(setting: str) -> dict[str, Any]:
    """The small pipeline, with that setting naming a file or a folder."""
    content: dict[str, Any] = copy.deepcopy(SMALL)
    place, value, _stages = NAMED[setting]
    inner = content["pipelines"]["small"]
    for key in setting.split(".")[:-1]:
        inner = inner.setdefault(key, {})
    inner[setting.split(".")[-1]] = place if value is None else value
    return content


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere/one").mkdir(parents=True)
    (tmp_path / "elsewhere/one.pth").write_bytes(b"1")
    return tmp_path


@pytest.mark.parametrize("setting", NAMED)
def test_a_stage_depends_on_what_its_settings_name(project: Path, setting: str) -> None:
    write_pipelines(project, named(setting))
    place, _value, stages = NAMED[setting]
    assert {stage.name for stage in planned() if place in stage.deps} == stages


def places(value: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yields the keys of a section's settings that may name a file or a folder, by their types."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*at, key))
    elif dataclasses.is_dataclass(value) or isinstance(value, BaseModel):
        for name, hint in typing.get_type_hints(type(value), include_extras=True).items():
            choices = typing.get_args(hint) if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union else (hint,)
            if any(isinstance(bound, FileName) for choice in choices for bound in getattr(choice, "__metadata__", ())):
                yield (*at, name)
            yield from places(getattr(value, name, None), (*at, name))


EVERY = with_every_key()
PLACES = sorted(places(parse(Pipelines, EVERY).pipelines["small"]))


@pytest.mark.parametrize("keys", PLACES, ids=".".join)
def test_no_setting_names_a_file_or_a_folder_that_no_stage_depends_on(project: Path, keys: tuple[str, ...]) -> None:
    """One added later too: those of the type are found."""
    content = copy.deepcopy(EVERY)
    inner = content["pipelines"]["small"]
    for key in keys[:-1]:
        inner = inner[key]
    readers = []
    for place in ("elsewhere/one", "elsewhere/one.pth"):
        inner[keys[-1]] = place
        write_pipelines(project, content)
        readers += [stage.name for stage in planned() if place in stage.deps]
    assert readers


def test_the_places_are_found_by_their_types() -> None:
    assert {".".join(keys) for keys in PLACES} >= {"sampling.prompts", "inpainter.model", "synthesis.objects.sam", "training.metauas.init"}
    assert len(PLACES) > 15


@pytest.mark.slow
def test_replaced_it_is_seen_by_dvc_and_its_stage_runs_again(tmp_path: Path, api: str) -> None:
    """By a file of the same name and the same size."""
    content: dict[str, Any] = copy.deepcopy(TINY)
    content["pipelines"]["small"]["sampling"]["prompts"] = "prompts.json"
    folder = make_project(tmp_path / "project", content)
    prompts = folder / "prompts.json"
    prompts.write_text(json.dumps({"parts": {"bricks": ["bricks/train/good/0.png"], "stones": ["stones/train/good/0.png"]}}))
    assert run(folder, "dvc", "repro", "sample_small", PREFECT_API_URL=api).returncode == 0
    episodes = (folder / "data/episodes/small.parquet").read_bytes()
    prompts.write_text(prompts.read_text().replace("good/0.png", "good/1.png"))
    again = run(folder, "dvc", "repro", "sample_small", PREFECT_API_URL=api)
    assert again.returncode == 0 and "Running stage 'sample_small'" in again.stdout
    assert (folder / "data/episodes/small.parquet").read_bytes() != episodes
