"""Parity with published numbers, and what the checker says of damaged files."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
import verify_parity
from parity import make_golden

from models import list_backbones, list_models
from utils.parity import read_fixture, stored_grid, tolerance

GOLDEN = ROOT / "tests" / "golden"
GOLDEN_FILES = sorted(GOLDEN.glob("*.json"))


@pytest.mark.medium
@pytest.mark.parametrize("path", GOLDEN_FILES, ids=lambda path: path.stem)
def test_golden_numbers(path):
    rows = verify_parity.check(path)
    assert rows and [row for row in rows if row.verdict != "ok"] == []


def test_golden_files_are_small_and_cover_every_published_family():
    sizes = [path.stat().st_size for path in GOLDEN_FILES]
    assert max(sizes) < 100_000 and sum(sizes) < 2_000_000
    fixtures = [read_fixture(path) for path in GOLDEN_FILES]
    built = {f.data["build"]["architecture"] for f in fixtures if "build" in f.data}
    unpublished = {name for name in list_models() if name.startswith("rtlinearformer")}
    unrecorded = {"gcnet_m", "gcnet_l"}  # of whose code no outputs have been recorded
    assert built == {*list_models(), *list_backbones()} - unpublished - unrecorded
    names = {f.name for f in fixtures}
    assert {"losses_pidnet", "rtformer_gfa", "rtformer_eablock", "lrformer_lrsa"} <= names


def test_the_record_is_about_the_golden_files():
    record = json.loads((ROOT / "docs/records/parity.json").read_text())
    assert record["passed"] and record["command"] == "python tools/verify_parity.py tests/golden"
    assert set(record["fixtures"]) == {read_fixture(path).name for path in GOLDEN_FILES}


@pytest.mark.slow
def test_full_fixtures(shared, run, tmp_path):
    out = tmp_path / "rows.json"
    result = run("tools/verify_parity.py", shared / "parity", "--json", out, timeout=600)
    lines = result.stdout.splitlines()
    assert lines[-1].startswith("passed: ") and " 0 failed" in lines[-1]
    record = json.loads(out.read_text())
    checked = {row["fixture"] for row in record["rows"] if row["verdict"] == "ok"}
    stems = {path.stem for path in (shared / "parity").glob("*.json")}
    decoders = {"lrformer_t_plus"} if find_spec("transformers") is None else set()
    assert checked == stems - decoders
    for name, files in (("rtformer_tiny", 3), ("mmengine_checkpoint_tiny_rdrnet", 1)):
        cases = {row["case"] for row in record["rows"] if row["fixture"] == name}
        assert len({case.partition("(")[2] for case in cases} - {""}) == files


def test_golden_files_are_what_the_script_makes(shared):
    for name in ("rtformer_tiny", "losses_pidnet", "rtformer_gfa"):
        made = make_golden.compact(read_fixture(shared / "parity" / f"{name}.json"))
        assert json.loads(json.dumps(made)) == json.loads((GOLDEN / f"{name}.json").read_text())
    for name in ("gcnet_s", "gcblock"):
        full = read_fixture(shared / "parity_gcnet" / f"{name}.json")
        small = read_fixture(GOLDEN / f"{name}.json")
        assert json.loads(json.dumps(make_golden.compact(full))) == small.data
        assert small.tensors() == [tuple(pair) for pair in full.entry("state_dict")]


@pytest.fixture
def folder(tmp_path):
    """A folder with one small golden file, and how to change it."""
    path = tmp_path / "parity" / "toy.json"
    path.parent.mkdir()

    def write(name: str = "rtformer_tiny", change=lambda data: None) -> Path:
        data = json.loads((GOLDEN / f"{name}.json").read_text())
        change(data)
        path.write_text(json.dumps(data))
        return path

    return write


def notes(path: Path, verdict: str = "FAIL") -> str:
    rows = verify_parity.check(path)
    assert verdict in {row.verdict for row in rows}
    return "; ".join(row.note for row in rows if row.verdict == verdict)


def test_a_changed_number_fails(folder):
    def change(data):
        samples = data["inline"]["eval_64x128/out0"]["samples"]
        samples[7] += 5e-5 * data["inline"]["eval_64x128/out0"]["absmax"]

    rows = verify_parity.check(folder(change=change))
    verdicts = {(row.case, row.output): row.verdict for row in rows}
    assert verdicts.pop(("eval_64x128", "main")) == "FAIL"
    assert set(verdicts.values()) == {"ok"}


@pytest.mark.medium
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda d: d.pop("kind"), "has no entry 'kind'"),
        (lambda d: d.pop("build"), "has no entry 'build'"),
        (lambda d: d.pop("state_dict"), "has no entry 'state_dict'"),
        (lambda d: d.update(cases=[]), "has no cases"),
        (lambda d: d.update(cases=[3]), "damaged"),
        (lambda d: d.update(inline={}), "toy.npz does not exist"),
        (lambda d: d["state_dict"].pop(5), "lacks"),
        (lambda d: d["state_dict"].append(["x.weight", [1]]), "x.weight, which"),
        (lambda d: d["state_dict"][0].__setitem__(1, [4, 3, 5, 5]), "4x3x5x5"),
        (lambda d: d["cases"][0].pop("seed"), "damaged: KeyError 'seed'"),
        (lambda d: d["cases"][0]["outputs"][0].pop("role"), "damaged: KeyError 'role'"),
        (lambda d: d["cases"][0]["outputs"][0].update(role="aux:3"), "output 'aux:3', which"),
        (lambda d: d["cases"][0]["outputs"][0].update(shape=[1, 5, 8, 8]), "stated"),
        (lambda d: d["cases"][0].update(mode="train"), "mode 'train' cannot be compared"),
        (lambda d: d["cases"][0].update(outputs=[]), "no output that can be compared"),
        (lambda d: d["build"]["options"].update(depth=3), "rtformer_slim has no option depth"),
        (lambda d: d["build"].update(num_classes=6), "has 5 classes, rtformer_slim here has 6"),
        (lambda d: d["build"]["options"].update(cross_size=9), ""),
    ],
)
def test_damaged_fixtures_fail_with_a_sentence(folder, change, sentence):
    assert sentence in notes(folder(change=change))


def test_numbers_that_are_none_fail(folder):
    def nan(data):
        data["inline"]["eval_64x128/out0"]["samples"][0] = float("nan")

    assert "out0 of rtformer_tiny holds values that are not finite" in notes(folder(change=nan))
    path = folder(change=lambda data: data["inline"].pop("eval_64x128/out0"))
    np.savez(path.with_suffix(".npz"), x=np.ones(1))
    assert "has no array 'eval_64x128/out0'" in notes(path)
    path.with_suffix(".npz").write_bytes(b"PK\x03\x04 no zip")
    assert notes(path)
    path.write_bytes(b"\x00\xff")
    assert "is not readable JSON" in notes(path)


def test_outputs_stored_on_a_grid():
    """Every n-th row and column; the full shape and the step must be stated."""
    entry = {"shape": [1, 2, 4, 6], "full_shape": [1, 2, 7, 11]}
    entry["stored"] = "rows and columns 0,2,4,... of the full map"
    value = np.arange(154.0).reshape(1, 2, 7, 11)
    assert np.array_equal(stored_grid(value, entry), value[:, :, ::2, ::2])
    assert stored_grid(value, {"shape": [1, 2, 7, 11]}) is value
    with pytest.raises(ValueError, match=r"output has shape \(1, 2, 4, 6\), reference \(1, 2, 7"):
        stored_grid(value[:, :, ::2, ::2], entry)
    with pytest.raises(ValueError, match="does not say which rows and columns"):
        stored_grid(value, entry | {"stored": "a part"})
    noise = {"max_abs_err_over_max_abs_fp32_vs_fp64": 5e-5}
    assert tolerance({}, "main", "", noise) == pytest.approx(5e-4)
    assert tolerance({}, "main", "", {}) == tolerance({}, "main") == 2e-5


def test_a_missing_checkpoint_file_fails(folder, tmp_path):
    path = folder(change=lambda d: d.update(pdparams={"files": {"gone.pdparams": ""}}))
    assert "gone.pdparams does not exist" in notes(path)


def test_losses_fail_where_they_differ(folder):
    def change(data):
        data["results"]["ohem_single_on_upsampled_logits_i"][3]["value"] *= 1.001
        data["results"]["metric_logits_i"]["IoU"][2] += 0.001

    rows = verify_parity.check(folder("losses_pidnet", change))
    failed = [(row.case, row.output) for row in rows if row.verdict == "FAIL"]
    assert failed == [("ohem alone", "values"), ("metrics", "IoU")]


def test_unknown_is_not_passed(folder):
    path = folder(change=lambda d: d["build"].update(architecture="segnet"))
    assert notes(path, "unknown") == "architecture segnet"
    assert notes(folder(change=lambda d: d.update(kind="sound")), "unknown") == "kind sound"
    path = folder(change=lambda d: d.update(kind="backbone"))
    assert notes(path, "unknown") == "backbone rtformer_slim"
    other = {"official": {"constructor": "Mixer(dim=3)"}}
    assert notes(folder("rtformer_gfa", lambda d: d.update(other)), "unknown") == "block Mixer"
    other = {"official": {"constructor": "EABlock(dim=3)"}}
    assert "block EABlock: " in notes(folder("rtformer_gfa", lambda d: d.update(other)), "unknown")


def test_other_options_sizes_gains_and_forms_are_followed(folder):
    """Nothing hangs on names: a renamed file with other sizes is built and run as it says."""

    def change(data):
        data["name"] = "anything"
        data["fill"]["gain_for_ndim_ge_2"] = 0.6
        for case in data["cases"]:
            case["case"] = "renamed"

    rows = verify_parity.check(folder(change=change))
    assert {row.fixture for row in rows} == {"anything"} and {row.keys for row in rows} == {
        "261/261"
    }
    assert all(row.verdict == "FAIL" and row.difference > 1e-3 for row in rows)

    def inference_form(data):
        data["state_dict"] = [kv for kv in data["state_dict"] if "seghead_extra" not in kv[0]]
        for case in data["cases"]:
            case["outputs"] = [o for o in case["outputs"] if o["role"] == "main"]

    rows = verify_parity.check(folder(change=inference_form))
    assert [row.verdict for row in rows] == ["ok", "ok"]

    def deployed(data):
        data["cases"] = data["cases"][:1]
        data["cases"][0]["form"] = "deployed"
        data["cases"][0]["outputs"] = data["cases"][0]["outputs"][:1]

    assert [row.verdict for row in verify_parity.check(folder(change=deployed))] == ["ok"]


def test_command_line(folder, run, tmp_path, capsys, monkeypatch):
    path, record = folder("rtformer_gfa"), tmp_path / "rows.json"
    result = run("tools/verify_parity.py", path.parent, "--json", record)
    assert result.stdout.splitlines()[-1] == (
        "passed: 1 fixtures, 2 comparisons ok, 0 failed, 0 unknown"
    )
    assert json.loads(record.read_text())["passed"] is True

    def main(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["verify_parity.py", *map(str, arguments)])
        return verify_parity.main(), capsys.readouterr().out.splitlines()[-1]

    folder("rtformer_gfa", lambda d: d["official"].update(constructor="Mixer(dim=3)"))
    summary = "1 fixtures, 0 comparisons ok, 0 failed, 1 unknown"
    assert main(path.parent) == (0, f"passed: {summary}")
    assert main(path.parent, "--strict") == (1, f"FAILED: {summary}")
    path.write_text("{")
    assert main(path.parent) == (1, "FAILED: 1 fixtures, 0 comparisons ok, 1 failed, 0 unknown")
    path.unlink()
    result = run("tools/verify_parity.py", path.parent, status=2)
    assert "holds no parity files" in result.stderr and "Traceback" not in result.stderr


def test_make_golden_command(run, tmp_path, folder):
    path = folder("rtformer_gfa")
    data = json.loads(path.read_text())
    arrays = {
        key: np.random.RandomState(0).standard_normal(spec["shape"]).astype(np.float32)
        for key, spec in data.pop("inline").items()
    }
    path.write_text(json.dumps(data))
    np.savez(path.with_suffix(".npz"), **arrays)
    shutil.copy(GOLDEN / "pidnet_s.json", path.parent / "other.json")
    other = json.loads((path.parent / "other.json").read_text())
    other["build"]["architecture"] = "segnet"
    (path.parent / "other.json").write_text(json.dumps(other))
    result = run("tools/parity/make_golden.py", path.parent, tmp_path / "out")
    assert "other.json: left out, architecture segnet" in result.stdout
    made = read_fixture(tmp_path / "out" / "toy.json")
    key, array = next(iter(arrays.items()))
    reference = made.reference(key)
    assert np.array_equal(np.float32(reference.values), array.ravel()[reference.indices])
    assert reference.absmax == pytest.approx(np.abs(array).max(), rel=1e-7)
