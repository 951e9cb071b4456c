"""Every source: what goes in comes out, every bad input ends in one sentence that says where."""

import gzip
import json
import sys
from pathlib import Path

import pytest

from jscale.data.files import StandardLibrary, TextFiles, Texts
from jscale.data.jsonl import JsonLines
from jscale.data.source import Report, Source, documents_with_text
from jscale.data.tables import ArrayRecord, HuggingFace, Parquet
from jscale.errors import ConfigError, DataError

DOCUMENTS = [
    "first\r\nline",
    "zweites \u00e9\u4e2d\U0001f600",
    "nul \x00 and  tab\t",
    "x" * 5000,
    "last",
]


def write_text(folder: Path) -> Source:
    for number, text in enumerate(DOCUMENTS):
        (folder / f"{number}.txt").write_bytes(text.encode())
    return TextFiles((str(folder / "*.txt"),))


def write_separated(folder: Path) -> Source:
    (folder / "all.txt").write_bytes("\n---\n".join(DOCUMENTS).encode())
    return TextFiles((str(folder / "all.txt"),), separator="\n---\n")


def json_lines() -> bytes:
    return b"".join(json.dumps({"id": 1, "body": text}).encode() + b"\n" for text in DOCUMENTS)


def write_jsonl(folder: Path) -> Source:
    (folder / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + json_lines().rstrip())  # BOM, no last \n
    return JsonLines((str(folder / "a.jsonl"),), field="body")


def write_gzip(folder: Path) -> Source:
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(json_lines()))
    return JsonLines((str(folder / "a.jsonl.gz"),), field="body")


def write_zstd(folder: Path) -> Source:
    import zstandard

    data, half = json_lines(), 3000  # two frames, cut inside a line
    pack = zstandard.ZstdCompressor().compress
    (folder / "a.jsonl.zst").write_bytes(pack(data[:half]) + pack(data[half:]))
    return JsonLines((str(folder / "a.jsonl.zst"),), field="body")


def write_parquet(folder: Path) -> Source:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"id": list(range(5)), "body": DOCUMENTS})
    pyarrow.parquet.write_table(table.slice(0, 3), folder / "a.parquet", row_group_size=2)
    pyarrow.parquet.write_table(table.slice(3), folder / "b.parquet")
    return Parquet((str(folder / "*.parquet"),), column="body")


def write_array_record(folder: Path) -> Source:
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(folder / "a.array_record"), "group_size:1")
    for text in DOCUMENTS:
        writer.write(text.encode())
    writer.close()
    return ArrayRecord((str(folder / "a.array_record"),))


def write_hugging_face(folder: Path) -> Source:
    import datasets

    table = datasets.Dataset.from_dict({"body": DOCUMENTS, "id": list(range(5))})
    datasets.DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(folder / "set")
    return HuggingFace(str(folder / "set"), split="train", column="body")


WRITERS = [
    write_text, write_separated, write_jsonl, write_gzip, write_zstd, write_parquet,
    write_array_record, write_hugging_face,
]  # fmt: skip


@pytest.mark.parametrize("write", WRITERS)
def test_what_goes_in_comes_out(write, tmp_path):
    source, report = write(tmp_path), Report()
    assert isinstance(source, Source)
    assert list(documents_with_text(source, report)) == DOCUMENTS
    assert (report.documents, report.empty, report.bad) == (5, 0, 0)
    assert 0 < report.read <= source.size()


