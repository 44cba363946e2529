"""Networks whose queries are matched with classes train by the same script as all others."""

import json
import math

import pytest
import torch
from builders import build_criterion, build_network
from training import build_capture, build_run

from configs import get_config
from datasets import EvalTransform, get_meta
from datasets.synthetic import SyntheticScenes
from models import build_model
from utils.criterion import SegCriterion
from utils.distributed import World
from utils.metrics import ConfusionMatrix
from utils.optim import build_optimizer, learning_rate, set_learning_rate
from utils.query_criterion import QueryCriterion
from utils.run_state import Plan

NARROW = {
    "embed_dims": (8, 16, 40, 64),
    "expansions": (2, 2, 2, 2),
    "depths": (1, 1, 2, 1),
    "decoder_channels": 64,
    "num_queries": 20,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "drop_path": 0.0,
}
RUN = "synthetic/rtlinearformer_slim_synthetic"
CPU = World(0, 1, torch.device("cpu"))
SMALL = ("lrformer_t_plus", "lrformer_xl_plus")


@pytest.fixture(scope="module", autouse=True)
def _library():
    pytest.importorskip("transformers", reason="needs pip install -e .[query]")
    pytest.importorskip("scipy", reason="needs pip install -e .[query]")


@pytest.fixture
def words(tiny, tmp_path) -> list[str]:
    """A training run of six steps, scored at the size that it is trained at."""
    pairs = zip(tiny[2::2], tiny[3::2], strict=True)
    kept = [word for pair in pairs if not pair[0].startswith("MODEL.OPTIONS.") for word in pair]
    options = [word for key, v in NARROW.items() for word in (f"MODEL.OPTIONS.{key}", str(v))]
    network = ["MODEL.NAME", "lrformer_t_plus", *options, "LOSS.AUX_WEIGHTS", "()"]
    rest = ["TRAIN.LR", "0.002", "TEST.BATCH_SIZE_PER_GPU", "4", "OUTPUT_DIR", str(tmp_path)]
    return [*tiny[:2], *kept, *network, *rest]


def recipe(root, name: str = "lrformer_t_plus", *pairs: str):
    return get_config(root / f"configs/ade20k/{name}_ade20k.yaml", list(pairs))


