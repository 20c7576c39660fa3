"""Read the records of runs: JSON of a dataclass. Many are in Git, where a merge or an edit may damage them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

from pydantic import AfterValidator, FiniteFloat, StringConstraints, TypeAdapter, ValidationError

from changepair.flows.settings.reader import MERGE
from changepair.tasks.common.errors import BadInput, in_short
from changepair.tasks.common.texts import read_text

RecordT = TypeVar("RecordT")
_ADAPTERS: dict[type, TypeAdapter[Any]] = {}  # to make one takes longer than to read a record
MD5 = "[0-9a-f]{32}"  # as DVC writes one
Metrics = Mapping[str, Mapping[str, Mapping[str, FiniteFloat | None]]]
"""By target, detector and metric, each 0..1 or None: as metrics.json has them."""


def _is_a_time(text: str) -> str:
    if datetime.fromisoformat(text).tzinfo is None:
        raise ValueError("a time without its zone")
    return text


Moment = Annotated[str, AfterValidator(_is_a_time)]  # of ISO 8601, with its zone
Hash = Annotated[str, StringConstraints(pattern=f"^{MD5}$")]
FolderHash = Annotated[str, StringConstraints(pattern=rf"^({MD5}\.dir)?$")]  # of a folder, as DVC has it; empty for none


def as_record(kind: type[RecordT], text: str) -> RecordT:
    """Parse a record, without the fields that a later version added. Raises ValueError with one line."""
    adapter = _ADAPTERS.get(kind) or _ADAPTERS.setdefault(kind, TypeAdapter(kind))
    try:
        return cast(RecordT, adapter.validate_json(_with_current_names(text)))
    except ValidationError as error:
        detail = error.errors()[0]
        key = ".".join(str(part) for part in detail["loc"])
        what = "Git's marks of a merge are in it" if MERGE in text else f"{key}: {detail['msg']}" if key else detail["msg"]
        raise ValueError(in_short(what)) from error


def _with_current_names(text: str) -> str:
    """Rename the fields of a record, and of the choice in it, that an earlier version named otherwise."""
    if '"figure' not in text:
        return text
    try:
        content = json.loads(text)
    except ValueError:
        return text
    for part in (content, content.get("choice")) if isinstance(content, dict) else ():
        for old, new in (("figures", "metrics"), ("figure", "metric")):
            if isinstance(part, dict) and old in part and new not in part:
                part[new] = part.pop(old)
    return json.dumps(content)


def read_record(kind: type[RecordT], file: Path, hint: str = "") -> RecordT:
    """Read a file with one record. Raises BadInput if it is missing or damaged. hint: what the user can do then."""
    try:
        return as_record(kind, read_text(file))
    except ValueError as error:
        what = str(error) if isinstance(error, BadInput) else f"{file}: not as it was written ({error})"
        raise BadInput(f"{what}; {hint}" if hint else what) from error


def read_records(kind: type[RecordT], files: Iterable[Path]) -> list[tuple[Path, RecordT]]:
    """Read files with one record each; leave out those that are missing or damaged."""
    read = []
    for file in files:
        with suppress(BadInput):
            read.append((file, read_record(kind, file)))
    return read
