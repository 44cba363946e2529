"""The protocol of the parity files: filling, inputs, references, tolerances."""

import base64
import json
import zlib

import numpy as np
import pytest

from utils import parity


def fixture(tmp_path, arrays=None, **data) -> parity.Fixture:
    path = tmp_path / "toy.json"
    path.write_text(json.dumps({"name": "toy", **data}))
    if arrays is not None:
        np.savez(tmp_path / "toy.npz", **arrays)
    return parity.read_fixture(path)


def noise(key: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)


def test_filling_by_the_role_of_the_key():
    for key, shape, expected in (
        ("a.weight", (4, 3, 2, 2), lambda n: n * np.sqrt(2 / 12)),
        ("a.weight", (4,), lambda n: 1 + 0.1 * n),
        ("a.bias", (4,), lambda n: 0.1 * n),
        ("a.k", (4, 8, 1, 1), lambda n: n * 0.5),
        ("a.running_mean", (4,), lambda n: 0.1 * n),
        ("a._mean", (4,), lambda n: 0.1 * n),
        ("a.running_var", (4,), lambda n: 1 + 0.1 * abs(n)),
        ("a._variance", (4,), lambda n: 1 + 0.1 * abs(n)),
        ("a.scale", (), lambda n: 0.1 * n),
    ):
        value = parity.fill_tensor(key, shape)
        assert value.dtype == np.float32 and value.shape == shape
        np.testing.assert_array_equal(value, np.float32(expected(noise(key, shape))))
    counter = parity.fill_tensor("a.num_batches_tracked", ())
    assert counter.dtype == np.int64 and counter == 0


def test_a_batch_norm_may_be_one_entry(tmp_path):
    toy = fixture(tmp_path, state_dict=[["w.weight", [2, 2]], ["n", "norm", 3], ["w.bias", [2]]])
    leaves = "weight bias running_mean running_var".split()
    norm = [*((f"n.{leaf}", [3]) for leaf in leaves), ("n.num_batches_tracked", [])]
    assert toy.tensors() == [("w.weight", [2, 2]), *norm, ("w.bias", [2])]
    state = parity.fill(toy, {})
    assert [(key, list(value.shape)) for key, value in state.items()] == toy.tensors()


def test_gain_and_salt_of_file_and_case(tmp_path):
    toy = fixture(
        tmp_path,
        state_dict=[["w.weight", [2, 2]], ["w.bias", [2]], ["table", [3]]],
        untouched=["table"],
        fill={"salt": "s/", "gain_for_ndim_ge_2": 0.7},
    )
    state = parity.fill(toy, {})
    assert list(state) == ["w.weight", "w.bias"]
    np.testing.assert_array_equal(state["w.weight"], np.float32(noise("s/w.weight", (2, 2)) * 0.7))
    np.testing.assert_array_equal(state["w.bias"], np.float32(0.1 * noise("s/w.bias", (2,))))
    other = parity.fill(toy, {"fill": {"gain_for_ndim_ge_2": 0.5}})
    np.testing.assert_array_equal(other["w.weight"], np.float32(noise("s/w.weight", (2, 2)) * 0.5))


def test_inputs_come_from_seeds(tmp_path):
    toy = fixture(tmp_path, arrays={"c/in1": np.full((2, 2), 7, np.float32)})
    (x,) = parity.inputs(toy, {"seed": 5, "input": [1, 3, 2, 2]})
    np.testing.assert_array_equal(x, parity.normal(5, (1, 3, 2, 2)))
    a, b = parity.inputs(toy, {"seed": 0, "input": [[1, 2], [3]], "input_seeds": [4, 5]})
    np.testing.assert_array_equal(a, parity.normal(4, (1, 2)))
    np.testing.assert_array_equal(b, parity.normal(5, (3,)))
    entries = [{"seed": 1, "shape": [2]}, {"from": "in0", "key": "x"}, {"key": "c/in1"}]
    one, stored = parity.inputs(toy, {"inputs": entries})
    np.testing.assert_array_equal(one, parity.normal(1, (2,)))
    assert (stored == 7).all()


