"""Files as people have them: each is read right, or told; none is misread."""

import csv
import gzip
import io
import json
import re
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pytest

from dfolora.data import Rows, Task, load_rows
from dfolora.data import files as files_module
from dfolora.data.files import find_files, read_files, stream_lines, stream_rows
from dfolora.errors import UserError
from tests.shared import shared

TEXTS = ['say "hi", she said', "plain", '"whole"', 'a "b" c "', "", "café, so"]
TABLE = {"text": TEXTS, "label": ["0", "1"] * 3}


def tsv(rows, **layout):
    """As csv.writer writes rows after their header."""
    made = io.StringIO()
    csv.writer(made, delimiter="\t", **layout).writerows([["text", "label"], *rows])
    return made.getvalue()


def by_hand(*rows, header=("text", "label")):
    """Cells as they are, as GLUE's files have them."""
    return "".join("\t".join(row) + "\n" for row in (header, *rows))


def read(folder, content, name="train.tsv", names=None):
    """Read whole; row by row a file with names of its own is the same, or told the same of."""
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    by_row = names is None and path.name.split(".")[1] in ("csv", "tsv")
    try:
        found = read_files([path], names)
    except UserError as error:
        if by_row:
            with pytest.raises(UserError, match=re.escape(str(error))):
                list(stream_rows(path, []))
        raise
    if by_row:
        rows = list(stream_rows(path, [*found]))
        assert {name: [row[name] for row in rows] for name in found} == found
    return found


def test_json_lines_and_parquet_are_read_row_by_row(tmp_path):
    frame = pd.DataFrame({"text": TEXTS * 500, "n": range(3000)})
    frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    frame.to_parquet(tmp_path / "a.parquet", row_group_size=700)
    for name in ("a.jsonl", "a.parquet"):
        rows = list(stream_rows(tmp_path / name, ["n", "text"]))
        assert rows == frame[["n", "text"]].to_dict("records")


def test_row_by_row_no_more_of_a_file_is_read_than_was_asked_for(tmp_path):
    """The error of a later line is not seen before it is come to."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n' * 3 + "nonsense\n")
    rows = stream_rows(path, ["text"])
    assert [next(rows) for _ in range(3)] == [{"text": "a"}] * 3
    with pytest.raises(UserError, match=r"a\.jsonl, line 4 is not JSON"):
        next(rows)


def test_what_is_not_json_is_told_with_what_is_read_there(tmp_path):
    """A list of rows is read whole, and not row by row."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\nnonsense\n')
    with pytest.raises(UserError, match=r"line 2 is not JSON: .*\. Write a row a line\.$"):
        list(stream_rows(path, ["text"]))
    with pytest.raises(UserError, match=r"JSON: .*\. Write a row a line, or one list of rows\.$"):
        read_files([path])


def test_bytes_of_another_encoding_are_told_with_their_line_wherever_lines_come_from(tmp_path):
    path, lines = tmp_path / "a.jsonl", b'{"text": "a"}\n\n{"text": "caf\xe9"}\n'
    path.write_bytes(lines)
    told = r" is not UTF-8, first in line 3: invalid continuation byte; save the file as UTF-8\.$"
    with pytest.raises(UserError, match="standard input" + told):
        list(stream_lines(io.BytesIO(lines), "standard input", ["text"]))
    with pytest.raises(UserError, match=re.escape(str(path)) + told):
        list(stream_rows(path, ["text"]))


def test_large_tsv_with_marks_is_not_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(files_module, "MOST_MARKED", 40)
    path = tmp_path / "a.tsv"
    path.write_text("text\n" + "a long line\n" * 9)
    assert len(list(stream_rows(path, ["text"]))) == 9
    path.write_text("text\n" + 'a "long" line\n' * 9)
    with pytest.raises(UserError, match=r"a\.tsv has quotation marks and more than 40 bytes"):
        list(stream_rows(path, ["text"]))


# ------------------------------------------------------------------------ two kinds of TSV


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    "texts",
    [
        TEXTS,
        ["a", 'all "of" it', "b"],
        ["a\tb", "c", "d"],
        ["a\nb", "c", "d"],
        ['two\n"lines"', 'a\t"tab"', "d"],
        ["a", '"', '""', "b"],
    ],
)
def test_quoted_tsv_is_what_was_written(tmp_path, texts, quoting, end):
    rows = [[text, str(n % 2)] for n, text in enumerate(texts)]
    found = read(tmp_path, tsv(rows, quoting=quoting, lineterminator=end))
    assert found == {"text": texts, "label": [label for _, label in rows]}


