"""Every format gives the same rows; every sort of damage names the file, the row and how much is wrong."""

from __future__ import annotations

import builtins
import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from optimizer.data.readers import FORMATS, Row, format_of, read_rows
from optimizer.errors import BadInput, MissingPiece

BENCHMARKS = Path(__file__).parents[2] / "benchmarks" / "data"
ROWS = [{"text": "good", "label": 1}, {"text": "“bad”, é\n2nd line", "label": 0}, {"text": "", "label": 1}]


def write(path: Path, rows: list[dict] = ROWS) -> Path:
    match path.suffix:
        case ".jsonl":
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        case ".json":
            path.write_text(json.dumps(rows), encoding="utf-8")
        case ".csv":
            with open(path, "w", newline="", encoding="utf-8") as handle:
                writer = csv.DictWriter(handle, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        case ".parquet":
            import pyarrow
            from pyarrow import parquet

            parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        case "":
            import pyarrow

            path.mkdir()
            table = pyarrow.Table.from_pylist(rows)
            # Two shards, as save_to_disk writes them: Arrow streams, listed in state.json.
            for index, part in enumerate((table.slice(0, 1), table.slice(1))):
                file = str(path / f"data-{index:05}-of-00002.arrow")
                with pyarrow.OSFile(file, "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
                    writer.write_table(part)
            files = [{"filename": f"data-{index:05}-of-00002.arrow"} for index in range(2)]
            (path / "state.json").write_text(json.dumps({"_data_files": files, "_fingerprint": "x", "_split": "test"}))
            (path / "dataset_info.json").write_text("{}")
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "dataset"])
def test_formats_give_the_same_rows(tmp_path: Path, name: str) -> None:
    rows = read_rows(write(tmp_path / name))
    values = [{**row.values, "label": int(row.values["label"])} for row in rows]
    assert values == ROWS
    # A csv's first row is line 2, and its second spans two lines.
    assert [row.number for row in rows] == ([2, 3, 5] if name == "a.csv" else [1, 2, 3])
    assert [row.values for row in read_rows(tmp_path / name, limit=2)] == [row.values for row in rows[:2]]


def test_the_sentiment_files_are_whole() -> None:
    train, test = (read_rows(BENCHMARKS / f"sentiment-{part}.jsonl") for part in ("train", "test"))
    assert (len(train), len(test)) == (2379, 600)
    assert not {row.values["text"] for row in train} & {row.values["text"] for row in test}


def test_txt_keeps_line_numbers_and_skips_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\n\r\n  two\n".encode())
    rows = read_rows(tmp_path / "a.txt")
    assert [(row.number, row.values["text"]) for row in rows] == [(1, "one"), (3, "two")]
    assert str(rows[1]) == f"{tmp_path / 'a.txt'}, row 3"


def test_npz_rows_are_slices_of_the_first_axis(tmp_path: Path) -> None:
    x, y = np.arange(12, dtype=np.int32).reshape(3, 4), np.array([5, 6, 7], np.uint8)
    np.savez_compressed(tmp_path / "a.npz", x=x, y=y)
    rows = read_rows(tmp_path / "a.npz")
    assert len(rows) == 3
    assert np.array_equal(rows[2].values["x"], x[2])
    assert rows[2].values["x"].dtype == np.int32
    assert rows[2].values["y"] == 7


