"""Tensors and files made to do harm, and what the refusal of each must say."""

import gzip
import io
import json
import pickle
import random
import struct
import zipfile
from collections.abc import Callable

import numpy as np
import torch
from checkpoint_files import call, entry, number, tensor, text, torch_legacy, torch_zip
from hostile_pickles import BROKEN, DOUBLING, RUNS, STACKED
from safetensors.torch import save as safetensors_bytes

RAW = {"0": np.arange(4, dtype=np.float32).tobytes()}
NONE = r"is not a checkpoint|damaged or cut off"
TENSORS: dict[str, tuple[bytes, str]] = {
    "beyond the storage": (tensor((5,), (1,)), BROKEN),
    "beyond the storage by offset": (tensor((1,), (1,), offset=4), BROKEN),
    "beyond the storage by stride": (tensor((2, 2), (4, 1)), BROKEN),
    "of a negative stride": (tensor((2,), (-1,), offset=3), BROKEN),
    "of a negative size": (tensor((-2,), (1,)), BROKEN),
    "of a negative offset": (tensor((1,), (1,), offset=-1), BROKEN),
    "of a huge size": (tensor((1 << 62,), (1,)), BROKEN),
    "of a huge size without strides": (tensor((1 << 40,), (0,)), BROKEN),
    "of two huge sizes": (tensor((1 << 40, 1 << 40), (0, 0)), BROKEN),
    "of an endless size": (tensor((1 << 200,), (0,)), BROKEN),
    "of an endless stride": (tensor((2,), (1 << 62,)), BROKEN),
    "of many dimensions": (tensor((1,) * 50_000, (1,) * 50_000), BROKEN),
    "of fewer strides": (tensor((2, 2), (1,)), BROKEN),
    "of a path as storage": (tensor((1,), (1,), key="../data.pkl"), BROKEN),
    "of an absolute path as storage": (tensor((1,), (1,), key="/etc/passwd"), BROKEN),
    "of another entry as storage": (tensor((1,), (1,), key="../../archive/version"), BROKEN),
    "of an absent storage": (tensor((1,), (1,), key="1"), BROKEN),
    "of a view of a storage": (
        tensor((1,), (1,)).replace(b"K\x04tQ", b"K\x04(" + text("1") + b"K\x00K\x04ttQ"), BROKEN,
    ),
    "without a storage": (
        call("torch._utils._rebuild_tensor_v2", b"N", number(0), b"K\x01\x85", b"K\x01\x85"),
        BROKEN,
    ),
    "of a type that is a module": (  # which torch would import at this name
        tensor((1,), (1,)).replace(b"_v2\n", b"_v3\n").replace(b"\x89N", b"\x89Nctorch\n_dynamo\n"),
        r"stored as torch\._dynamo, which is not read",
    ),
    "of a type that is a function": (
        tensor((1,), (1,)).replace(b"_v2\n", b"_v3\n").replace(b"\x89N", b"\x89Nctorch\nsave\n"),
        r"stored as torch\.save, which is not read",
    ),
}  # fmt: skip


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(content) if length is None else length) + content + data


