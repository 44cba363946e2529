"""Whether networks trained on photographs give the same classes in every form of the CPU.

Over the whole test list, with the scores: RTSEG_IMAGES=233 pytest -s tests/utils/test_agreement.py
"""

import os

import pytest
import torch

from datasets import EvalTransform, SegmentationDataset, get_meta
from models import build_model, fuse
from models.weights import load_weights
from models.weights.rtlinearformer import EARLIER
from utils.deploy import prepare_for_inference
from utils.metrics import ConfusionMatrix
from utils.runtimes import can_compile

IMAGES = int(os.environ.get("RTSEG_IMAGES", 8))
# form, precision -> least share of equal pixels
LEAST = {("eager", "bf16"): 0.995, ("compiled", "bf16"): 0.995, ("compiled", "fp32"): 0.9999}
MOST_MIOU = 0.002  # between the whole list's scores


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(torch.device("cpu")), reason="there is no C++ compiler")
@pytest.mark.parametrize("name", ["rtlinearformer_slim", "rtlinearformer_base"])
def test_trained_networks_give_the_same_classes_in_every_form(shared, name):
    meta = get_meta("camvid")
    model = build_model(name, meta.num_classes, **EARLIER)
    load_weights(model, shared / f"weights/{name}_camvid_480x360.safetensors", inference=True)
    model = fuse(model.eval())
    data = SegmentationDataset(
        shared, "list/camvid/test.lst", meta, "index", transform=EvalTransform()
    )

    def prepare(runtime, precision):
        return prepare_for_inference(
            model,
            device="cpu",
            precision=precision,
            output="classes",
            runtime=runtime,
            size=None if runtime == "eager" else (360, 480),
        )[0]

    forms = {("eager", "fp32"): prepare("eager", "fp32"), **{f: prepare(*f) for f in LEAST}}
    scores = {form: ConfusionMatrix(meta.num_classes, meta.class_names) for form in forms}
    equal = dict.fromkeys(forms, 0)
    step = max(1, len(data) // IMAGES)
    places = range(0, step * min(IMAGES, len(data)), step)
    for place in places:
        sample = data[place]
        label = torch.as_tensor(sample["label"])[None]
        found = {f: run(torch.as_tensor(sample["image"])[None]) for f, run in forms.items()}
        for form, classes in found.items():
            equal[form] += int((classes == found["eager", "fp32"]).sum())
            scores[form].update(classes.long(), label)
    pixels = equal["eager", "fp32"]
    miou = {form: score.overall()["mIoU"] for form, score in scores.items()}
    for form in forms:
        print(name, *form, f"{100 * equal[form] / pixels:.4f} % equal, mIoU {100 * miou[form]:.3f}")
    assert len(places) >= min(IMAGES, 8) and pixels == len(places) * 360 * 480
    for form, least in LEAST.items():
        assert equal[form] / pixels >= least, form
        if len(places) == len(data):
            assert abs(miou[form] - miou["eager", "fp32"]) <= MOST_MIOU, form
