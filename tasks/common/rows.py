"""Read and write rows of parquet tables as dataclasses. The fields of a row class are the table's columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import pyarrow as pa

from changepair.tasks.common.files import read_table, write_table

Int8 = Annotated[int, pa.int8()]
Int32 = Annotated[int, pa.int32()]
Row = TypeVar("Row")
COLUMNS = {str: pa.string(), bytes: pa.binary(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}


def schema_of(kind: type[Any]) -> pa.Schema:
    """Return the columns of a row class, from its fields' types. `Annotated` sets another column type, and `| None` allows null."""
    hints = get_type_hints(kind, include_extras=True)
    return pa.schema([pa.field(one.name, _column(hints[one.name]), nullable=NoneType in get_args(hints[one.name])) for one in fields(kind)])


def table_of(kind: type[Row], rows: Iterable[Row]) -> pa.Table:
    held, schema = list(rows), schema_of(kind)
    return pa.table([pa.array([getattr(row, column.name) for row in held], column.type) for column in schema], schema=schema)


def rows_of(kind: type[Row], columns: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Convert the result of `Table.to_pylist` to rows. Lists become tuples, and other columns are ignored."""
    names = schema_of(kind).names
    return [kind(**{name: tuple(line[name]) if isinstance(line[name], list) else line[name] for name in names}) for line in columns]


def write_rows(path: Path, kind: type[Row], rows: Iterable[Row]) -> None:
    """Write rows as parquet whose bytes depend only on them."""
    write_table(path, table_of(kind, rows))


def read_rows(path: Path, kind: type[Row], made_by: str) -> list[Row]:
    """Read rows from parquet. Raises BadInput if the file or a column is missing. `made_by` names the stage that writes it, for the
    error."""
    return rows_of(kind, read_table(path, schema_of(kind), made_by).to_pylist())


def _column(hint: Any) -> pa.DataType:
    """Return the column of a type: `str | None`, `tuple[str, ...]`, or a type annotated with a column."""
    if get_origin(hint) is Annotated:
        return next(part for part in get_args(hint) if isinstance(part, pa.DataType))
    kinds = [part for part in get_args(hint) if part not in (NoneType, Ellipsis)]
    if get_origin(hint) is tuple:
        return pa.list_(_column(kinds[0]))
    return _column(kinds[0]) if kinds else COLUMNS[hint]