def test_tsv_of_pandas_is_what_was_written(tmp_path):
    assert read(tmp_path, pd.DataFrame(TABLE).to_csv(sep="\t", index=False)) == TABLE


@pytest.mark.parametrize(
    "texts",
    [
        ['"Half', "a"],
        ['"Half', 'other half"'],
        ["a", 'in the " middle'],
        ["a", 'an inch is 1"', '"whole"'],
        ['"whole"', "b, c"],
        ["'' so '' ", "``so''"],
        ['"', "a"],
        ['"He said, " so " .', "a"],
    ],
)
def test_marks_of_unquoted_tsv_are_text(tmp_path, texts):
    rows = [(text, str(n % 2)) for n, text in enumerate(texts)]
    assert read(tmp_path, by_hand(*rows))["text"] == texts


@pytest.mark.parametrize("flip", [False, True])
def test_marks_of_several_unquoted_rows_are_no_cell_together(tmp_path, flip):
    """One that opens a text and one that ends another, with doubled ones between."""
    rows = [["label", "text"], ["1", '"one'], ["0", 'two ""x'], ["1", 'three"'], ["0", "four"]]
    content = "".join("\t".join(row[::-1] if flip else row) + "\n" for row in rows)
    assert read(tmp_path, content)["text"] == ['"one', 'two ""x', 'three"', "four"]


def test_tsv_of_two_kinds_is_refused_with_a_line_of_each(tmp_path):
    mixed = by_hand(("a", "0"), ('"say ""so"""', "1"), ('1" wide', "0"))
    with pytest.raises(UserError, match=r"mixes two kinds of TSV: line 3 wraps .*, line 4 has a m"):
        read(tmp_path, mixed)


def test_cell_that_a_spreadsheet_may_have_wrapped_is_refused(tmp_path):
    for cell in ('"yes, so"', '""'):
        with pytest.raises(UserError, match=r"line 2 has a cell .* two ways: as spreadsheets wr"):
            read(tmp_path, by_hand((cell, "0"), ("a", "1")))


def test_marks_around_every_cell_of_a_column_wrap_it(tmp_path):
    """As databases write texts, with or without a header."""
    rows = [('"a, b"', "0"), ('"c"', "1")]
    assert read(tmp_path, by_hand(*rows))["text"] == ["a, b", "c"]
    names = ["text", "label"]
    assert read(tmp_path, by_hand(*rows[1:], header=rows[0]), names=names)["text"] == ["a, b", "c"]


def test_case_of_quoted_cells():
    folder = shared("cases/tsv_quoted_cells")
    task = Task.from_file("sst2")
    rows = load_rows(task, "train", root=folder / "data")
    lines = (folder / "same.jsonl").read_text().splitlines()
    assert [text["sentence"] for text in rows.texts] == [
        json.loads(line)["sentence"] for line in lines[: len(rows)]
    ]


# ------------------------------------------------------------------------ lengths of rows


@pytest.mark.parametrize("name", ["train.tsv", "train.csv"])
@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["a"], r"line 3 has 1 cells, the header names 2: \['text', 'label'\]\. Mend"),
        (["a", "0", "x"], "line 3 has 3 cells, the header names 2"),
        (["a", "0", ""], "line 3 has 3 cells, the header names 2"),
    ],
)
def test_row_of_another_length_than_the_header_is_told(tmp_path, name, row, message):
    cells = by_hand(("b", "1"), row, ("c", "0"))
    with pytest.raises(UserError, match=rf"{name}, {message}"):
        read(tmp_path, cells if name.endswith("tsv") else cells.replace("\t", ","), name)


def test_line_that_is_told_counts_those_within_cells(tmp_path):
    with pytest.raises(UserError, match="line 4 has 1 cells"):
        read(tmp_path, 'text,label\n"a\nb",0\nc\n', "train.csv")


def test_empty_cells_and_lines_are_no_missing_ones(tmp_path):
    assert read(tmp_path, "text,label\n\n,0\n\na,1\n", "train.csv") == {
        "text": ["", "a"],
        "label": ["0", "1"],
    }


def test_marks_in_csv_that_are_not_doubled_are_told(tmp_path):
    with pytest.raises(UserError, match=r"cannot be read as csv: .* in line 2"):
        read(tmp_path, 'text,label\n"a "b" c",0\n', "train.csv")


