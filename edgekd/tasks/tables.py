"""Read named columns of a table: CSV, TSV, JSON Lines, Parquet, Orange ``.tab`` or a data set of the model hub.

Nothing is guessed: a cell of a text format is the string that stands there (``NA``, ``007`` and an empty cell too),
and a cell of a typed format keeps its type.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard

from edgekd import assets
from edgekd.errors import AssetError, DataError, MissingDependencyError
from edgekd.progress import Progress

MAX_CELL = 2**30  # characters; the csv module's own limit cuts at 128 thousand

ORANGE_TYPES = {"d", "discrete", "c", "continuous", "s", "string", "text", "t", "time", "basket"}
ORANGE_FLAGS = {"class", "c", "meta", "m", "ignore", "i", "weight", "w"}


@dataclass(frozen=True)
class Table:
    """``rows[i]`` is the 0-based number, in the source, of the row that ``cells[column][i]`` comes from.

    Blank lines of a text format are no rows. A class-labelled integer column holds its class names.
    """

    rows: list[int]
    cells: dict[str, list[Any]]


def read(locator: str, columns: tuple[str, ...], progress: Progress | None = None, encoding: str = "utf-8") -> Table:
    """Read ``columns`` of the table that ``locator`` means (see ``edgekd.assets``); a text format in ``encoding``.

    Raise ``DataError`` for a column that is not there (naming those that are), an unknown format or encoding or a
    malformed row, and ``AssetError`` when the source cannot be had.
    """
    where = assets.parse(locator)
    if where.kind == "hf-data":
        return _hub(where, columns, locator)
    path = assets.resolve(locator, progress=progress)
    endings = [suffix.lower() for suffix in path.suffixes] or [""]
    ending = ".parquet" if ".parquet" in endings else endings[-1]  # Parquet files are called .parquet.brotli and so on
    if ending not in FORMATS:
        raise DataError(f"{path.name}: no known table format; use a file that ends with one of {', '.join(FORMATS)}")
    read_format, is_text = FORMATS[ending]
    try:
        return read_format(path, columns, encoding) if is_text else read_format(path, columns)
    except UnicodeDecodeError as error:
        raise DataError(
            f'{path}: not {encoding} ({error}); name its encoding in the task (encoding="latin-1" takes any byte), or '
            "convert it, e.g. with `iconv -t UTF-8`"
        ) from error
    except LookupError as error:
        raise DataError(f"{path}: {error}; write the task's encoding as Python spells it") from error


def check_columns(name: str, wanted: tuple[str, ...], present: list[str]) -> None:
    """Raise ``DataError`` unless each wanted column is present once."""
    for column in wanted:
        if column not in present:
            near = difflib.get_close_matches(column.lower(), [p.lower() for p in present], n=1)
            hint = f" (did you mean {next(p for p in present if p.lower() == near[0])!r}?)" if near else ""
            raise DataError(f"{name} has no column {column!r}; it has {', '.join(map(repr, present)) or 'none'}{hint}")
        if present.count(column) > 1:
            raise DataError(f"{name} has {present.count(column)} columns named {column!r}; rename all but one")


def is_text(value: object) -> TypeGuard[str]:
    """Whether a cell is text that can be stored: JSON may hold half of a surrogate pair, which is no character."""
    return isinstance(value, str) and (value.isascii() or not any("\ud800" <= x <= "\udfff" for x in value))


# -------------------------------------------------------------------------------------------------------- text formats


def _delimited(path: Path, columns: tuple[str, ...], encoding: str, delimiter: str) -> Table:
    lines = _lines(path, delimiter, encoding)
    _, header = next(lines, (0, []))
    return _collect(path, columns, header, lines)


def _orange(path: Path, columns: tuple[str, ...], encoding: str) -> Table:
    """Three header lines (names, types, flags), then tab-separated rows; a row without its class is left out."""
    lines = _lines(path, "\t", encoding)
    header, types, flags = ([cell.strip() for cell in next(lines, (0, []))[1]] for _ in range(3))
    options = [word for cell in flags for word in cell.split()]
    typed = bool(types) and all(kind.lower() in ORANGE_TYPES for kind in types) and len(types) == len(header)
    if not typed or len(flags) > len(header) or not all(word in ORANGE_FLAGS or "=" in word for word in options):
        raise DataError(
            f"{path}: not an Orange table, which starts with three lines: names, types (d, c, string, ...) and flags "
            "(class, meta, ...). Give a table with one header line the ending .tsv."
        )
    table = _collect(path, columns, header, lines)
    classes = [column for column in columns if types[header.index(column)].lower() in ("d", "discrete")]
    keep = [i for i in range(len(table.rows)) if all(table.cells[column][i] for column in classes)]
    return Table([table.rows[i] for i in keep], {name: [cells[i] for i in keep] for name, cells in table.cells.items()})


def _lines(path: Path, delimiter: str, encoding: str) -> Iterator[tuple[int, list[str]]]:
    """Each record that is no blank line, with the number of the line it ends on."""
    limit = csv.field_size_limit(MAX_CELL)
    try:
        with path.open(encoding=_without_mark(encoding), newline="") as stream:
            reader = csv.reader(stream, delimiter=delimiter, strict=True)
            for record in reader:
                if record:
                    yield reader.line_num, record
    except csv.Error as error:
        raise DataError(f"{path}, near line {reader.line_num}: {error}; look at the quotes around there") from error
    finally:
        csv.field_size_limit(limit)


def _without_mark(encoding: str) -> str:
    """The encoding that leaves out the mark which some programs put before UTF-8."""
    return "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding


def _collect(path: Path, columns: tuple[str, ...], header: list[str], lines: Iterator[tuple[int, list[str]]]) -> Table:
    check_columns(str(path), columns, header)
    places = [header.index(column) for column in columns]
    found: list[list[str]] = []
    for number, record in lines:
        if len(record) != len(header):
            raise DataError(
                f"{path}, line {number}: {len(record)} cells, but the header has {len(header)}; mend the row"
            )
        found.append([record[place] for place in places])
    return Table(list(range(len(found))), {name: [row[i] for row in found] for i, name in enumerate(columns)})


def _json_lines(path: Path, columns: tuple[str, ...], encoding: str) -> Table:
    cells: dict[str, list[Any]] = {column: [] for column in columns}
    with path.open(encoding=_without_mark(encoding), newline="\n") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip(" \t\r\n"):
                continue
            try:
                record = json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise DataError(f"{path}, line {number}: not JSON ({error}); write one object a line") from error
            if not isinstance(record, dict):
                raise DataError(f"{path}, line {number}: not a JSON object; write one object a line")
            check_columns(f"{path}, line {number}", columns, list(record))
            for column in columns:
                cells[column].append(record[column])
    return Table(list(range(len(cells[columns[0]]))), cells)


# ------------------------------------------------------------------------------------------------------- typed formats


def _parquet(path: Path, columns: tuple[str, ...]) -> Table:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            check_columns(str(path), columns, schema.names)
            table = file.read(columns=list(columns))
        extra = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({error}); fetch or write it again") from error
    features = extra.get("info", {}).get("features", {})
    cells = {}
    for column in columns:
        feature = features.get(column)
        names = feature.get("names") if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None
        cells[column] = _named(table[column].to_pylist(), names)
    return Table(list(range(table.num_rows)), cells)


def _hub(where: assets.Locator, columns: tuple[str, ...], locator: str) -> Table:
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError("hf-data: sources need `datasets`; run `pip install datasets`") from error
    try:
        data = datasets.load_dataset(
            where.name, where.config or None, split=where.member, revision=where.revision or None
        )
    except ValueError as error:  # an unknown configuration or split; the message lists those there are
        raise DataError(f"{locator}: {error}") from error
    except Exception as error:  # the client's errors differ between its versions and HTTP libraries
        raise AssetError(
            f"cannot fetch {locator}: {error}. Check the name and the network; or save the split as Parquet where "
            "there is one, and name that file."
        ) from error
    check_columns(locator, columns, list(data.column_names))
    named = {column: getattr(data.features[column], "names", None) for column in columns}
    return Table(list(range(len(data))), {column: _named(list(data[column]), named[column]) for column in columns})


def _named(values: list[Any], names: list[str] | None) -> list[Any]:
    """Class names in place of class indices; no name for an index that has none (-1 marks an unlabelled row)."""
    if names is None:
        return values
    return [names[value] if isinstance(value, int) and 0 <= value < len(names) else None for value in values]


FORMATS: dict[str, tuple[Callable[..., Table], bool]] = {
    ".csv": (partial(_delimited, delimiter=","), True),
    ".tsv": (partial(_delimited, delimiter="\t"), True),
    ".tab": (_orange, True),
    ".jsonl": (_json_lines, True),
    ".ndjson": (_json_lines, True),
    ".parquet": (_parquet, False),
}
"""How a file that ends so is read, and whether it is text, which has an encoding."""
