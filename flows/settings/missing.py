"""List the datasets and models that a pipeline needs and this machine lacks, with their sources."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from changepair.flows.settings.pipelines import Datasets, Pipeline
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.places import place_of
from changepair.tasks.detectors.registry import DETECTORS, kind_of
from changepair.tasks.encoders.folder import cached_address, offline_file
from changepair.tasks.encoders.presets import PRESETS, command_for, preset_of
from changepair.tasks.encoders.settings import FILES_OF_WEIGHTS, HUB, OF_THE_MODEL, PACKAGED, EncoderSettings
from changepair.tasks.inpainting.settings import NAMED, OWN

STEPS_A_SECOND = 3.8
"""Training speed of the inpainting model with its default settings on two cores, in steps per second."""
FETCHED = "downloads on first use, unless HF_HUB_OFFLINE is set"


def missing_resources(pipeline: Pipeline, datasets: Datasets) -> list[str]:
    """Return one line for each missing dataset or model."""
    return [*_datasets(pipeline, datasets), *_models(pipeline), *_encoders(pipeline), *_inpainter(pipeline)]


def costs(pipeline: Pipeline) -> list[str]:
    """Return one line for each slow step that the user can skip."""
    own = pipeline.inpainter
    if own.model != OWN:
        return []
    hint = "set model: packaged or exemplar to skip training"
    if not pipeline.synthesis.repaints:
        hint = "set model: none, because no change kind in synthesis.kinds repaints"
    minutes = own.steps / STEPS_A_SECOND / 60
    return [f"inpainter: trains a model for {own.steps} steps, about {minutes:.0f} minutes on two cores without a GPU; {hint}"]


def _datasets(pipeline: Pipeline, datasets: Datasets) -> Iterator[str]:
    for name in pipeline.names:
        if name in datasets.folders:
            missing = _missing(datasets.folders[name].path)
            if missing:
                from changepair.tasks.ingestion.readers.catalogue import LAYOUTS

                home = LAYOUTS[datasets.folders[name].layout].home
                yield f"dataset {name}: {missing}" + (f"; download it from {home}" if home.startswith("http") else "")
        elif name not in datasets.here:
            from changepair.tasks.ingestion.readers.catalogue import LAYOUTS  # costs half a second

            layout = datasets.elsewhere[name].layout
            home = LAYOUTS[layout].home
            source = f"download it from {home}, then " if home else ""
            yield f"dataset {name}: {source}add {name}: {{path: …, layout: {layout}}} to datasets.folders"


def _models(pipeline: Pipeline) -> Iterator[str]:
    for name in pipeline.trained:
        kind = kind_of(pipeline.detectors[name])
        model, published = pipeline.detectors[name].model, DETECTORS[kind].published
        if model not in (None, PACKAGED) and (missing := _missing(model)):
            source = (
                f"download it from {published.home}, then run `changepair import {kind} <checkpoint> --out {model}`" if published else ""
            )
            yield f"model {model}: {source or missing}"


def _missing(named: str) -> str:
    """Explain why a folder, a file or a URL cannot be read; "" if it can."""
    try:
        return "" if place_of(named).exists() else f"no folder {named}"
    except BadInput as error:
        return str(error)
    except Exception as error:  # each store raises its own types
        return f"{named}: the store does not answer ({' '.join(str(error).split())})"


def _encoders(pipeline: Pipeline) -> Iterator[str]:
    chosen: list[Any] = list(dict(pipeline.detectors).values())
    named = [getattr(settings, part, None) for settings in chosen for part in ("encoder", "prior")]
    for encoder in dict.fromkeys(encoder for encoder in named if encoder is not None):
        preset = preset_of(encoder)
        fetch = f"; {command_for(preset)}" if preset is not None else ""
        if encoder.weights in (PACKAGED, OF_THE_MODEL) or Path(encoder.weights).is_file():
            continue
        if encoder.library == "smp" or encoder.weights.endswith(FILES_OF_WEIGHTS):
            yield f"weights of {encoder.name}: no file {encoder.weights}{fetch}"
        elif not _on_this_machine(encoder):
            which = "" if encoder.weights == HUB else f" {encoder.weights}"
            yield f"weights{which} of {encoder.name}: {encoder.library} {FETCHED}{fetch.replace('; run', '; or run')}"


def _on_this_machine(encoder: EncoderSettings) -> bool:
    """Return whether a folder of weights or the cache of a library has an encoder's weights."""
    preset = preset_of(encoder)
    if preset is not None and encoder.weights == PRESETS[preset].weights:
        if offline_file(preset) is not None:
            return True
        if url := PRESETS[preset].url:
            return cached_address(url).is_file()
    cached = _cached()
    if encoder.library == "timm":
        return any(name == f"timm/{encoder.name}" or name.startswith(f"timm/{encoder.name}.") for name in cached)
    if not cached:
        return False  # without loading open_clip, which takes seconds
    import open_clip

    about = open_clip.get_pretrained_cfg(encoder.name, encoder.weights)
    return bool(about) and about.get("hf_hub", "").strip("/") in cached


def _inpainter(pipeline: Pipeline) -> Iterator[str]:
    model = pipeline.inpainter.model
    if model not in NAMED and not Path(model).is_dir() and model not in _cached():
        yield f"inpainting model {model}: diffusers {FETCHED}"


def _cached() -> set[str]:
    """List the repositories in the hub's cache."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        return {entry.repo_id for entry in scan_cache_dir().repos}
    except CacheNotFound:
        return set()
