"""Reading tables: what stands in the file comes out, and nothing is guessed."""

from __future__ import annotations

import csv
import json
import types

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from edgekd.errors import AssetError, DataError
from edgekd.tasks import tables

COLUMNS = ("text", "label")
cells = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
records = st.lists(st.tuples(cells, cells), max_size=8)


def written(folder, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def in_file(factory, name: str):
    return factory.mktemp("table") / name


@given(records)
@pytest.mark.parametrize(("name", "delimiter"), [("t.csv", ","), ("t.tsv", "\t")])
def test_any_cells_written_by_the_csv_module_come_back(name, delimiter, tmp_path_factory, pairs):
    path = in_file(tmp_path_factory, name)
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, delimiter=delimiter).writerows([("label", "more", "text"), *((b, "", a) for a, b in pairs)])
    table = tables.read(str(path), COLUMNS)
    assert list(zip(table.cells["text"], table.cells["label"], strict=True)) == pairs
    assert table.rows == list(range(len(pairs)))


@given(records)
def test_any_rows_of_an_orange_table_come_back_but_those_without_a_class(tmp_path_factory, pairs):
    path = in_file(tmp_path_factory, "t.tab")
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, delimiter="\t").writerows([("label", "text"), ("d", "string"), ("class", "")])
        stream.write("\n")  # as in the files that Orange's own catalogue has
        csv.writer(stream, delimiter="\t").writerows((label, text) for text, label in pairs)
    table = tables.read(str(path), COLUMNS)
    expected = [(row, text, label) for row, (text, label) in enumerate(pairs) if label]
    assert list(zip(table.rows, table.cells["text"], table.cells["label"], strict=True)) == expected


@given(st.lists(st.fixed_dictionaries({"text": cells, "label": st.integers() | cells | st.none()}), max_size=8))
def test_any_json_lines_come_back_with_their_types(tmp_path_factory, objects):
    path = in_file(tmp_path_factory, "t.jsonl")
    path.write_text(
        "\n\n".join(json.dumps(o, ensure_ascii=False) for o in objects) + "\n", encoding="utf-8", newline=""
    )
    table = tables.read(str(path), COLUMNS)
    assert [{"text": a, "label": b} for a, b in zip(table.cells["text"], table.cells["label"], strict=True)] == objects
    assert table.rows == list(range(len(objects)))


@given(st.lists(st.tuples(st.none() | cells, st.none() | st.integers(-(2**63), 2**63 - 1)), max_size=8))
@pytest.mark.parametrize("name", ["t.parquet", "t.parquet.brotli", "T.PARQUET"])
def test_any_parquet_columns_come_back_with_their_types(name, tmp_path_factory, pairs):
    path = in_file(tmp_path_factory, name)
    texts, labels = [a for a, _ in pairs], [b for _, b in pairs]
    schema = pyarrow.schema([("label", pyarrow.int64()), ("text", pyarrow.string())])
    parquet.write_table(pyarrow.table([labels, texts], schema=schema), path)
    assert tables.read(str(path), COLUMNS).cells == {"text": texts, "label": labels}


def test_text_cells_are_not_interpreted(tmp_path):
    path = written(tmp_path, "t.csv", "text,label\nNA,007\n,1.0\n null ,TRUE\n")
    table = tables.read(path, COLUMNS)
    assert table.cells == {"text": ["NA", "", " null "], "label": ["007", "1.0", "TRUE"]}


def test_a_byte_order_mark_and_blank_lines_are_no_data(tmp_path):
    path = written(tmp_path, "t.csv", "\ufefftext,label\r\n\r\na,b\r\n\r\nc,d\r\n")
    assert tables.read(path, COLUMNS) == tables.Table([0, 1], {"text": ["a", "c"], "label": ["b", "d"]})


def test_a_document_may_be_longer_than_the_csv_modules_own_limit(tmp_path):
    before = csv.field_size_limit()
    long = "word " * 100_000
    assert tables.read(written(tmp_path, "t.csv", f"text,label\n{long},a\n"), COLUMNS).cells["text"] == [long]
    assert csv.field_size_limit() == before


def test_one_column_may_be_asked_for_twice(tmp_path):
    path = written(tmp_path, "t.csv", "text,label\na,b\n")
    assert tables.read(path, ("text", "text")).cells == {"text": ["a"]}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", "Text,class\na,b\n"),
        ("t.tsv", "Text\tclass\na\tb\n"),
        ("t.tab", "Text\tclass\nstring\td\n\tclass\na\tb\n"),
        ("t.jsonl", '{"Text": "a", "class": "b"}\n'),
    ],
)
def test_a_missing_column_lists_what_there_is_and_the_nearest(name, content, tmp_path):
    with pytest.raises(DataError, match=r"no column 'text'; it has 'Text', 'class' \(did you mean 'Text'\?\)"):
        tables.read(written(tmp_path, name, content), COLUMNS)


