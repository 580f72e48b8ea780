from pathlib import Path

import pytest

from components.config import Strict, parse, read_section, section
from components.stages.pretrain_config import DataSize, configure, configure_for


class Inner(Strict):
    depth: int


class Outer(Strict):
    inner: Inner
    width: int = 3


def test_an_unknown_key_is_refused_and_the_known_ones_are_named():
    with pytest.raises(ValueError, match=r"inner.dept: no such setting; known here: depth"):
        parse(Outer, {"inner": {"dept": 1}}, "here")


def test_true_is_no_number_and_is_named_with_its_setting():
    with pytest.raises(ValueError, match=r"^here: inner.depth: cannot be true"):
        parse(Outer, {"inner": {"depth": True}}, "here")


def test_a_wrong_value_is_named_with_what_was_given():
    with pytest.raises(ValueError, match=r"^here: width: .*given: 'wide'"):
        parse(Outer, {"inner": {"depth": 1}, "width": "wide"}, "here")


def test_a_missing_section_names_the_ones_there_are(tmp_path: Path):
    (tmp_path / "params.yaml").write_text("a: {depth: 1}\nb:\n")
    assert read_section("a", Inner, tmp_path / "params.yaml") == Inner(depth=1)
    assert section("b", tmp_path / "params.yaml") == {}
    with pytest.raises(ValueError, match="no section 'c'; it has: a, b"):
        section("c", tmp_path / "params.yaml")


COMMON = {"backbone": {"kind": "vit", "image_size": 32, "patch_size": 8}, "batch_size": 8, "epochs": 1}


def test_a_methods_section_overrides_the_common_one_and_the_rest_is_the_methods():
    config = configure("moco", {"common": COMMON, "moco": {"epochs": 3, "queue": 64}})
    assert (config.epochs, config.batch_size, config.settings.queue) == (3, 8, 64)


def test_a_methods_unknown_setting_names_the_known_ones():
    with pytest.raises(ValueError, match=r"pretrain.moco: tempature: no such setting; .* did you mean temperature\?"):
        configure("moco", {"common": COMMON, "moco": {"tempature": 1}})


def test_an_unknown_method_names_the_known_ones():
    with pytest.raises(ValueError, match=r"no method 'mocco'; known: .*moco, mocoscriptstyle, simclr"):
        configure("mocco", {"common": COMMON})


def test_a_backbones_unknown_setting_and_impossible_shape():
    with pytest.raises(ValueError, match=r"patch: no such setting; known here: .*patch_size"):
        configure("simclr", {"common": {**COMMON, "backbone": {"kind": "vit", "patch": 8}}, "simclr": {}})
    with pytest.raises(ValueError, match="image_size 30 is not a multiple of patch_size 8; try image_size 24"):
        configure("simclr", {"common": {**COMMON, "backbone": {"kind": "vit", "image_size": 30, "patch_size": 8}}})


@pytest.mark.parametrize(
    ("method", "values", "message"),
    [
        ("simclr", {"crop": [0.5, 3.0]}, "less than or equal to 1"),
        ("simclr", {"crop": [1.0, 0.3]}, "the smaller number comes first"),
        ("dino", {"teacher_temperature": [0, 0.04]}, "greater than 0"),
        ("dino", {"blur": [1, 2, 0]}, "less than or equal to 1"),
        ("byol", {"views": {"solarize": [0, 2]}}, "less than or equal to 1"),
        ("ibot", {"mask_ratio": [0.5, 5]}, "less than or equal to 1"),
        ("ijepa", {"target_ratio": [0, 1.5]}, "greater than 0"),
        ("moco", {"queue": True}, "queue: cannot be true"),
        ("moco", {"seed": 2**32}, "less than 4294967296"),
    ],
)
def test_values_that_mean_nothing_are_refused(method, values, message):
    with pytest.raises(ValueError, match=message):
        configure(method, {"common": COMMON, method: values})


def test_a_problem_names_the_section_it_stands_in():
    with pytest.raises(ValueError, match=r"^params.yaml, section pretrain.common: batch_size: "):
        configure("moco", {"common": {**COMMON, "batch_size": 0}})
    with pytest.raises(ValueError, match=r"^params.yaml, section pretrain.moco: batch_size: "):
        configure("moco", {"common": COMMON, "moco": {"batch_size": 0}})
    with pytest.raises(ValueError, match=r"^params.yaml, section pretrain.common: queue: "):
        configure("moco", {"common": {**COMMON, "queue": -1}})


def auto_everywhere(backbone):
    return {"common": {**COMMON, "batch_size": "auto", "backbone": backbone}, "moco": {"queue": "auto"}}


def test_auto_is_computed_from_the_data():
    vit = {"kind": "vit", "image_size": "auto", "patch_size": 8, "heads": 2, "width": 16}
    config = configure("moco", auto_everywhere(vit), DataSize(photos=5588, side=64))
    assert (config.batch_size, config.settings.queue, config.backbone.image_size) == (64, 1024, 40)
    resnet = {"kind": "resnet18", "image_size": "auto"}
    config = configure("moco", auto_everywhere(resnet), DataSize(photos=60, side=36))
    assert (config.batch_size, config.settings.queue, config.backbone.image_size) == (8, 16, 32)


def test_auto_is_computed_from_the_photos_that_train(photos):
    vit = {"kind": "vit", "image_size": "auto", "patch_size": 8, "heads": 2, "width": 16}
    config = configure_for("moco", auto_everywhere(vit), photos)
    assert len(photos.rows("train")) == 66
    assert (config.batch_size, config.settings.queue, config.backbone.image_size) == (16, 32, 32)


def test_auto_without_data_and_where_it_means_nothing():
    with pytest.raises(ValueError, match=r"pretrain.moco: queue: auto needs the prepared photos"):
        configure("moco", {"common": COMMON, "moco": {"queue": "auto"}})
    with pytest.raises(ValueError, match=r"pretrain.moco: dim: .*given: 'auto'"):
        configure("moco", {"common": COMMON, "moco": {"dim": "auto"}}, DataSize(100, 64))
