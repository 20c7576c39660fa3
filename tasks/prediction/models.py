"""Load a packaged detector, or the detector of a model folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from changepair.tasks.common.errors import BadInput, in_short
from changepair.tasks.common.places import place_of
from changepair.tasks.common.tiles import Tiles
from changepair.tasks.detectors import store
from changepair.tasks.detectors.detector import Detector
from changepair.tasks.detectors.registry import ALIASES, BUILT_IN, DETECTORS, base_of, registered, resolved
from changepair.tasks.detectors.settings import DetectorSettings
from changepair.tasks.detectors.store import CONFIG_NAME, create_detector, load_model, read_config, settings_from_json
from changepair.tasks.encoders.settings import FOLDER_OF_OPEN_CLIP, OF_THE_MODEL, PACKAGED
from changepair.tasks.packaged.detectors import MODELS, fill, packaged_settings

ELSEWHERE = ("hf-hub:", FOLDER_OF_OPEN_CLIP)  # open_clip's prefixes for models in a hub or a folder
DEFAULT = "robust-residual"
"""The model `packaged`. Among the detectors that are ready for use, it has the best mean rank over the development datasets, and few false
alarms under another camera (docs/pages/explanation/quality.md)."""


@dataclass(frozen=True)
class Named:
    """A loaded detector with its settings."""

    name: str
    settings: Mapping[str, Any]
    """Settings of the detector and of its base, by name."""
    detector: Detector

    @property
    def looks(self) -> DetectorSettings:
        """Settings of the detector that sees the pictures: encoder, resolution and tiles."""
        looks: DetectorSettings = self.settings[base_of(self.name, self.settings)]
        return looks

    def with_tiles(self, tiles: Tiles) -> Named:
        """Return the detector with another setting `tiles`."""
        looks: Any = self.looks
        return replace(self, settings={**self.settings, base_of(self.name, self.settings): replace(looks, tiles=tiles)})


def list_detectors() -> list[str]:
    """List the detectors that are ready for use: packaged, without trained weights, or registered by other packages."""
    free = [name for name, kind in BUILT_IN.items() if kind.training is None and kind.base is None]
    return [*MODELS, *free, *registered()]


def load_detector(model: str | Path = PACKAGED) -> Detector:
    """Load a detector as a torch module, on the CPU.

    Its `score(queries, prompts)` takes queries Bx3xHxW and prompts Kx3xHxW, float32 in [0, 1]. It returns scores B and maps BxHxW, both in
    [0, 1]. model: as for `Predictor.load`, except kits. Raises BadInput if the detector does not exist or is damaged.
    """
    return named(model).detector


def named(model: str | Path) -> Named:
    """Load a detector by name. model: `packaged`, a name from `list_detectors` (with default settings), or a model folder.

    Raises BadInput if the detector does not exist or cannot be used.
    """
    name = DEFAULT if str(model) == PACKAGED else str(model)
    if name in ALIASES:
        kind, own = resolved(name, {})
        return of_package(name, settings_from_json(DETECTORS[kind].settings, own))
    if name in MODELS:
        return of_package(name, packaged_settings(name))
    if name in DETECTORS and DETECTORS[name].training is None and DETECTORS[name].base is None:
        settings = DETECTORS[name].settings()
        return Named(name, {name: settings}, create_detector(settings))
    folder = place_of(model)
    if (folder / CONFIG_NAME).is_file():
        return of_folder(folder)
    if folder.is_dir():
        raise BadInput(f"{model}: is neither a model folder nor a kit; it needs {CONFIG_NAME} or kit.json")
    ready = ", ".join((PACKAGED, *list_detectors()))
    raise BadInput(f"model {str(model)!r}: is neither a folder nor a detector that is ready for use; choose from {ready}")


def of_package(name: str, settings: Any) -> Named:
    """Load a detector with the weights in the package."""
    detector = create_detector(settings)
    fill(settings, detector)
    return Named(name, {name: settings}, detector)


def of_folder(folder: Path) -> Named:
    """Load the detector of a model folder."""
    name, settings = read_config(folder)
    one = empty(name, {name: settings})
    load_model(folder, one.detector)
    return one


def of_pipeline(name: str, detectors: Mapping[str, Any], models: Path) -> Named:
    """Load a pipeline's detector. detectors: settings of all its detectors. models: the parent of their model folders."""
    own = {one: detectors[one] for one in (name, base_of(name, detectors))}
    return Named(name, own, store.load_detector(name, detectors, models))


def of_fetched(name: str, detectors: Mapping[str, Any], models: Path) -> Named:
    """Load a detector as `of_pipeline`, from a folder of another project. Raises BadInput if weights are missing."""
    if (models / name / CONFIG_NAME).is_file():
        return of_folder(models / name)
    own = {one: detectors[one] for one in (name, base_of(name, detectors))}
    portable(own)
    for encoder in (getattr(settings, key, None) for settings in own.values() for key in ("encoder", "prior")):
        if encoder is not None and encoder.files:
            missing = in_short(encoder.files[0])
            raise BadInput(f"{models}: {name} needs {missing}, which is not in this folder; write a kit in its project")
    return of_pipeline(name, detectors, models)


def empty(name: str, settings: Mapping[str, Any]) -> Named:
    """Build a detector with random weights, to be overwritten. Raises BadInput if a network is not installed."""
    return Named(name, settings, store.load_detector(name, portable(settings), None))


def portable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings that read no weights, for a folder with all tensors.

    Raises BadInput if an encoder is a folder or a model of a hub, because loading it would read other files or connect.
    """
    result = {}
    for name, one in settings.items():
        changed: dict[str, Any] = {"model": None} if hasattr(one, "model") else {}
        for key in ("encoder", "prior"):
            encoder = getattr(one, key, None)
            if encoder is not None and encoder.name.startswith(ELSEWHERE):
                raise BadInput(
                    f"{key} {in_short(encoder.name)}: kits and model folders may only name networks that an installed library has; "
                    "use the detector by its pipeline, `--model <pipeline>/<detector>`"
                )
            if encoder is not None and encoder.weights != PACKAGED:
                changed[key] = replace(encoder, weights=OF_THE_MODEL)
        result[name] = replace(one, **changed)
    return result