def span(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def zipped(entries: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return stream.getvalue()


def overlapping() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", entry(tensor((4,), (1,))))
        archive.writestr("archive/data/0", bytes(10_000))
        for key in range(1, 50):
            copy = zipfile.ZipInfo.__new__(zipfile.ZipInfo)
            for slot in zipfile.ZipInfo.__slots__:
                if hasattr(archive.filelist[1], slot):
                    setattr(copy, slot, getattr(archive.filelist[1], slot))
            copy.filename = f"archive/data/{key}"
            archive.filelist.append(copy)
    return stream.getvalue()


def as_zip64(entries: int) -> bytes:
    content = zipped([(f"{i:05}" * 100, b"") for i in range(entries)])
    content, end = content[:-22], content[-22:]
    length, start = struct.unpack("<II", end[12:20])
    record = b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 9, 9, length, start)
    locator = b"PK\x06\x07" + struct.pack("<IQI", 0, len(content), 1)
    return content + record + locator + end[:12] + struct.pack("<IIH", 100, 0, 0)


def larger_than_stated() -> bytes:
    content = bytearray(torch_zip(entry(tensor((4,), (1,))), RAW))
    at = content.rindex(b"PK\x01\x02")  # of the storage: both lengths become 2 GB
    content[at + 20 : at + 28] = struct.pack("<II", 2 << 30, 2 << 30)
    return bytes(content)


GOOD = entry(tensor((4,), (1,)))
LISTED = b"\x80\x02]" + text("0") + b"a."
FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "zip of deflated zeros": (
        lambda: zipped(
            [("archive/data.pkl", GOOD), ("archive/data/0", bytes(64 << 20))], zipfile.ZIP_DEFLATED
        ),
        r"compressed entries \(67\d{6} bytes unpacked\)",
    ),
    "zip of bzip2": (
        lambda: zipped([("archive/data.pkl", GOOD)], zipfile.ZIP_BZIP2), "compressed entries",
    ),
    "zip that states too much": (larger_than_stated, "entries overlap"),
    "zip of overlapping entries": (overlapping, "entries overlap"),
    "zip in a zip": (lambda: zipped([("archive/model.pt", torch_zip(GOOD, RAW))]), "without the"),
    "zip of two pickles": (
        lambda: zipped([("a/data.pkl", GOOD), ("b/data.pkl", GOOD)]), "without the weights",
    ),
    "zip without entries": (lambda: zipped([]), NONE),
    "zip of 20000 names": (
        lambda: zipped([(f"a/{i}", b"") for i in range(20_000)]), "without the weights",
    ),
    "zip of a long list of entries": (
        lambda: zipped([(f"{i:05}" * 100, b"") for i in range(9_000)]), "list of entries of 4",
    ),
    "zip64 of a long list of entries": (lambda: as_zip64(9_000), "list of entries of 4"),
    "zip whose pickle attacks": (lambda: torch_zip(entry(STACKED)), RUNS),
    "TorchScript": (
        lambda: torch_zip(GOOD, RAW, **{"constants.pkl": b"\x80\x02).", "code/m.py": b"import os"}),
        "is a TorchScript archive",
    ),
    "legacy that attacks": (lambda: torch_legacy(entry(STACKED)), RUNS),
    "legacy that attacks in its head": (
        lambda: torch_legacy(GOOD).replace(pickle.dumps(1001, 2), b"\x80\x02cos\nsystem\n."), RUNS,
    ),
    "legacy of negative storages": (
        lambda: torch_legacy(GOOD, LISTED + struct.pack("<q", -4)), BROKEN,
    ),
    "legacy of huge storages": (
        lambda: torch_legacy(GOOD, LISTED + struct.pack("<q", 1 << 61) + bytes(16)), BROKEN,
    ),
    "legacy of gigabytes": (
        lambda: torch_legacy(GOOD, LISTED + struct.pack("<q", 1 << 31) + bytes(16)),  BROKEN,
    ),
    "legacy of 2**60 storage names": (
        lambda: torch_legacy(GOOD, b"\x80\x02]" + DOUBLING + b"a." + bytes(64)), BROKEN,
    ),
    "safetensors without JSON": (lambda: safetensors(b"{" + b"\xff" * 20), BROKEN),
    "safetensors of a huge header": (lambda: safetensors(b"{}", length=1 << 62), NONE),
    "safetensors of a header beyond its end": (lambda: safetensors(b"{}", length=3), NONE),
    "safetensors that overlap": (
        lambda: safetensors({"a": span(0, 8, [2]), "b": span(4, 12, [2])}, bytes(12)), BROKEN,
    ),
    "safetensors that share all": (
        lambda: safetensors({f"{i}": span(0, 8, [2]) for i in range(9)}, bytes(8)), BROKEN,
    ),
    "safetensors beyond the end": (
        lambda: safetensors({"a": span(0, 800, [200])}, bytes(8)), BROKEN,
    ),
    "safetensors of a wrong shape": (
        lambda: safetensors({"a": span(0, 8, [1 << 40])}, bytes(8)), BROKEN,
    ),
    "safetensors of an endless shape": (
        lambda: safetensors({"a": span(0, 8, [1 << 32, 1 << 32, 2])}, bytes(8)), BROKEN,
    ),
    "safetensors of negative numbers": (
        lambda: safetensors({"a": span(-8, 8, [-2])}, bytes(8)), BROKEN,
    ),
    "safetensors of an unknown type": (
        lambda: safetensors({"a": span(0, 8, [2], "O8")}, bytes(8)), BROKEN,
    ),
    "safetensors of a deep header": (lambda: safetensors(b'{"a":' + b"[" * 100_000), BROKEN),
    "safetensors of a long name": (
        lambda: safetensors_bytes({"module." * 100_000: torch.ones(1)}), "names of up to 700000",
    ),
    "safetensors of many names": (
        lambda: safetensors({str(i): span(0, 0, [0]) for i in range(30_000)}), "30000 tensors",
    ),
    "gzip": (lambda: gzip.compress(torch_zip(GOOD, RAW)), NONE),
    "gzip bomb": (lambda: gzip.compress(bytes(32 << 20)), NONE),
    "script": (lambda: b"import os\nos.system('touch x')\n", NONE),
    "script that looks like a pickle": (lambda: b"cos\nsystem\n(S'touch x'\ntR.", NONE),
    "web page": (lambda: b"<!DOCTYPE html>\n<html><title>404</title></html>\n", NONE),
    "pointer of git-lfs": (
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", NONE,
    ),
    "zeros": (lambda: bytes(100_000), NONE),
    "noise": (lambda: random.Random(0).randbytes(100_000), NONE),
}  # fmt: skip
for bad in ("../evil", "/etc/evil", "archive/../../evil", "archive\\..\\evil", "C:\\evil"):
    FILES[f"zip with {bad}"] = (
        lambda bad=bad: zipped([("archive/data.pkl", GOOD), (bad, b"x")]), "leaves its folder",
    )  # fmt: skip
