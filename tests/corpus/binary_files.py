"""Parquet, archives, bombs, and files that are not what they are called."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import stat
import tarfile
import zipfile
from collections.abc import Sequence
from typing import Any

from tests.corpus.case import Case, keep, lines, pairs, refuse, table

MIB = 2**20
DAMAGED = "gzip data is damaged"
FOREIGN = {
    "png": (b"\x89PNG\r\n\x1a\n" + b"\0" * 64, "a PNG picture"),
    "jpeg": (b"\xff\xd8\xff\xe0" + b"\0" * 64, "a JPEG picture"),
    "pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "a PDF document"),
    "elf": (b"\x7fELF\x02\x01\x01" + b"\0" * 64, "a program"),
    "exe": (b"MZ\x90\0" + b"\0" * 64, "a Windows program"),
    "sqlite": (b"SQLite format 3\0" + b"\0" * 64, "an SQLite database"),
    "xls": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 64, "an old Excel"),
    "numpy": (b"\x93NUMPY\x01\0" + b" " * 64, "a NumPy array"),
    "gguf": (b"GGUF\x03\0\0\0" + b"\0" * 64, "a GGUF model"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + b"\0" * 64, "an HDF5 file"),
    "arrow": (b"ARROW1\0\0" + b"\0" * 64, "an Arrow or Feather file"),
    "html": (b"\n <html><body>Sign in</body></html>", "a web page"),
    "rtf": (b"{\\rtf1 hello}", "an RTF document"),
    "random": (bytes(range(256)) * 20, "a binary file"),
}


def parquet(columns: dict[str, Any] | Any, **options: Any) -> bytes:
    """A Parquet file of a table or of its columns."""
    import pyarrow
    import pyarrow.parquet

    sink = io.BytesIO()
    rows = columns if isinstance(columns, pyarrow.Table) else pyarrow.table(columns)
    pyarrow.parquet.write_table(rows, sink, **options)
    return sink.getvalue()


def parquet_rows(rows: Sequence[dict[str, Any]]) -> bytes:
    import pyarrow

    return parquet(pyarrow.Table.from_pylist(list(rows)))


def parquet_without_rows() -> bytes:
    """A file with columns and no rows."""
    import pyarrow

    return parquet({"text": pyarrow.array([], pyarrow.string())})


def _parquet_bomb(*, is_text: bool) -> bytes:
    """10 GB in a few kB: one long value in a dictionary, 20,000 times."""
    import pyarrow

    column = pyarrow.DictionaryArray.from_arrays(
        pyarrow.array(bytes(20_000), pyarrow.int8()), pyarrow.array(["x" * 500_000])
    )
    return parquet({"text": column}, compression="zstd", store_schema=not is_text)


def _null_bomb() -> bytes:
    import pyarrow

    return parquet({"text": pyarrow.nulls(20_000_000, pyarrow.string())}, compression="zstd")


def _list_bomb() -> bytes:
    """One row that is a list of 10 million numbers."""
    import pyarrow

    count = 10_000_000
    numbers = pyarrow.array(memoryview(bytes(count)).cast("b"))
    column = pyarrow.ListArray.from_arrays(pyarrow.array([0, count], pyarrow.int32()), numbers)
    return parquet({"text": column}, compression="zstd")


def _far_dates() -> bytes:
    import pyarrow

    dates = pyarrow.array([0, 2**62], pyarrow.timestamp("us"))
    return parquet({"question": ["a", "c"], "answer": ["b", "d"], "when": dates})


def _broken_text() -> bytes:
    import pyarrow

    text = pyarrow.StringArray.from_buffers(
        2, pyarrow.py_buffer(b"\0\0\0\0\x01\0\0\0\x02\0\0\0"), pyarrow.py_buffer(b"b\xff")
    )
    return parquet({"question": ["a", "c"], "answer": text})


def _same_columns() -> bytes:
    import pyarrow

    arrays = [pyarrow.array(["a"]), pyarrow.array(["b"])]
    return parquet(pyarrow.Table.from_arrays(arrays, names=["text", "text"]))


def zipped(*members: tuple[str, bytes], links: Sequence[str] = ()) -> bytes:
    """A zip archive; `links` become symbolic links to /etc/passwd."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
        for name in links:
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(entry, "/etc/passwd")
    return out.getvalue()


