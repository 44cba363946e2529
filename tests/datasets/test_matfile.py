"""MATLAB files: two written by scipy, ones written by hand, damaged, and made to do harm."""

import base64
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from official_trees import mat_file

from datasets import DataError
from datasets.prepare import matfile
from datasets.prepare.convert import convert_10k
from datasets.prepare.matfile import read_matrix

# scipy.io.savemat(..., do_compression=True) of {"S": float64 (5, 7), "names": ..., "captions": ...}
# and of {"GTcls": {"Boundaries": ..., "Segmentation": uint8 (6, 4), ...}}, with default_rng(0).
MATRIX = (
    "TUFUTEFCIDUuMCBNQVQtZmlsZSBQbGF0Zm9ybTogcG9zaXgsIENyZWF0ZWQgb246IFR1ZSBOb3YgMjQgMjI6Mjg6Mj"
    "cgMjAyNgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAABSU0PAAAAjwAA"
    "AHic42NgYPBgZGBgA9IcDBAaBFihfBDNDsSMQBgMpDmBWIIRqigh2QHC4IDQCmkQekEShE5IhMrHQmkHqHwChG6IQ+"
    "U7hEPFofoPxED1QYED1L4GDygNNfdABFRdEKo9DD4Q+kEKVH0klIa52wBKy0BpqP0JqVD3QNUvgKnXgtoXDeV7QmkJ"
    "KC3gAADpix6YDwAAAEAAAAB4nONjYGBYAMRsQMwBxIwMEMCKxGeC0iCxvMTc1GIgzQfEBkj6WLDoY0QyTwDISiRSHx"
    "OKPiaGpCQGBgDRFQTxDwAAADUAAAB4nONjYGDIAGI2IOYAYkYGCGBF4sMwiJ+cWFCSmZ9XzAdkGyDpY8GjDwQEgKwK"
    "IA0AH/gE6A=="
)
STRUCTURE = (
    "TUFUTEFCIDUuMCBNQVQtZmlsZSBQbGF0Zm9ybTogcG9zaXgsIENyZWF0ZWQgb246IFR1ZSBOb3YgMjQgMjI6Mjg6Mj"
    "cgMjAyNgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAABSU0PAAAAsgAA"
    "AHic42NgYHjByMDABqQ5gJiJAQJYoXxGJAwScw9JzikGs1kYhKDiZkDslF+al5JYlJlaDDWAITg1PTc1rySxJDM/Dy"
    "LinFiSmp4PUhNQlFoMlAOK8QHxBQaE/Wxo9osg2Q8CnEC8gGHwA5C/PBgQ/uKEisP8BRJnYUD4CxTuEkDMzcHEyyHC"
    "yMHAysnOxsDHI8LHxcAtICAMMs8ByTw+NPMYoWbAzOMBYgE080EAAJWwFwo="
)


HEADER = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM"


@pytest.fixture
def write(tmp_path):
    def write_file(content: bytes):
        path = tmp_path / "label.mat"
        path.write_bytes(content)
        return path

    return write_file


def test_files_of_another_writer_are_read(write):
    rng = np.random.default_rng(0)
    matrix = rng.integers(0, 183, (5, 7))
    assert np.array_equal(read_matrix(write(base64.b64decode(MATRIX)), "S"), matrix)
    structure = read_matrix(write(base64.b64decode(STRUCTURE)), "GTcls", "Segmentation")
    assert structure.shape == (6, 4) and structure.dtype == np.uint8 and structure.max() <= 20


def test_files_written_by_hand_are_read(write):
    values = np.arange(15, dtype=np.uint8).reshape(3, 5)
    assert np.array_equal(read_matrix(write(mat_file("S", values)), "S"), values)
    path = write(mat_file("GTcls", values, "Segmentation"))
    assert np.array_equal(read_matrix(path, "GTcls", "Segmentation"), values)


def test_damage_is_one_sentence(write, tmp_path):
    whole = mat_file("S", np.zeros((3, 5), np.uint8))
    for length in range(128, len(whole) - 1, 3):
        with pytest.raises(DataError, match=r"label.mat (is damaged|holds no matrix S)") as error:
            read_matrix(write(whole[:length]), "S")
        assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="not a MATLAB 5 file"):
        read_matrix(write(b"text"), "S")
    with pytest.raises(DataError, match=r"is a MATLAB 7\.3 file; save it as version 7"):
        read_matrix(write(HEADER.replace(b"5.0", b"7.3") + bytes(400)), "S")
    with pytest.raises(DataError, match="cannot be read"):
        read_matrix(tmp_path / "none.mat", "S")


def test_changed_bytes_never_escape(write):
    rng, values = np.random.default_rng(0), np.arange(35, dtype=np.uint8).reshape(5, 7)
    files = ((mat_file("S", values), ("S",)), (mat_file("S", values, "x"), ("S", "x")))
    for whole, names in files:
        for _ in range(500):
            content = bytearray(whole)
            for place in rng.integers(128, len(whole), 3):
                content[place] = rng.integers(256)
            try:
                assert read_matrix(write(bytes(content)), *names).ndim == 2
            except DataError as error:
                assert "\n" not in str(error)


def test_what_unpacks_to_gigabytes_is_refused(write, monkeypatch):
    monkeypatch.setattr(matfile, "MOST_BYTES", 1 << 20)
    bomb = zlib.compress(bytes((1 << 20) + 1))
    packed = struct.pack("<II", 15, len(bomb)) + bomb
    with pytest.raises(DataError, match="an element is larger than 1048576 bytes"):
        read_matrix(write(HEADER + packed), "S")


@pytest.mark.parametrize("value", [1.5, -1.0, 256.0, np.nan, np.inf])
def test_numbers_that_are_no_labels_are_not_converted(write, tmp_path, monkeypatch, value):
    matrix = np.array([[0.0, value]])
    monkeypatch.setattr("datasets.prepare.convert.read_matrix", lambda path, *names: matrix)
    source, target = tmp_path / "a.mat", tmp_path / "a.png"
    assert convert_10k((source, target), write=Path.write_bytes) == (
        f"{source} holds label values that are not whole numbers of 0..255"
    )
    assert not target.exists()