def records(folder) -> list[dict]:
    lines = (folder / RUN / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_learns_and_is_scored_as_any_other(words, call, tmp_path, precision):
    done = call("tools/train.py", *words, "TRAIN.PRECISION", precision)
    first, last = records(tmp_path)
    assert last["loss"] < first["loss"] and first["skipped"] == last["skipped"] == 0
    for record in (first, last):
        parts = [record[name] for name in ("class", "mask", "dice")]
        assert all(map(math.isfinite, parts)) and min(parts) > 0
        assert sum(parts) == pytest.approx(record["loss"], rel=1e-3)
        assert math.isfinite(record["grad_norm"])
    assert "captured" not in done.stdout
    call("tools/eval.py", *words)
    (path,) = (tmp_path / RUN).glob("eval_*.json")
    best = torch.load(tmp_path / RUN / "best.pt", weights_only=True)["progress"]["best_miou"]
    assert json.loads(path.read_text())["scores"]["mIoU"] == pytest.approx(best, abs=2e-4)


@pytest.mark.parametrize("name", SMALL)
def test_the_network_states_its_loss(root, name):
    meta = get_meta("ade20k")
    with torch.device("meta"):
        model = build_model(name, 150)
        dense = build_model("lrformer_t", 150)
    config = recipe(root, name)
    criterion = build_criterion(config, model, meta)
    assert isinstance(criterion, QueryCriterion) and criterion.needs_host
    assert criterion.loss.empty_weight.tolist() == pytest.approx([1.0] * 150 + [0.1])
    assert criterion.loss.num_points == 12544 and criterion.loss.oversample_ratio == 3
    matcher = criterion.loss.matcher
    assert (matcher.cost_class, matcher.cost_mask, matcher.cost_dice) == (2, 5, 5)
    assert isinstance(build_criterion(config, dense, meta), SegCriterion)


@pytest.mark.parametrize(
    ("pair", "sentence"),
    [
        (("LOSS.NAME", "ohem"), "LOSS.NAME is ohem; lrformer_t_plus learns by the classes and"),
        (("LOSS.AUX_WEIGHTS", "(0.4,)"), "lrformer_t_plus has 0 auxiliary outputs"),
        (("LOSS.DICE", "1.0"), "and needs LOSS.DICE 0.0"),
        (("LOSS.LOVASZ", "0.5"), "and needs LOSS.LOVASZ 0.0"),
        (("LOSS.LABEL_SMOOTHING", "0.1"), "not by single pixels, and needs LOSS.LABEL_SMOOTHING"),
    ],
)
def test_settings_of_other_losses_are_refused(words, refuses, tmp_path, pair, sentence):
    refuses([sentence], "tools/train.py", *words, *pair)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("capture", ["auto", "on", "off"])
def test_its_steps_are_not_recorded(root, monkeypatch, capture):
    """Also where CUDA is at hand; one sentence says so, unless nobody wants it."""
    told = []
    config = recipe(root, "lrformer_t_plus", "TRAIN.CAPTURE", capture, "TRAIN.PRECISION", "fp32")
    world = World(0, 1, torch.device("cuda"))
    assert build_capture(config, QueryCriterion(3), world, told.append) is None
    because = "the loss looks at its numbers on the way"
    sentence = f"steps are not captured but computed one by one: {because}"
    assert told == ([] if capture == "off" else [sentence])
    if capture != "off":
        assert build_capture(config, SegCriterion("ce"), world, told.append) is not None


@pytest.mark.parametrize("name", SMALL)
def test_groups_of_the_published_recipe(root, name):
    narrow = {k: v for k, v in NARROW.items() if k != "depths"} if "xl" in name else NARROW
    options = [word for k, v in narrow.items() for word in (f"MODEL.OPTIONS.{k}", str(v))]
    config = recipe(root, name, *options, "TRAIN.EMA", "0")
    meta = get_meta("ade20k")
    model = build_network(config, meta)
    run = build_run(config, model, meta, Plan(1, 1, 1, 1, 0), CPU)
    set_learning_rate(run.optimizer, config.TRAIN.LR)
    assert isinstance(run.optimizer, torch.optim.AdamW)
    group_of = {id(p): group for group in run.optimizer.param_groups for p in group["params"]}
    assert len(group_of) == len(list(model.parameters()))
    spared = set()
    for key, parameter in model.named_parameters():
        group = group_of[id(parameter)]
        assert group["lr"] == pytest.approx(1e-5 if key.startswith("backbone.") else 1e-4)
        assert group["weight_decay"] in (0.0, 0.05)
        if parameter.ndim > 1 and not group["weight_decay"]:
            spared.add(key)
        assert parameter.ndim > 1 or not group["weight_decay"]
    codes = ("queries_embedder", "queries_features", "level_embed")
    assert spared == {f"head.transformer_module.{code}.weight" for code in codes}
    assert config.TRAIN.CLIP_GRAD == (0.01 if name == "lrformer_t_plus" else 0.1)


@pytest.mark.slow
def test_a_narrow_network_learns_eight_scenes_by_heart():
    """Of 256x128 pixels, to at least 85 % mIoU in at most 600 steps of four of them."""
    steps, rate = 600, 1e-3
    meta = get_meta("synthetic")
    drawn = SyntheticScenes(0, 8, (128, 256), transform=EvalTransform())
    image, label = (
        torch.stack([torch.as_tensor(drawn[i][key]) for i in range(8)])
        for key in ("image", "label")
    )
    torch.manual_seed(0)
    model = build_model("lrformer_t_plus", meta.num_classes, **NARROW)
    criterion = QueryCriterion(meta.num_classes, num_points=2048)  # of a mask's 64 x 32 values
    optimizer = build_optimizer(
        model, "adamw", lr=rate, weight_decay=0.0, lr_multipliers=model.lr_multipliers
    )
    best = 0.0
    for step in range(steps):
        set_learning_rate(optimizer, learning_rate(step / steps, base_lr=rate))
        half = torch.randperm(8)[:4]
        loss, _ = criterion(model.train().forward_train(image[half]), label[half])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 49:
            confusion = ConfusionMatrix(meta.num_classes, meta.class_names, meta.ignore_label)
            with torch.no_grad():
                confusion.update(model.eval()(image).argmax(1), label)
            best = max(best, confusion.to_dict()["mIoU"])
            if best >= 0.85:
                break
    assert best >= 0.85