def test_image_folder_labels_by_its_subfolders_in_order(tmp_path: Path) -> None:
    for name in ("dog/2.png", "cat/1.JPG", "cat/deep/3.bmp", ".hidden.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    rows = read_rows(tmp_path)
    assert [row.values for row in rows] == [
        {"image": "cat/1.JPG", "label": "cat"},
        {"image": "cat/deep/3.bmp", "label": "cat"},
        {"image": "dog/2.png", "label": "dog"},
    ]
    assert rows[0].base == tmp_path


def test_flat_image_folder_has_no_labels(tmp_path: Path) -> None:
    Image.new("L", (2, 2)).save(tmp_path / "a.webp")
    assert read_rows(tmp_path)[0].values == {"image": "a.webp"}


def refused(path: Path) -> str:
    with pytest.raises(BadInput) as caught:
        read_rows(path)
    return str(caught.value)


def test_bad_rows_are_named_and_counted(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"row {n}"}).encode() for n in range(1, 41)]
    for n in range(17, 37):
        lines[n - 1] = lines[n - 1][:-3]
    path = tmp_path / "calib.jsonl"
    path.write_bytes(b"\n".join(lines))
    message = refused(path)
    assert "calib.jsonl, row 17: not JSON" in message
    assert "20 of 40 rows are bad" in message
    # Rows before the damage can still be had by someone who asks for no more than those.
    assert len(read_rows(path, limit=16)) == 16


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"text": "ok"}\n{"text": "\xff"}\n', ["row 2", "not UTF-8", "0xff"]),
        ("a.jsonl", b'{"text": "ok"}\n[1, 2]\n', ["row 2", "object", "list"]),
        ("a.jsonl", b'{"text": "ok"}\n' + b"[" * 100_000, ["row 2", "nested too deep"]),
        ("a.jsonl", b"\n\n", ["has no rows"]),
        ("a.jsonl", b"", ["has no rows"]),
        ("a.txt", b"fine\n\xe9t\xe9\n", ["row 2", "not UTF-8"]),
        ("a.json", b'[{"text": 1},', ["is not JSON", "line 1"]),
        ("a.json", b'{"text": 1}', ["list of objects"]),
        ("a.json", b'[{"text": 1}, 3]', ["row 2", "object"]),
        ("a.json", b"[]", ["has no rows"]),
        ("a.json", b"\xff\xfe", ["is not JSON"]),
        ("a.csv", b"text,label\n", ["has no rows"]),
        ("a.csv", b"", ["has no rows"]),
        ("a.csv", b"text,label\na,1\nb\nc,2,3\n", ["row 3", "1 fields where the header has 2", "2 of 3 rows"]),
        ("a.csv", b"text,label\n\xe9,1\n", ["row 2", "not UTF-8"]),
        ("a.csv", b'text,label\n"a"b,1\n', ["row 2", "not CSV"]),
        ("a.csv", b"text,text\na,b\n", ["two columns are called 'text'"]),
        ("a.parquet", b"PAR1 but no more", ["cannot be read"]),
        ("a.npz", b"PK\x03\x04 but no more", ["no archive of plain arrays"]),
        ("a.npz", b"plain text", ["no archive of plain arrays"]),
        ("a.xlsx", b"", [".xlsx", ".jsonl", ".parquet"]),
        ("a.images", b"", [".images"]),
    ],
)
def test_damage_is_named(tmp_path: Path, name: str, content: bytes, said: list[str]) -> None:
    (tmp_path / name).write_bytes(content)
    message = refused(tmp_path / name)
    assert name in message
    for words in said:
        assert words in message


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(10_000))
    write(tmp_path / "a.parquet", ROWS * 100)
    write(tmp_path / "dataset", ROWS * 100)
    for path in (tmp_path / "a.npz", tmp_path / "a.parquet", tmp_path / "dataset" / "data-00001-of-00002.arrow"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for path in (tmp_path / "a.npz", tmp_path / "a.parquet", tmp_path / "dataset"):
        assert str(path) in refused(path)


def test_no_such_file(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "none.jsonl")


def test_npz_of_objects_is_never_unpickled(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (builtins.exec, (f"open({str(tmp_path / 'boom')!r}, 'w')",))

    np.savez(tmp_path / "a.npz", x=np.array([Bomb()], dtype=object))
    assert "no archive of plain arrays" in refused(tmp_path / "a.npz")
    assert not (tmp_path / "boom").exists()


def test_npz_arrays_of_different_lengths_and_single_numbers(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros(3), y=np.zeros(2))
    assert "x 3, y 2" in refused(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", x=np.float32(1))
    assert "'x' is a single number" in refused(tmp_path / "b.npz")


def test_folders_that_are_nothing(tmp_path: Path) -> None:
    assert "holds no images" in refused(tmp_path)
    splits = tmp_path / "splits"
    splits.mkdir()
    (splits / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert "train, test" in refused(splits)
    assert str(splits / "train") in refused(splits)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "state.json").write_text("{}")
    assert "no saved dataset" in refused(broken)
    (broken / "state.json").write_text('{"_data_files": [{"filename": "a.arrow"}]}')
    assert "a.arrow is missing" in refused(broken)


def test_long_csv_fields_are_read_and_the_parsers_limit_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\n" + "x" * 200_000 + "\n")
    before = csv.field_size_limit()
    assert len(read_rows(tmp_path / "a.csv")[0].values["text"]) == 200_000
    assert csv.field_size_limit() == before


def test_missing_pyarrow_names_the_pip_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet")
    real = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name.split(".")[0] == "pyarrow":
            raise ImportError(name)
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingPiece, match=r"pip install .*ml-opt\[data\]"):
        read_rows(path)


def test_format_names(tmp_path: Path) -> None:
    assert format_of(write(tmp_path / "A.jsonl")) == "jsonl"
    assert format_of(write(tmp_path / "dataset")) == "dataset"
    assert format_of(tmp_path) == "images"
    assert {"jsonl", "dataset", "images"} <= set(FORMATS)


def test_row_of_a_file_starts_relative_paths_beside_it(tmp_path: Path) -> None:
    assert Row(write(tmp_path / "a.jsonl"), 1, {}).base == tmp_path
