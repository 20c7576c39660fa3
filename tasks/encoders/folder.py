"""Find the weights of presets in folders of `changepair weights fetch`, and check them against their records."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields, replace
from pathlib import Path

from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.files import sha256
from changepair.tasks.encoders.presets import PRESETS, command_for, preset_of
from changepair.tasks.encoders.settings import FILES_OF_WEIGHTS, EncoderSettings

VARIABLE = "CHANGEPAIR_WEIGHTS"
"""Environment variable with the folder that is searched before the hub."""


@dataclass(frozen=True)
class Record:
    """Origin of a file of weights. It is written next to the file as JSON."""

    preset: str
    source: str
    """Repository and file on the hub, or the address."""
    revision: str
    """Commit of the repository; empty for an address."""
    sha256: str
    """Hash of the file that this record belongs to."""
    licence: str


def file_in(folder: str | Path, preset: str) -> Path:
    """Return the path of a preset's weights in a folder."""
    return Path(folder) / f"{preset}.safetensors"


def offline_file(preset: str) -> Path | None:
    """Return the file of a preset in the folder that CHANGEPAIR_WEIGHTS names; None if the variable is not set or has no such file."""
    folder = os.environ.get(VARIABLE)
    file = file_in(Path(folder).expanduser(), preset) if folder else None
    return file if file is not None and file.is_file() else None


def cached_address(url: str) -> Path:
    """Return the place where open_clip keeps what it downloads from an address."""
    return Path.home() / ".cache" / "clip" / url.rpartition("/")[2]


def on_disk(settings: EncoderSettings) -> EncoderSettings:
    """Return the settings with the file to read instead of a download, if a folder has the weights of the encoder's preset.

    Raises BadInput if `weights` is a file that does not exist, or a file differs from its record.
    """
    preset = preset_of(settings)
    if preset is None:
        return settings
    if settings.weights == PRESETS[preset].weights:
        file = offline_file(preset)
    elif settings.weights.endswith(FILES_OF_WEIGHTS):
        file = Path(settings.weights)
        if not file.is_file():
            raise BadInput(f"encoder {preset}: {file}: no such file of weights; {command_for(preset)}")
    else:
        return settings
    if file is None:
        return settings
    check_record(file)
    return replace(settings, weights=str(file))


def record_of(file: Path) -> Record | None:
    """Read the record next to a file of weights; None if it has none."""
    try:
        content = json.loads(file.with_suffix(".json").read_bytes())
        return Record(**{field.name: str(content[field.name]) for field in fields(Record)})
    except (KeyError, OSError, TypeError, ValueError):
        return None


def check_record(file: Path) -> None:
    """Compare a file with its record, if it has one. Raises BadInput if they differ."""
    record = record_of(file)
    if record is not None and (actual := sha256(file)) != record.sha256:
        raise BadInput(
            f"{file}: its sha256 is {actual[:12]}…, but {file.with_suffix('.json').name} states {record.sha256[:12]}…; "
            f"the file is damaged or was replaced; run `changepair weights fetch {record.preset} --to {file.parent}` again"
        )
