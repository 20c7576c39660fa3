"""Read text, JSON and tables that people wrote. Errors are one line with the place and the reason."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from changepair.tasks.common.errors import BadInput, in_short


def read_text(file: Path) -> str:
    """Read UTF-8, with or without a byte order mark. Raises BadInput if the file is missing, unreadable, a folder, or not UTF-8."""
    try:
        data = file.read_bytes()
    except FileNotFoundError as error:
        raise BadInput(f"{file}: no such file") from error
    except IsADirectoryError as error:
        raise BadInput(f"{file}: is a folder; name a file") from error
    except OSError as error:
        if error.strerror is None:
            raise  # an error of a store
        raise BadInput(f"{file}: cannot be read ({error.strerror})") from error
    return decode(data, file)


def decode(data: bytes, file: Path | str) -> str:
    """Decode UTF-8, with or without a byte order mark. `file` is its path or a name, for the error. Raises BadInput if it is not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise BadInput(f"{file}: not UTF-8 text (line {line}, byte 0x{data[error.start]:02x}); save it as UTF-8") from error


def read_json(file: Path) -> Any:
    """Read JSON. Raises BadInput as `read_text` does, and if it is not JSON."""
    text = read_text(file)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{file}: not JSON ({in_short(error)})") from error


def csv_rows(file: Path, columns: Sequence[str] = (), what: str = "such a table") -> Iterator[tuple[int, Mapping[str, str]]]:
    """Yield the rows of a CSV by its header, each with the number of its last line. Short rows are filled with "", and long ones are cut.

    `columns` are those that it needs, and `what` is the table's name in the error. Raises BadInput as `read_text` does, if a column is
    missing, or if it is not CSV.
    """
    head: Sequence[str] | None = None
    for line, cells in csv_lines(file):
        if head is None:
            head = cells
            need_columns(file, columns, head, what)
        elif cells:
            yield line, dict(zip(head, [*cells, *[""] * (len(head) - len(cells))], strict=False))
    if head is None:
        need_columns(file, columns, [], what)


def csv_lines(file: Path) -> Iterator[tuple[int, Sequence[str]]]:
    """Yield the cells of each row of a CSV without a header, with the number of its last line. Raises BadInput as `csv_rows` does."""
    rows = csv.reader(io.StringIO(read_text(file), newline=""))
    try:
        for cells in rows:
            yield rows.line_num, cells
    except csv.Error as error:
        raise BadInput(f"{file}: not CSV in line {rows.line_num} ({error})") from error


def need_columns(file: Path, columns: Sequence[str], names: Sequence[str], what: str = "such a table") -> None:
    """Raise BadInput if a table lacks one of the columns that it needs. `names` are those that it has."""
    missing = [name for name in columns if name not in names]
    if missing:
        raise BadInput(f"{file}: no column {missing[0]!r}, so not {what}; it has {in_short(', '.join(map(str, names)) or 'none')}")


def percent(fraction: float, digits: int = 2) -> str:
    """Format a fraction in percent, with `digits` significant digits and no exponent.

    >>> percent(1.0), percent(0.0476), percent(0.00012), percent(0.0)
    ('100', '4.8', '0.012', '0')
    """
    if fraction == 0:
        return "0"
    value = 100 * fraction
    places = max(0, digits - 1 - math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}")))))
    text = f"{value:.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