def test_mark_in_csv_that_swallows_rows_is_told(tmp_path):
    half = 'text,label\n"Half,0\nb,1\nother half",0\n'
    with pytest.raises(UserError, match="ends in line 4, over several lines that would each be a"):
        read(tmp_path, half, "train.csv")
    assert read(tmp_path, half + '"c, d",1\n', "train.csv")["text"][1:] == ["c, d"]


def test_column_that_is_named_twice_is_told(tmp_path):
    with pytest.raises(UserError, match=r"names the columns \['label'\] twice"):
        read(tmp_path, "text,label,label\na,0,1\n", "train.csv")


TWICE = '{"text": "b", "label": 1, "label": 0}'


@pytest.mark.parametrize("content", [f'{{"text": "a", "label": 0}}\n{TWICE}\n', f"[{TWICE}]"])
def test_key_that_a_row_has_twice_is_told(tmp_path, content):
    """Python's reader would take the last."""
    where = r"train\.jsonl" + (r", line 2" if content.startswith("{") else "")
    with pytest.raises(UserError, match=rf"{where} has a row that names \['label'\] twice; keep"):
        read(tmp_path, content, "train.jsonl")
    with pytest.raises(UserError, match=r"it, line 1 has a row that names \['label'\] twice"):
        list(stream_lines(io.BytesIO(TWICE.encode()), "it", ["text"]))


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("short_rows", r"train\.tsv, line 2 has 1 cells, the header names 2"),
        ("rows_longer_than_header", r"train\.tsv, line 5 has 8 cells, the header names 4"),
    ],
)
def test_cases_of_rows_of_another_length(case, message):
    task = Task.from_file("sst2" if case == "short_rows" else "snli")
    with pytest.raises(UserError, match=message):
        load_rows(task, "train", root=shared(f"cases/{case}/data"))


# ------------------------------------------------------------------------ without a header


def test_columns_are_named_where_the_file_does_not(tmp_path):
    plain = b'"1","One","b, ""c"""\n"2","Two","d"\n'
    found = read(tmp_path, plain, "train.csv", ["label", "title", "text"])
    assert found == {"label": ["1", "2"], "title": ["One", "Two"], "text": ['b, "c"', "d"]}
    joined = read(tmp_path, plain, "train.csv", ["label", "text", "text"])
    assert joined == {"label": ["1", "2"], "text": ['One b, "c"', "Two d"]}
    with pytest.raises(UserError, match=r"line 1 has 3 cells, data\.columns names 2: \['label'"):
        read(tmp_path, plain, "train.csv", ["label", "text"])


def test_tsv_without_a_header_is_of_either_kind(tmp_path):
    quoted, names = '0\t"say ""so"""\n1\tb\n', ["label", "text"]
    assert read(tmp_path, quoted, names=names)["text"] == ['say "so"', "b"]
    assert read(tmp_path, '0\t"half\n1\tb\n', names=names)["text"] == ['"half', "b"]


def test_names_are_for_files_without_them(tmp_path):
    with pytest.raises(UserError, match=r"has names of its own .*\['a'\]; data\.columns is for"):
        read(tmp_path, b'{"a": 1}', "train.jsonl", ["b"])


def test_case_of_labels_from_one():
    root, task = shared("cases/no_header_labels_from_one/data"), Task.from_file("agnews")
    with pytest.raises(UserError, match=r"lacks the columns .* data\.columns=\[label,text\]"):
        load_rows(task, "train", root=root)
    columns = ("label", "text", "text")
    with pytest.raises(UserError, match=r"data\.labels=\[1,2,3,4\]"):
        load_rows(task, "train", root=root, columns=columns)
    rows = load_rows(task, "test", root=root, columns=columns, labels=(1, 2, 3, 4))
    assert rows.labels[:5] == (0, 1, 2, 3, 0)
    assert rows.texts[0]["text"].startswith("Item 0 the blanket")


# ------------------------------------------------------------------------ formats and places