def test_whole_and_sampled_references(tmp_path):
    array = np.random.RandomState(0).standard_normal((2, 3, 4)).astype(np.float32)
    indices = parity.sample_indices(array.shape, 5, 9)
    assert len(set(indices)) == 5 and indices.max() < 24
    samples = [float(v) for v in array.ravel()[indices]]
    spec = {"shape": [2, 3, 4], "seed": 9, "absmax": float(np.abs(array).max()), "samples": samples}
    toy = fixture(tmp_path, arrays={"whole": array}, inline={"sampled": spec})
    for key in ("whole", "sampled"):
        reference = toy.reference(key, [2, 3, 4])
        assert parity.difference(array, reference) == 0
        wrong = array.copy()
        wrong.ravel()[indices[3]] += 0.5
        assert parity.difference(wrong, reference) == pytest.approx(0.5 / spec["absmax"], rel=1e-6)
        with pytest.raises(ValueError, match=r"shape \(2, 3\), reference \(2, 3, 4\)"):
            parity.difference(array[..., 0], reference)
        wrong.ravel()[0] = np.nan
        with pytest.raises(ValueError, match="output holds values that are not finite"):
            parity.difference(wrong, reference)
    with pytest.raises(ValueError, match=r"whole of toy has shape \(2, 3, 4\), stated \[4\]"):
        toy.reference("whole", [4])


def test_packed_and_seeded_arrays():
    label = np.arange(12, dtype=np.uint8).reshape(3, 4)
    np.testing.assert_array_equal(parity.decode(parity.encode(label)), label)
    classes = np.array([[[0, 1]]], np.uint8)
    spec = {"shape": [1, 2, 1, 2], "seed": 3, "scale": 1.5, "bump": 6.0}
    spec["classes"] = parity.encode(classes)
    expected = np.random.RandomState(3).standard_normal((1, 2, 1, 2)) * 1.5
    expected[0, 0, 0, 0] += 6
    expected[0, 1, 0, 1] += 6
    np.testing.assert_array_equal(parity.decode(spec), expected.astype(np.float32))


def test_damage_is_one_sentence(tmp_path):
    nan = np.array([np.nan], np.float32)
    toy = fixture(tmp_path, arrays={"nan": nan, "empty": np.empty((0,), np.float32)})
    for key, sentence in (
        ("nan", "nan of toy holds values that are not finite"),
        ("gone", "toy.npz has no array 'gone'"),
        ("empty", "empty of toy is empty"),
    ):
        with pytest.raises(ValueError, match=sentence):
            toy.reference(key)
    with pytest.raises(ValueError, match=r"toy.json has no entry 'cases'"):
        toy.cases()
    (tmp_path / "toy.npz").unlink()
    with pytest.raises(ValueError, match=r"toy\.npz does not exist; toy\.json refers to it"):
        fixture(tmp_path).array("nan")
    (tmp_path / "toy.json").write_text("{")
    with pytest.raises(ValueError, match="is not readable JSON"):
        parity.read_fixture(tmp_path / "toy.json")
    (tmp_path / "toy.json").write_text("[1]")
    with pytest.raises(ValueError, match="holds a JSON list, not an object"):
        parity.read_fixture(tmp_path / "toy.json")
    broken = {"shape": [1], "dtype": "uint8", "packed": base64.b64encode(b"no zlib").decode()}
    with pytest.raises(parity.DAMAGE):
        parity.decode(broken)


def test_tolerance_follows_the_stated_noise():
    assert parity.tolerance({}, "main") == 2e-5
    case = {"fp32_noise_rel": {"main": 8.6e-5, "aux": 7e-7}}
    assert parity.tolerance(case, "main") == pytest.approx(8.6e-4)
    assert parity.tolerance(case, "aux:0") == 2e-5
    assert parity.tolerance(case, "boundary") == 2e-5


def test_constructors_in_words():
    text = (
        "Block(in_channels=[16, 32], size=16 (= a**2, a=4), flag=True, rate=0.2); lists are [a, b]"
    )
    assert parity.parse_constructor(text) == (
        "Block",
        {"in_channels": [16, 32], "size": 16, "flag": True, "rate": 0.2},
    )
    assert parity.parse_constructor("container with attn = backbone") == ("", {})


def test_table_and_verdicts():
    rows = [
        parity.Row.measured("a", "c", "main", "2/2", 1e-5, 2e-5),
        parity.Row.measured("a", "c", "aux:0", "2/2", 3e-5, 2e-5),
        parity.Row("b", verdict="unknown", note="architecture x"),
    ]
    assert [row.verdict for row in rows] == ["ok", "FAIL", "unknown"]
    lines = parity.table(rows).splitlines()
    assert lines[0].split() == [
        "fixture",
        "case",
        "output",
        "keys",
        "max",
        "|diff|",
        "tolerance",
        "verdict",
    ]
    assert lines[2].split() == ["a", "c", "aux:0", "2/2", "3.0e-05", "2.0e-05", "FAIL"]
    assert lines[3].endswith("unknown  architecture x")
