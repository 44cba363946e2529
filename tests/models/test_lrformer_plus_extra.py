"""LRFormer+ where the extra `query` is not installed: what is said, and what works all the same."""

import subprocess
import sys

import pytest
import torch
import verify_parity
from query_networks import SENTENCE, meta

from models import (
    accepted_options,
    build_backbone,
    build_model,
    list_backbones,
    list_models,
    resolve_name,
)
from models.lrformer_plus import VARIANTS, LRFormerPlus
from models.weights import load_weights, needs_extra, read_checkpoint, recognise
from models.weights.convert import DIALECTS
from models.weights.rules import rename_keys
from utils.parity import read_fixture


def test_one_sentence_names_the_command(without_extra):
    for name in VARIANTS:
        with pytest.raises(ValueError) as caught:
            build_model(name, 150)
        assert str(caught.value) == SENTENCE.replace("lrformer_t_plus", name)
    assert resolve_name("lrformer_t_plus") == "lrformer_t_plus"
    assert {"drop_path", "num_queries"} <= set(accepted_options("lrformer_t_plus"))
    with pytest.raises(ValueError, match="did you mean lrformer_t_plus"):
        build_model("lrformer_t_pls", 150)


def test_everything_else_builds(without_extra):
    assert not set(VARIANTS) & set(list_models())
    assert list_models(extras=True) == list_models()
    for name in list_models():
        assert meta(name, 3).architecture == name
    with torch.device("meta"):
        assert all(build_backbone(name).architecture == name for name in list_backbones())


def test_the_library_is_not_imported_before_a_network_is_built(root):
    code = (
        "import sys, models, models.weights; models.list_models(extras=True); "
        "assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, timeout=120)


@pytest.mark.parametrize("tool", ["train", "eval"])
def test_tools_refuse_without_the_extra(without_extra, refuses, tiny, tmp_path, tool):
    options = {i for i, word in enumerate(tiny) if word.startswith("MODEL.OPTIONS.")}
    kept = [word for i, word in enumerate(tiny) if not {i, i - 1} & options]
    words = [*kept, "MODEL.NAME", "lrformer_t_plus", "OUTPUT_DIR", tmp_path]
    refuses([SENTENCE], f"tools/{tool}.py", *words)
    assert list(tmp_path.iterdir()) == []


def test_the_speed_script_refuses_without_the_extra(without_extra, refuses):
    refuses([SENTENCE], "models/speed/speed.py", "--a", "lrformer_t_plus", "--r", "64", "64")


def test_conversion_names_the_extra(without_extra, refuses, shared, save, tmp_path):
    pairs = read_fixture(shared / "parity" / "lrformer_t_plus.json").tensors()
    published = save({key: torch.zeros([1] * len(shape)) for key, shape in pairs})
    words = ["holds LRFormer+ weights, which need transformers: pip install -e .[query]"]
    out = ("--out", tmp_path / "ours.pt")
    assert recognise(read_checkpoint(published).tensors) == words[0].removeprefix("holds ")
    refuses(words, "tools/convert_weights.py", published, *out)
    refuses(words, "tools/convert_weights.py", published, *out, "--a", "lrformer_t")
    content = {"model": {"head.classify.bias": torch.zeros(8)}, "architecture": "lrformer_t_plus"}
    own = save(content, "own.pt")
    refuses([SENTENCE], "tools/convert_weights.py", own, *out)
    with pytest.raises(ValueError, match=r"holds LRFormer\+ weights.*, the model is lrformer_t$"):
        load_weights(meta("lrformer_t", 150), published)
    assert needs_extra(meta("lrformer_t", 150).state_dict()) == ""
    assert not (tmp_path / "ours.pt").exists()


def test_parity_is_unknown_without_the_extra(without_extra, shared):
    (row,) = verify_parity.check(shared / "parity" / "lrformer_t_plus.json")
    assert (row.verdict, row.note) == ("unknown", SENTENCE)


def test_published_keys_are_known_without_the_extra(shared):
    keys = [key for key, _ in read_fixture(shared / "parity" / "lrformer_t_plus.json").tensors()]
    (dialect,) = (d for d in DIALECTS[LRFormerPlus] if d.name == "LRFormer+")
    renaming = rename_keys(dialect, keys)
    assert not renaming.unknown and not renaming.dropped
    assert len(renaming.sources) == len(keys) + 9 * 2 * 2  # q, k and v where there was one
    assert set(renaming.parts.values()) == {(0, 3), (1, 3), (2, 3)}
