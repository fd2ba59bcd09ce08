from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import report_fixture as made

from edgekd.errors import StoreError
from edgekd.report import markdown, schema
from edgekd.store import write_json

REPORT = made.report()
OLDER: dict[str, Any] = {"isa": [], "session": {}, "devices": [], "ship": [], "conversions": {}}
"""What older reports lack, and what stands for it."""


def parts(node: Any, place: str = "") -> list[tuple[str, dict[str, Any]]]:
    found = [(f"{place}.{name}", given) for name, given in node.get("properties", {}).items()]
    deeper = [*found, *((f"{place}.{name}", given) for name, given in node.get("$defs", {}).items())]
    return found + [part for name, given in deeper for part in parts(given, name)]


def test_the_schema_is_a_valid_schema_of_2020_12() -> None:
    jsonschema.Draft202012Validator.check_schema(schema.schema())


def test_every_quantity_has_its_unit_in_its_name_or_is_described() -> None:
    units = ("_ms", "_s", "_mib", "_bytes", "_per_s", "bytes", "seconds")
    bare = [
        name
        for name, given in parts(schema.schema())
        if given.get("type") in ("number", ["number", "null"])
        and "description" not in given
        and not name.endswith(units)
    ]
    allowed = ("low", "high", "limit", "measured", "epochs", "kl", "difference", "step")  # of what they belong to
    assert [name for name in bare if name.rpartition(".")[2] not in allowed] == []


@pytest.mark.parametrize("smoke", [False, True])
def test_a_built_report_is_valid_and_survives_json(smoke: bool) -> None:
    report = made.report(smoke=smoke)
    schema.validate(json.loads(json.dumps(report, allow_nan=False)))


@pytest.mark.parametrize(
    ("path", "value", "place"),
    [
        (("rows", 3, "p50_ms"), -1, r"report\.rows\[3\]\.p50_ms"),
        (("rows", 0, "workload"), "fixed", r"report\.rows\[0\]\.workload"),
        (("rows", 0, "score"), 1.2, r"report\.rows\[0\]\.score"),
        (("verdicts", "int8_vs_fp32"), "quick", r"report\.verdicts\.int8_vs_fp32"),
        (("sizes", "student_qad", 0, "kind"), "magic", r"report\.sizes\.student_qad\[0\]\.kind"),
        (("created",), "yesterday", r"report\.created"),
        (("isa", 0, "isa"), "sse", r"report\.isa\[0\]\.isa"),
        (("headline",), [], r"report\.headline"),
    ],
)
def test_a_wrong_field_is_named_by_its_path(path: tuple[Any, ...], value: Any, place: str) -> None:
    report = copy.deepcopy(REPORT)
    node: Any = report
    for step in path[:-1]:
        node = node[step]
    node[path[-1]] = value
    with pytest.raises(StoreError, match=place):
        schema.validate(report)


def test_an_invalid_row_must_say_why_and_a_valid_one_must_not() -> None:
    for change in ({"valid": False, "why_invalid": None}, {"valid": True, "why_invalid": "noise"}):
        report = copy.deepcopy(REPORT)
        report["rows"][0] |= change
        with pytest.raises(StoreError, match=r"rows\[0\]\.why_invalid"):
            schema.validate(report)


@pytest.mark.parametrize("name", sorted(REPORT.keys() - OLDER.keys()))
def test_no_field_at_the_top_may_be_missing(name: str) -> None:
    with pytest.raises(StoreError):
        schema.validate({key: value for key, value in REPORT.items() if key != name})


def test_a_report_of_before_some_fields_were_is_read_and_shown(tmp_path: Path) -> None:
    older = {key: value for key, value in REPORT.items() if key not in OLDER}
    older["rows"] = [{k: v for k, v in row.items() if k not in ("agreement_onnx", "version")} for row in older["rows"]]
    write_json(tmp_path / "report.json", older)
    found = schema.load(tmp_path / "report.json")
    assert {key: found[key] for key in OLDER} == OLDER
    assert "## What to ship where" not in markdown.render(found)


def test_an_unknown_field_at_the_top_is_refused() -> None:
    with pytest.raises(StoreError, match="extra"):
        schema.validate(REPORT | {"extra": 1})


@pytest.mark.parametrize("found", [None, [], {}, {"schema": "edgekd.report/2"}])
def test_what_is_no_report_of_this_version_is_refused(found: Any) -> None:
    with pytest.raises(StoreError, match=r"edgekd\.report/1"):
        schema.validate(found)


def test_a_missing_or_damaged_file_says_how_to_make_the_report(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="make it with `edgekd run`"):
        schema.load(tmp_path / "report.json")
    (tmp_path / "report.json").write_text('{"schema": ')
    with pytest.raises(StoreError, match="make it again"):
        schema.load(tmp_path / "report.json")