ROWS: list[dict[str, Any]] = [{"text": f"row {n}", "label": n % 2} for n in range(6)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
COLUMNS = {"text": [row["text"] for row in ROWS], "label": [row["label"] for row in ROWS]}


@pytest.mark.parametrize("name", ["train.json", "train.jsonl"])
@pytest.mark.parametrize(
    "content",
    [
        LINES,
        json.dumps(ROWS).encode(),
        json.dumps(ROWS, indent=1).encode(),
        b"\xef\xbb\xbf" + json.dumps(ROWS).encode(),
        b"\n " + json.dumps(ROWS).encode(),
        b"\xef\xbb\xbf" + LINES,
    ],
)
def test_json_is_known_by_its_first_character(tmp_path, name, content):
    assert read(tmp_path, content, name) == COLUMNS


@pytest.mark.parametrize("kind", ["lines", "list"])
def test_case_of_json_by_another_name(kind):
    rows = load_rows(
        Task.from_file("sst2"), "train", root=shared(f"cases/json_lines_in_json/{kind}")
    )
    assert len(rows) == 80
    assert rows.labels[:2] == (0, 1)


PACK = {"gz": gzip.compress, "zst": lambda data: pa.compress(data, "zstd", asbytes=True)}


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("ending", ["jsonl", "json", "csv"])
def test_compressed_files_are_read(tmp_path, packed, ending):
    plain = LINES if ending != "csv" else b"text,label\na,0\n"
    name = f"train.{ending}.{packed}"
    expected = read(tmp_path, plain, f"train.{ending}")
    (tmp_path / f"train.{ending}").unlink()
    assert read(tmp_path, PACK[packed](plain), name) == expected
    assert find_files(tmp_path, ["train"], "train") == (tmp_path / name,)


@pytest.mark.parametrize("packed", PACK)
def test_parquet_is_not_compressed_once_more(tmp_path, packed):
    """Nor is that offered."""
    path = tmp_path / f"train.parquet.{packed}"
    path.write_bytes(PACK[packed](b"PAR1"))
    told = rf"{path.name} is compressed, which Parquet is within already; unpack the file\.$"
    with pytest.raises(UserError, match=told):
        read_files([path])
    with pytest.raises(UserError, match=told):
        list(stream_rows(path, ["text"]))
    with pytest.raises(UserError, match=r"write \.jsonl, \.csv, \.tsv \(also .*\) or \.parquet\."):
        list(stream_rows(tmp_path / "a.txt", ["text"]))


@pytest.mark.parametrize("packed", PACK)
def test_broken_compressed_file_is_told(tmp_path, packed):
    name = f"train.jsonl.{packed}"
    with pytest.raises(UserError, match=rf"{name} cannot be read as jsonl: .*[Tt]runcated"):
        read(tmp_path, PACK[packed](LINES * 50)[:-9], name)
    with pytest.raises(UserError, match=rf"{name} is not UTF-8, first in line 2"):
        read(tmp_path, PACK[packed](b'{"a": 1}\n\xff'), name)


@pytest.mark.parametrize("place", ["", "data"])
def test_shards_are_one_part_in_their_order(tmp_path, place):
    """As the hub stores them."""
    folder = tmp_path / place
    folder.mkdir(exist_ok=True)
    for number in range(3):
        part = pd.DataFrame(ROWS[2 * number : 2 * number + 2])
        part.to_parquet(folder / f"train-0000{number}-of-00003.parquet")
    assert read_files(find_files(tmp_path, ["train"], "train")) == COLUMNS
    (folder / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(UserError, match=r"has 2 shards train-\*\.parquet, .* which are not all"):
        find_files(tmp_path, ["train"], "train")


@pytest.mark.parametrize("other", ["train-00-of-2.csv", "train-2-of-3.csv", "train-2-of-2.csv"])
def test_shards_that_are_too_many_are_told(tmp_path, other):
    for name in ("train-0-of-2.csv", "train-1-of-2.csv", other):
        (tmp_path / name).write_text("text,label\na,0\n")
    with pytest.raises(UserError, match=r"has 3 shards .* or more than that"):
        find_files(tmp_path, ["train"], "train")


@pytest.mark.parametrize("stem", ["/x", "**", "test[:9]", "", "a\0b", "../x"])
def test_name_of_a_split_that_is_no_file_name_finds_nothing(tmp_path, stem):
    assert find_files(tmp_path, [stem], "test") is None


def test_shards_of_other_columns_are_told(tmp_path):
    (tmp_path / "train-0-of-2.csv").write_text("text,label\na,0\n")
    (tmp_path / "train-1-of-2.csv").write_text("label,texts\n0,a\n")
    with pytest.raises(UserError, match="have different columns"):
        read_files(find_files(tmp_path, ["train"], "train"))


def test_folders_that_datasets_saved_are_read(tmp_path):
    made = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": made, "test": made.select([1])}).save_to_disk(tmp_path)
    assert read_files(find_files(tmp_path, ["train"], "train")) == COLUMNS
    assert read_files(find_files(tmp_path, ["test"], "test"))["text"] == ["row 1"]


def test_two_sources_of_one_part_are_told(tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("train.csv", "data/train-0-of-1.csv"):
        (tmp_path / name).write_text("text,label\na,0\n")
    with pytest.raises(UserError, match=r"Several files for train rows: .*; keep one"):
        find_files(tmp_path, ["train"], "train rows")


# ------------------------------------------------------------------------ which part a file is

TASK = {
    "name": "toy", "title": "Toy", "fields": ["text"], "label": "label", "classes": ["no", "yes"],
    "metric": "accuracy",
    "prompts": {"released": {"causal": {"pattern": "{text}", "label_words": ["n", "y"]}}},
}  # fmt: skip


def toy(test):
    return Task.from_mapping(TASK | {"dataset": {"path": "x/y", "train": "train", "test": test}})


def files(folder, **rows):
    (folder / "toy").mkdir()
    for stem, count in rows.items():
        labelled = [row if count > 0 else {"text": row["text"]} for row in ROWS[: abs(count)]]
        lines = "".join(json.dumps(row) + "\n" for row in labelled)
        (folder / "toy" / f"{stem}.jsonl").write_text(lines)
    return folder


@pytest.mark.parametrize("stem", ["dev", "valid", "dev_matched"])
def test_labelled_dev_file_stands_for_the_hubs_validation(tmp_path, stem):
    root = files(tmp_path, train=6, test=-6, **{stem: 4})
    rows = load_rows(toy("validation"), "test", root=root)
    assert (len(rows), rows.source) == (4, str(root / "toy" / f"{stem}.jsonl"))
    with pytest.raises(
        UserError, match=rf"no labels, in .*test\.jsonl\. .*{stem}\.jsonl lies ther"
    ):
        load_rows(toy("test"), "test", root=root)


def test_file_of_the_splits_name_and_then_a_labelled_test_file_come_first(tmp_path):
    root = files(tmp_path, train=6, test=5, dev=4)
    assert len(load_rows(toy("validation"), "test", root=root)) == 5
    (root / "toy" / "validation.jsonl").write_bytes(LINES[: LINES.index(b"\n") + 1])
    assert len(load_rows(toy("validation"), "test", root=root)) == 1


def test_case_of_a_glue_folder():
    root = shared("cases/glue_folder/data")
    rows = load_rows(Task.from_file("sst2"), "test", root=root)
    assert rows.source.endswith("dev.tsv")
    assert rows == load_rows(Task.from_file("sst2"), "dev", root=root, given=True)


@pytest.mark.parametrize("label", [-1, "-", "-1"])
def test_text_of_a_row_without_a_label_does_not_matter(tmp_path, label):
    (tmp_path / "toy").mkdir()
    rows = [*ROWS, {"text": None, "label": label}, {"label": label}]
    (tmp_path / "toy" / "train.json").write_text(json.dumps(rows))
    found = load_rows(toy("test"), "train", root=tmp_path)
    assert found == Rows(
        texts=tuple({"text": text} for text in COLUMNS["text"]),
        labels=tuple(COLUMNS["label"]),
        unlabelled=2,
    )
    rows[0] = {"text": None, "label": 0}
    (tmp_path / "toy" / "train.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match="row 1, 'text' is not text: None"):
        load_rows(toy("test"), "train", root=tmp_path)


def test_case_of_texts_that_are_missing_where_no_label_is():
    root = shared("cases/text_missing_where_no_label/data")
    rows = load_rows(Task.from_file("snli"), "train", root=root)
    assert rows.unlabelled == 17
    assert {*rows.labels} == {0, 1, 2}


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_case_of_class_names_that_are_digits(kind):
    folder = shared("cases/class_names_are_digits")
    task = Task.from_file(folder / "conf" / "task" / "stars.yaml")
    with pytest.raises(UserError, match=r"0 is class '0' by name and class '1' by position"):
        load_rows(task, "train", root=folder / kind)
    rows = load_rows(task, "train", root=folder / kind, labels=("1", "0"))
    assert rows.labels[:3] == (1, 0, 1)