def test_a_missing_column_of_a_parquet_file_lists_what_there_is(tmp_path):
    parquet.write_table(pyarrow.table({"text": ["a"], "topic": ["b"]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"no column 'label'; it has 'text', 'topic'$"):
        tables.read(str(tmp_path / "t.parquet"), COLUMNS)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "", "no column 'text'; it has none"),
        ("t.csv", "text,label,text\na,b,c\n", "2 columns named 'text'"),
        ("t.csv", "text,label\na,b\na,b,c\n", r"line 3: 3 cells, but the header has 2"),
        ("t.csv", "text,label\na\n", r"line 2: 1 cells"),
        ("t.csv", 'text,label\n"a,b\nc,d\n', r"near line \d: .*look at the quotes"),
        ("t.csv", 'text,label\n"a"x,b\n', r"near line 2"),
        ("t.csv", b"text,label\n\xff\xfe,b\n", "not utf-8"),
        ("t.jsonl", b'{"text": "\xff", "label": 1}\n', "not utf-8"),
        ("t.jsonl", '{"text": "a", "label": 1}\n{"text"', r"line 2: not JSON"),
        ("t.jsonl", "[1, 2]\n", r"line 1: not a JSON object"),
        ("t.jsonl", '{"text": "a", "label": 1}\n{"text": "a"}\n', r"line 2 has no column 'label'"),
        ("t.parquet", b"PAR1 and then nothing", "not a readable Parquet file"),
        ("t.csv.gz", b"\x1f\x8b", r"t\.csv\.gz: no known table format; use .*\.jsonl"),
        ("t", "text,label\n", "no known table format"),
        ("t.tab", "label\ttext\nearn\tprofits rose\nearn\tprofits fell\n", "not an Orange table.*ending .tsv"),
    ],
)
def test_malformed_tables_are_refused_with_the_place(name, content, message, tmp_path):
    with pytest.raises(DataError, match=message):
        tables.read(written(tmp_path, name, content), COLUMNS)


@pytest.mark.parametrize(
    ("name", "content"), [("t.tab", "label\ttext\nd\tstring\n"), ("t.csv", "text,label\n"), ("t.jsonl", "\n")]
)
def test_a_table_may_have_no_rows(name, content, tmp_path):
    assert tables.read(written(tmp_path, name, content), COLUMNS).rows == []


@given(st.binary(max_size=60))
@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.tab", "t.jsonl", "t.parquet"])
def test_any_bytes_without_the_column_are_a_data_error_or_no_rows(name, tmp_path_factory, content):
    path = in_file(tmp_path_factory, name)
    path.write_bytes(content)
    try:
        assert tables.read(str(path), ("a column that no sixty bytes can name, as it is longer than that",)).rows == []
    except DataError as error:
        assert str(path) in str(error)


def test_class_indices_of_a_hub_parquet_file_become_names(tmp_path):
    features = {
        "label": {"names": ["neg", "pos"], "_type": "ClassLabel"},
        "text": {"dtype": "string", "_type": "Value"},
    }
    table = pyarrow.table({"text": ["a", "b", "c"], "label": [1, 0, -1]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, tmp_path / "t.parquet")
    assert tables.read(str(tmp_path / "t.parquet"), COLUMNS).cells["label"] == ["pos", "neg", None]


def test_a_parquet_file_written_by_datasets_reads_the_same_through_both_ways(tmp_path, monkeypatch):
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    data = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    data.to_parquet(tmp_path / "t.parquet")
    asked = []

    def load_dataset(name, config, *, split, revision):
        asked.append((name, config, split, revision))
        return data

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    from_file = tables.read(str(tmp_path / "t.parquet"), COLUMNS)
    assert from_file == tables.read("hf-data:org/name@abc:sub/train", COLUMNS)
    assert from_file.cells == {"text": ["a", "b"], "label": ["pos", "neg"]}
    assert asked == [("org/name", "sub", "train", "abc")]
    with pytest.raises(DataError, match=r"hf-data:org/name/train has no column 'body'; it has 'text', 'label'"):
        tables.read("hf-data:org/name/train", ("body",))


@pytest.mark.parametrize(
    ("raised", "expected"),
    [(ValueError("Unknown split 'x'. Should be one of ['train']."), DataError), (OSError, AssetError)],
)
def test_what_the_hub_refuses_is_an_error_of_ours(raised, expected, monkeypatch):
    def load_dataset(*args, **options):
        raise raised

    monkeypatch.setitem(__import__("sys").modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(expected, match="hf-data:org/name/x"):
        tables.read("hf-data:org/name/x", COLUMNS)