@pytest.mark.parametrize("write", WRITERS)
def test_digest_follows_the_content_and_not_the_place(write, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    source = write(first)
    before = source.digest()
    if write is not write_hugging_face:  # datasets stamps its folders
        assert write(second).digest() == before
    victim = max((p for p in first.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    with open(victim, "r+b") as file:  # the last byte changed
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    assert source.digest() != before


def test_settings_are_part_of_the_digest(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(json_lines())
    paths = (str(tmp_path / "a.jsonl"),)
    sources = [JsonLines(paths), JsonLines(paths, "body"), JsonLines(paths, max_bad=0.5)]
    sources += [TextFiles(paths), TextFiles(paths, separator="\n"), Parquet(paths)]
    sources += [Parquet(paths, "body"), ArrayRecord(paths)]
    assert len({source.digest() for source in sources}) == len(sources)


def test_files_come_in_the_order_of_patterns_sorted_and_once(tmp_path):
    for name in ("b", "a", "c"):
        (tmp_path / f"{name}.txt").write_text(name)
    source = TextFiles((str(tmp_path / "c.txt"), str(tmp_path / "*.txt")))
    assert list(source.documents(Report())) == ["c", "a", "b"]


def test_blank_documents_are_counted():
    report = Report()
    assert list(documents_with_text(Texts(("a", "", " \n\t", "b")), report)) == ["a", "b"]
    assert (report.documents, report.empty) == (2, 2)


def test_null_rows_are_empty_documents(tmp_path):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", None]}), tmp_path / "a.parquet")
    report = Report()
    source = Parquet((str(tmp_path / "a.parquet"),))
    assert list(documents_with_text(source, report)) == ["a"]
    assert report.empty == 1


def test_the_standard_library_is_a_corpus_of_some_megabytes():
    source, report = StandardLibrary(), Report()
    names = {path.name for path in source.files()}
    assert {"argparse.py", "dataclasses.py", "decoder.py"} <= names
    assert not any("test" in path.parts or "site-packages" in path.parts for path in source.files())
    count = sum(1 for _ in documents_with_text(source, report))
    assert count > 300
    assert 6e6 < source.size() < 12e6


BAD_LINES = {
    b"{'text': 1}": "Expecting property name",
    b'{"text": "cut': "Unterminated string",
    b"[1, 2]": "a JSON object is wanted, found list",
    b'{"txet": "a"}': "no field 'text'; did you mean 'txet'?",
    b"{}": "no field 'text'; there is nothing to choose from",
    b'{"text": 5}': "field 'text' holds int, not text",
    b'{"text": "\\ud800"}': "a lone surrogate",
    b'{"text": "\xff"}': "invalid UTF-8 (byte 0xff)",
    b'\x00{"text": "a"}': "Expecting value",
    b"[" * 100_000: "JSON nested too deeply",
}


@pytest.mark.parametrize("line", BAD_LINES, ids=lambda line: line[:12].decode("latin-1"))
def test_a_bad_line_is_named_with_its_place(line, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n\n' + line + b'\n{"text": "fine"}\n')
    with pytest.raises(DataError) as error:
        list(JsonLines((str(path),)).documents(Report()))
    assert f"{path}:3: {BAD_LINES[line]}" in str(error.value)
    assert "1 of 3 lines are bad" in str(error.value)


def test_few_bad_lines_are_quarantined(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' * 98 + b"oops\n" + b'{"text": "fine"}\n')
    report = Report()
    assert len(list(JsonLines((str(path),), max_bad=0.01).documents(report))) == 99
    assert report.bad == 1
    assert report.bad_lines[0].startswith(f"{path}:99: ")


def test_a_hopeless_file_is_not_read_to_the_end(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"oops\n" * 5000)
    with pytest.raises(DataError, match="1001 of 1001 lines are bad"):
        list(JsonLines((str(path),)).documents(Report()))


def test_a_long_line_is_one_document(tmp_path):
    import zstandard

    text = "word " * 1_000_000
    data = json.dumps({"text": text}).encode()
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(data))
    assert list(JsonLines((str(tmp_path / "a.jsonl.zst"),)).documents(Report())) == [text]


def cut(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(bytes(data))


def junk(path: Path) -> None:
    path.write_bytes(b"this is not the format at all\n" * 5000)


DAMAGE = [
    (write_gzip, cut, "a.jsonl.gz:"),
    (write_gzip, junk, "a.jsonl.gz:1: the compressed file is damaged"),
    (write_zstd, cut, "a.jsonl.zst:"),
    (write_zstd, junk, "a.jsonl.zst:1: the compressed file is damaged"),
    (write_parquet, cut, "a.parquet is not a whole Parquet file"),
    (write_parquet, junk, "a.parquet is not a whole Parquet file"),
    (write_array_record, cut, "a.array_record is not a whole ArrayRecord file"),
    (write_array_record, junk, "a.array_record is not a whole ArrayRecord file"),
]


@pytest.mark.parametrize(("write", "harm", "sentence"), DAMAGE)
def test_a_damaged_file_is_refused_by_name(write, harm, sentence, tmp_path):
    source = write(tmp_path)
    harm(min(p for p in tmp_path.iterdir()))
    with pytest.raises(DataError) as error:
        list(source.documents(Report()))
    assert sentence in str(error.value)


def test_a_damaged_datasets_folder_is_refused(tmp_path):
    source = write_hugging_face(tmp_path)
    for name in ("data-00000-of-00001.arrow", "state.json"):
        cut(tmp_path / "set" / "train" / name)
        with pytest.raises(DataError, match="is not a whole datasets folder"):
            list(source.documents(Report()))
    (tmp_path / "set" / "dataset_dict.json").write_text('{"splits": ["../../secret"]}')
    with pytest.raises(DataError, match="splits must be plain names"):
        source.digest()


def test_an_index_cannot_lead_out_of_its_folder(tmp_path):
    source = write_hugging_face(tmp_path)
    state = tmp_path / "set" / "train" / "state.json"
    value = json.loads(state.read_text())
    value["_data_files"] = [{"filename": "../../elsewhere.arrow"}]
    state.write_text(json.dumps(value))
    with pytest.raises(DataError, match=r"names a file outside: '../../elsewhere.arrow'"):
        list(source.documents(Report()))


def test_unknown_columns_and_splits_are_named(tmp_path):
    parquet, folder = write_parquet(tmp_path), write_hugging_face(tmp_path)
    assert isinstance(parquet, Parquet) and isinstance(folder, HuggingFace)
    cases = [
        (Parquet(parquet.paths, "bdy"), "has no column 'bdy'; did you mean 'body'?"),
        (Parquet(parquet.paths, "id"), "column 'id' holds int64, not text"),
        (HuggingFace(folder.path, "train", "bdy"), "has no column 'bdy'; did you mean 'body'?"),
        (HuggingFace(folder.path, "train", "id"), "column 'id' holds int64, not text"),
        (HuggingFace(folder.path, "tset", "body"), "no split 'tset'; did you mean 'test'?"),
        (HuggingFace(folder.path), "has several splits: set split to one of train, test"),
        (HuggingFace(folder.path + "/train", "train"), "is a single dataset, so split='train'"),
        (HuggingFace(str(tmp_path)), "is no folder written by datasets.save_to_disk"),
    ]
    for source, sentence in cases:
        with pytest.raises(DataError) as error:
            list(source.documents(Report()))
        assert sentence in str(error.value)


@pytest.mark.parametrize("kind", [TextFiles, JsonLines, Parquet, ArrayRecord])
def test_missing_files_are_named(kind, tmp_path):
    cases = {
        str(tmp_path / "no.txt"): "no.txt' does not exist",
        str(tmp_path / "*.no"): "no file matches",
        str(tmp_path): "is a folder; name its files",
    }
    for path, sentence in cases.items():
        with pytest.raises(DataError, match="".join(sentence)):
            kind((path,)).digest()
    with pytest.raises(ConfigError, match="needs at least one path"):
        kind(())


def test_invalid_utf8_is_named_with_its_line(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"fine\nstill fine\nnot \xe9 fine\n")
    with pytest.raises(DataError, match=r"a.txt:3: invalid UTF-8 \(byte 0xe9\)"):
        list(TextFiles((str(tmp_path / "a.txt"),)).documents(Report()))
    source = write_array_record(tmp_path)
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(tmp_path / "a.array_record"), "group_size:1")
    for record in (b"fine", b"\xff"):
        writer.write(record)
    writer.close()
    with pytest.raises(DataError, match=r"a.array_record: record 1 is invalid UTF-8"):
        list(source.documents(Report()))
    import pyarrow
    import pyarrow.parquet

    letters = pyarrow.array([b"fine", b"\xff"]).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": letters}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a.parquet: rows 0 and on: invalid UTF-8"):
        list(Parquet((str(tmp_path / "a.parquet"),)).documents(Report()))
    with pytest.raises(DataError, match="text 1 has a lone surrogate"):
        list(Texts(("a", "\ud800")).documents(Report()))


@pytest.mark.parametrize(
    ("write", "package"),
    [
        (write_zstd, "zstandard"),
        (write_parquet, "pyarrow"),
        (write_hugging_face, "datasets"),
        (write_array_record, "array_record"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(write, package, tmp_path, monkeypatch):
    source = write(tmp_path)
    for name in [n for n in sys.modules if n.partition(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DataError) as error:
        list(source.documents(Report()))
    assert f'needs the package {package}: pip install "jscale[data]"' in str(error.value)
