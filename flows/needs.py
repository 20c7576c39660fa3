"""What a pipeline needs that is not on this machine, and where to get it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flows.pipelines import Datasets, Pipeline
from tasks.detector_settings import HUB, OF_THE_MODEL, PACKAGED, EncoderSettings
from tasks.inpainting.settings import NONE, OWN

HOMES = {
    "metauas": "the authors' checkpoint, linked from https://github.com/gaobb/MetaUAS",
    "inctrl": "the authors' checkpoint, linked from https://github.com/mala-lab/InCTRL",
}


def needs(pipeline: Pipeline, datasets: Datasets) -> list[str]:
    """One line for each thing that is missing."""
    return [*_datasets(pipeline, datasets), *_models(pipeline), *_encoders(pipeline), *_inpainter(pipeline)]


def _datasets(pipeline: Pipeline, datasets: Datasets) -> Iterator[str]:
    for name in dict.fromkeys(name for names in pipeline.datasets.values() for name in names):
        if name in datasets.folders and not Path(datasets.folders[name].path).exists():
            yield f"dataset {name}: no folder {datasets.folders[name].path}"
        elif name not in datasets.here:
            about = datasets.elsewhere[name]
            yield f"dataset {name}: {about.home}; {about.layout}, then its path under datasets.folders"


def _models(pipeline: Pipeline) -> Iterator[str]:
    for name in HOMES:
        settings: Any = dict(pipeline.detectors).get(name)
        if settings is not None and settings.model is not None and not Path(settings.model).is_dir():
            yield f"model {settings.model}: {HOMES[name]}; then changepair import {name} <checkpoint> --out {settings.model}"


def _encoders(pipeline: Pipeline) -> Iterator[str]:
    chosen: list[Any] = list(dict(pipeline.detectors).values())
    encoders = [settings.encoder for settings in chosen if hasattr(settings, "encoder")]
    for encoder in dict.fromkeys(encoders):
        if encoder.weights in (PACKAGED, OF_THE_MODEL):
            continue
        where = _repository(encoder)
        if where is None and not Path(encoder.weights).is_file():
            yield f"weights of {encoder.name}: no file {encoder.weights}"
        elif where is not None and not _cached(where):
            yield f"weights of {encoder.name}: {where} on the hub; fetched when first used, unless HF_HUB_OFFLINE is set"


def _repository(encoder: EncoderSettings) -> str | None:
    """The hub's name of an encoder's weights; None if they are a file's."""
    if encoder.library == "timm" and encoder.weights == HUB:
        import timm

        about = timm.get_pretrained_cfg(encoder.name)
        return str(about.hf_hub_id or about.url) if about is not None else encoder.name
    if encoder.library == "open_clip":
        import open_clip

        if encoder.name.startswith("hf-hub:"):
            return encoder.name.removeprefix("hf-hub:")
        about = open_clip.get_pretrained_cfg(encoder.name, encoder.weights)
        return (about.get("hf_hub", "").strip("/") or about.get("url")) if about else None
    return None


def _inpainter(pipeline: Pipeline) -> Iterator[str]:
    model = pipeline.inpainter.model
    if model not in (OWN, NONE) and not Path(model).is_dir() and not _cached(model):
        yield f"inpainting model {model}: on the hub; fetched when first used, unless HF_HUB_OFFLINE is set"


def _cached(repository: str) -> bool:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        return any(entry.repo_id == repository for entry in scan_cache_dir().repos)
    except CacheNotFound:
        return False
