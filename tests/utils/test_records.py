"""Records are written whole and say what they were measured on."""

import hashlib
import json
import math

import pytest

from utils.records import atomic_file, atomic_write, environment, sha256, write_json


def test_a_file_appears_only_when_whole(tmp_path):
    path = tmp_path / "deep" / "x.txt"
    with atomic_file(path) as stream:
        stream.write(b"half")
        assert not path.exists()
    assert path.read_bytes() == b"half"
    with pytest.raises(RuntimeError), atomic_file(path) as stream:
        stream.write(b"other")
        raise RuntimeError
    assert path.read_bytes() == b"half"
    assert [p.name for p in path.parent.iterdir()] == ["x.txt"]
    atomic_write(path, "text ä")
    assert path.read_text(encoding="utf-8") == "text ä"


def test_json_has_no_values_that_json_does_not_know(tmp_path):
    write_json(tmp_path / "x.json", {"a": [1, None]})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [1, None]}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "x.json", {"a": math.nan})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [1, None]}


def test_digest_of_a_file_longer_than_a_block(tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / "x").write_bytes(content)
    assert sha256(tmp_path / "x") == hashlib.sha256(content).hexdigest()


def test_environment_names_hardware_and_versions():
    facts = environment("cpu")
    assert facts["device"] and facts["torch"] and facts["python"] and facts["cpu_threads"] >= 1
    json.dumps(facts)