def _zip_overlapping() -> bytes:
    """Two names for the same bytes, as in archives that unpack to more than they hold."""
    content = zipped(("a.csv", b"question,answer\n" * 1000), ("b.csv", b"x"))
    return content.replace(b"b.csv", b"a.csv")


def _tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("rows.csv"))
    return out.getvalue()


GOOD = parquet_rows(pairs(3))
NESTED = {"question": "a", "answer": "b", "more": {"deep": [[{"x": [1, None]}]]}}
PARQUET = [
    keep("good.parquet", GOOD, 3, last="It is 3."),
    keep("parquet-called.csv", GOOD, 3, last="It is 3."),
    keep("parquet-called.json", GOOD, 3, last="It is 3."),
    keep("parquet-no-extension", GOOD, 3),
    keep("nested-columns.parquet", parquet_rows([NESTED] * 2), 2, last="b"),
    keep("nulls.parquet", parquet_rows([*pairs(2), {"question": "a", "answer": None}]), 3,
         {"is missing": 1}),
    keep("far-dates.parquet", _far_dates, 2, {"a value cannot be read": 1}, last="b"),
    keep("broken-text.parquet", _broken_text, 2, {"a value cannot be read": 1}, last="b"),
    keep("bytes-column.parquet", lambda: parquet({"question": ["a", "b"], "answer": ["b", "c"],
                                                  "raw": [b"\xff", b"\0"]}), 2, last="c"),
    refuse("bytes-answer.parquet", lambda: parquet({"question": ["a"], "answer": [b"\xff"]}),
           "is a bytes, not text"),
    refuse("zero-rows.parquet", parquet_without_rows, "the file has no rows"),
    refuse("columns-5000.parquet", lambda: parquet({f"c{n}": ["x"] for n in range(5000)}),
           "5,000 columns"),
    refuse("columns-same.parquet", _same_columns, "two columns have the same name"),
    refuse("cut.parquet", GOOD[: len(GOOD) // 2], "the Parquet data cannot be read"),
    refuse("cut-footer.parquet", GOOD[:-9], "the Parquet data cannot be read"),
    refuse("magic-alone.parquet", b"PAR1", "the Parquet data cannot be read"),
    refuse("magic-twice.parquet", b"PAR1PAR1", "the Parquet data cannot be read"),
    refuse("footer-length-wrong.parquet", GOOD[:-8] + b"\xff\xff\xff\x7fPAR1",
           "the Parquet data cannot be read"),
    refuse("encrypted.parquet", b"PARE" + GOOD[4:-4] + b"PARE", "an encrypted Parquet file"),
    refuse("wrong-magic.parquet", b"PAR2" + GOOD[4:], "a binary file"),
    refuse("text-called.parquet", b"hello\0there", "a binary file"),
    refuse("bomb-10-gb.parquet", lambda: _parquet_bomb(is_text=True), "unpacks to more than"),
    refuse("bomb-dictionary.parquet", lambda: _parquet_bomb(is_text=False), "unpacks to more than"),
    refuse("bomb-nulls.parquet", _null_bomb, "unpacks to more than"),
    refuse("bomb-one-row.parquet", _list_bomb, "None of the known formats"),
    refuse("parquet-in-gzip.parquet.gz", gzip.compress(GOOD), "a Parquet file inside gzip"),
]  # fmt: skip
PACKED = [
    keep("good.csv.gz", gzip.compress(table(("a", "b")).encode()), 1, last="b"),
    keep("gzip-called.csv", gzip.compress(table(("a", "b")).encode()), 1, last="b"),
    keep("gzip-two-members.jsonl.gz", gzip.compress(lines(*pairs(1)).encode()) * 2, 2),
    refuse("gzip-empty.csv.gz", gzip.compress(b""), "the file is empty"),
    refuse("gzip-cut.csv.gz", gzip.compress(b"question,answer\n" * 999)[:40], DAMAGED),
    refuse("gzip-garbage-after.csv.gz", gzip.compress(b"question,answer\n") + b"garbage",
           DAMAGED),
    refuse("gzip-header-alone.gz", b"\x1f\x8b\x08", DAMAGED),
    refuse("gzip-wrong-sum.csv.gz", gzip.compress(b"question,answer\na,b\n")[:-8] + b"\0" * 8,
           DAMAGED),
    refuse("gzip-in-gzip.csv.gz", gzip.compress(gzip.compress(b"a,b\n")), "gzip file inside"),
    refuse("gzip-of-zip.gz", gzip.compress(zipped(("a.csv", b"a,b\n"))), "a zip archive"),
    refuse("gzip-bomb.csv.gz", lambda: gzip.compress(b"question,answer\n" + b"a,b\n" * 70_000_000),
           "unpacks to more than 256 MiB", slow=True),
    refuse("gzip-bomb-one-line.jsonl.gz", lambda: gzip.compress(b'{"text": "' + b"x" * 300 * MIB),
           "unpacks to more than 256 MiB"),
    refuse("gzip-bomb-empty-rows.jsonl.gz",
           lambda: gzip.compress(lines(*pairs(200)).encode() + b"{}\n" * 80_000_000, 1),
           "reading it took", slow=True),  # of processor time, or where others use it by the clock
    refuse("bzip2.csv.bz2", bz2.compress(b"question,answer\na,b\n"), "a bzip2 archive"),
    refuse("xz.csv.xz", lzma.compress(b"question,answer\na,b\n"), "an xz archive"),
    refuse("bzip2-bomb.bz2", lambda: bz2.compress(b"a" * 30 * MIB), "a bzip2 archive"),
    refuse("xz-bomb.xz", lambda: lzma.compress(b"a" * 30 * MIB), "an xz archive"),
    refuse("zstd.csv.zst", b"\x28\xb5\x2f\xfd" + b"\0" * 40, "a zstd archive"),
    refuse("7z.7z", b"7z\xbc\xaf\x27\x1c" + b"\0" * 40, "a 7-Zip archive"),
    refuse("tar.tar", _tar(), "a tar archive"),
    refuse("tar.csv", _tar(), "a tar archive"),
    refuse("docx.docx", zipped(("[Content_Types].xml", b"<x/>"), ("word/document.xml", b"<x/>")),
           "a Word document"),
    refuse("xlsx-called.csv", zipped(("[Content_Types].xml", b"<x/>"), ("xl/book.xml", b"<x/>")),
           "an Excel file"),
    refuse("torch-called.json", zipped(("archive/data.pkl", pickle.dumps([1]))), "a PyTorch file"),
]  # fmt: skip
GOOD_CSV = table(("a", "b"), ("c", "d")).encode()
GOOD_JSONL = lines(*pairs(3)).encode()


def _zip_of_many(count: int) -> bytes:
    return zipped(*((f"{n}.txt", b"x") for n in range(count)))


def _zip_stating_less() -> bytes:
    """A member that unpacks to more than the list says."""
    content = bytearray(zipped(("a.csv", GOOD_CSV * 50)))
    at = content.rfind(b"PK\x01\x02") + 24
    content[at : at + 4] = len(GOOD_CSV).to_bytes(4, "little")
    return bytes(content)


def _zip_encrypted() -> bytes:
    content = bytearray(zipped(("a.csv", GOOD_CSV)))
    content[content.rfind(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


def _zip_wrong_sum() -> bytes:
    content = zipped(("a.csv", GOOD_CSV))
    at = content.rfind(b"PK\x01\x02") + 16
    return content[:at] + b"\0\0\0\0" + content[at + 4 :]


ZIPS = [
    keep("zip-texts.zip", zipped(("b.txt", b"Two.\n\nStill two."), ("a.md", b"# One")), 2,
         last="Two.\n\nStill two.", note="each of them one document"),
    keep("zip-texts-one-empty.zip", zipped(("a.txt", b"One"), ("b.txt", b" "), ("c.txt", b"x")), 3,
         {"the text is empty": 1}, last="x"),
    keep("zip-csvs.zip", zipped(("a.csv", GOOD_CSV), ("b/b.csv", GOOD_CSV)), 4, last="d",
         note="2 csv files"),
    keep("zip-jsonl.zip", zipped(("x/rows.jsonl", GOOD_JSONL), ("README.md", b"# About")), 3,
         note="not used: README.md"),
    keep("zip-json-array.zip", zipped(("rows.json", json.dumps(pairs(2)).encode())), 2),
    keep("zip-parquet.zip", zipped(("a.parquet", GOOD), ("b.parquet", GOOD)), 6, last="It is 3."),
    keep("zip-splits.zip", zipped(("data/train-0.jsonl", GOOD_JSONL), ("data/test-0.jsonl", b"{")),
         3, note="not used: data/test-0.jsonl"),
    keep("zip-mac.zip", zipped(("a.csv", GOOD_CSV), ("__MACOSX/._a.csv", b"\0"), (".DS", b"")), 2,
         note="not used: __MACOSX/._a.csv"),
    keep("zip-broken-row.zip", zipped(("a.jsonl", GOOD_JSONL), ("b.jsonl", b'{"question": \n')), 4,
         {"not valid JSON": 1}),
    keep("zip-other-columns.zip", zipped(("a.csv", GOOD_CSV), ("b.csv", b"x,y\n1,2\n")), 3,
         {"is missing": 1}),
    keep("zip-empty-member.zip", zipped(("a.csv", GOOD_CSV), ("b.csv", b"")), 2),
    keep("zip-other-encoding.zip", zipped(("a.txt", b"caf\xe9 one"), ("b.txt", b"x")), 2),
    refuse("zip-of-gzip.zip", zipped(("a.csv.gz", gzip.compress(GOOD_CSV))), "another archive"),
    refuse("zip-hidden-in-csv.zip", zipped(("a.csv", zipped(("b.csv", b"a")))), "a zip archive"),
    refuse("zip-of-kinds.zip", zipped(("a.csv", GOOD_CSV), ("b.jsonl", GOOD_JSONL)),
           "several kinds"),
    refuse("zip-of-pictures.zip", zipped(("a.png", b"\x89PNG")), "holds no data file"),
    refuse("zip-picture-called.zip", zipped(("a.txt", b"\x89PNG\0\0\0\0")), "a binary file"),
    refuse("zip-ratio.zip", zipped(("a.csv", b"a,b\n" * 2 * MIB)), "200 times its size"),
    refuse("zip-many.zip", lambda: _zip_of_many(10_001), "the zip holds 10,001 files"),
    refuse("zip-states-less.zip", _zip_stating_less, "the zip data is damaged"),
    refuse("zip-encrypted.zip", _zip_encrypted, "the zip is encrypted"),
    refuse("zip-wrong-sum.zip", _zip_wrong_sum, "the zip data is damaged"),
    refuse("zip-drive-letter.zip", zipped(("C:/x.csv", GOOD_CSV)), "leads out of it"),
    refuse("zip-long-name.zip", zipped(("x" * 600 + ".csv", GOOD_CSV)), "leads out of it"),
    refuse("zip-no-rows.zip", zipped(("a.csv", b"question,answer\n")), "has no rows"),
    refuse("epub.zip", zipped(("META-INF/c.xml", b"x"), ("a.txt", b"x")), "a program or a book"),
    keep("zip-one-file.zip", zipped(("rows.csv", GOOD_CSV)), 2, note="those of 'rows.csv'"),
    keep("zip-called.csv", zipped(("rows.csv", GOOD_CSV)), 2, last="d"),
    refuse("zip-traversal.zip", zipped(("../../etc/cron.d/x", b"a"), ("/etc/x", b"b")),
           "leads out of it"),
    refuse("zip-backslashes.zip", zipped(("..\\..\\x.csv", b"a")), "leads out of it"),
    refuse("zip-symlink.zip", zipped(("a.csv", b"a,b\n"), links=["link.csv"]), "is a link"),
    refuse("zip-overlap.zip", _zip_overlapping(), "have the same name"),
    refuse("zip-bomb.zip", lambda: zipped(("a.csv", b"a,b\n" * 10 * MIB)), "200 times its size"),
    refuse("zip-in-zip.zip", zipped(("a.zip", zipped(("b.zip", b"PK\x03\x04")))),
           "another archive"),
    refuse("zip-empty.zip", zipped(), "holds no data file"),
    refuse("zip-cut.zip", zipped(("a.csv", b"a,b\n" * 99))[:40], "damaged or incomplete"),
]  # fmt: skip


def _pickle(protocol: int) -> bytes:
    return pickle.dumps({"question": ["a"]}, protocol)


DISGUISED = [
    *(refuse(f"{kind}-called.csv", *found) for kind, found in FOREIGN.items()),
    *(refuse(f"{kind}-called.json", *found) for kind, found in FOREIGN.items()),
    refuse("pickle-called.json", _pickle(4), "a Python pickle"),
    refuse("pickle-2-called.csv", _pickle(2), "a Python pickle"),
    refuse("pickle-0-called.json", _pickle(0), "does not begin like JSON"),
    refuse("safetensors-called.json", (64).to_bytes(8, "little")
           + json.dumps({"__metadata__": {}}).encode().ljust(64), "a safetensors model"),
]  # fmt: skip

CASES: list[Case] = [*PARQUET, *PACKED, *ZIPS, *DISGUISED]
