"""Read records of runs, which are dataclasses as JSON. Many are in Git, where a merge or an edit can damage them."""

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
_ADAPTERS: dict[type, TypeAdapter[Any]] = {}  # creating an adapter takes longer than reading a record
MD5 = "[0-9a-f]{32}"  # DVC's notation
Metrics = Mapping[str, Mapping[str, Mapping[str, FiniteFloat | None]]]
"""Values of metrics.json, 0..1 or None, by target, detector and metric."""


def _is_a_time(text: str) -> str:
    if datetime.fromisoformat(text).tzinfo is None:
        raise ValueError("a time without a time zone")
    return text


Moment = Annotated[str, AfterValidator(_is_a_time)]  # ISO 8601 with a time zone
Hash = Annotated[str, StringConstraints(pattern=f"^{MD5}$")]
FolderHash = Annotated[str, StringConstraints(pattern=rf"^({MD5}\.dir)?$")]  # DVC's hash of a folder, or empty


def as_record(kind: type[RecordT], text: str) -> RecordT:
    """Parse a record and ignore fields that a later version added. Raises ValueError with one line."""
    adapter = _ADAPTERS.get(kind) or _ADAPTERS.setdefault(kind, TypeAdapter(kind))
    try:
        return cast(RecordT, adapter.validate_json(_with_current_names(text)))
    except ValidationError as error:
        detail = error.errors()[0]
        key = ".".join(str(part) for part in detail["loc"])
        what = "merge conflict markers" if MERGE in text else f"{key}: {detail['msg']}" if key else detail["msg"]
        raise ValueError(in_short(what)) from error


def _with_current_names(text: str) -> str:
    """Rename the fields of a record, and of its choice, that an earlier version wrote under other names."""
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
    """Read a file with one record. Raises BadInput, with `hint` as the advice, if the file is missing or damaged."""
    try:
        return as_record(kind, read_text(file))
    except ValueError as error:
        what = str(error) if isinstance(error, BadInput) else f"{file}: damaged ({error})"
        raise BadInput(f"{what}; {hint}" if hint else what) from error


def read_records(kind: type[RecordT], files: Iterable[Path]) -> list[tuple[Path, RecordT]]:
    """Read files with one record each. Missing and damaged files are skipped."""
    read = []
    for file in files:
        with suppress(BadInput):
            read.append((file, read_record(kind, file)))
    return read
