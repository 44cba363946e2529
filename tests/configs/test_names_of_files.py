"""Names of configurations that are gone: what stands in their place."""

import shlex

import pytest

from configs import get_config

NETWORKS = {  # overlay -> networks whose files it replaces, with the ending of their names
    "trainaug_lrformer": ("_voc2012", "_aug", ["lrformer_s", "lrformer_b"]),
    "trainaug_rdrnet": ("_voc2012", "_aug", ["rdrnet_s", "rdrnet_s_simple"]),
    "trainaug_rtformer": ("_voc2012", "_aug", ["rtformer_slim", "rtlinearformer_base"]),
    "trainval": ("_cityscapes", "_trainval", ["rtlinearformer_base", "ddrnet_23"]),
    "batch32_bisenet": ("_cityscapes", "_batch32", ["bisenetv1_r18", "bisenetv2"]),
}


@pytest.mark.parametrize("overlay", NETWORKS)
def test_folded_configurations_lead_to_the_pair(overlay, root):
    dataset, ending, networks = NETWORKS[overlay]
    folder = root / "configs" / dataset.removeprefix("_")
    for network in networks:
        old = folder / f"{network}{dataset}{ending}.yaml"
        with pytest.raises(FileNotFoundError) as caught:
            get_config(old)
        pair = [folder / f"{network}{dataset}.yaml", folder / f"{overlay}.yaml"]
        words = shlex.split(str(caught.value).partition("; write ")[2])
        assert words == ["--cfg", str(pair[0]), "--cfg", str(pair[1])]
        assert get_config(pair) != get_config(pair[0])


def test_a_folded_base_leads_to_two_bases(root, tmp_path):
    base = root / "configs/cityscapes/rtlinearformer_base_cityscapes_trainval.yaml"
    (tmp_path / "leaf.yaml").write_text(f"_BASE_: {base}")
    words = (
        r"_BASE_ in .*leaf\.yaml; write _BASE_: \[rtlinearformer_base_cityscapes\.yaml, trainval"
    )
    with pytest.raises(FileNotFoundError, match=words):
        get_config(tmp_path / "leaf.yaml")


@pytest.mark.parametrize("name", ["nothing_aug", "pidnet_s_voc2012_aug", "xx_trainval"])
def test_other_names_get_no_pair(name, root):
    with pytest.raises(FileNotFoundError) as caught:
        get_config(root / f"configs/voc2012/{name}.yaml")
    assert "--cfg" not in str(caught.value)
