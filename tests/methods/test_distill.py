import json
import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from naive import TINY, assert_gradients, pixels
from small import SMALL
from two_ranks import resumes

from components.config import parse
from components.data.augment import DRAWS_PER_VIEW, View, sample_params
from components.data.fields import BatchSource, make_batch
from components.evaluation.features import features
from components.methods import teacher_views
from components.methods.distill import Distill, DistillConfig
from components.methods.teacher_views import PhotoFeatures, PhotoTokens, TeacherOutputs, whole_photos
from components.models.backbone import PublishedBackbone, ResNetBackbone, ViTBackbone, build, load
from components.models.published import resolve
from components.models.teacher import Teacher
from components.precision import PRECISION, uses_bf16
from components.stages import fingerprint, pretrain, pretrain_config
from tests.families import MAKERS, checkpoint
from tests.tolerances import BF16, FLOAT32, FLOAT64

CPU = torch.device("cpu")
STUDENTS = {
    "vit": ViTBackbone(image_size=16, patch_size=8, width=16, depth=1, heads=2),
    "resnet": ResNetBackbone(kind="resnet18", image_size=16),
}


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory):
    return checkpoint("vit", tmp_path_factory.mktemp("teacher"))


def config_of(folder, **settings):
    size = settings.pop("teacher_size", 16)
    return parse(DistillConfig, {"teacher": {"from": str(folder), "image_size": size}, **settings}, "distill")


def unit(x):
    return x / np.sqrt((x**2).sum())


def log_softmax(x):
    return x - math.log(np.exp(x).sum())


@pytest.mark.parametrize("queue", [0, 7])
def test_loss_and_gradients_are_the_formulas(teacher_folder, queue):
    """The teacher's grid is 2 × 2 here, as the student's."""
    torch.manual_seed(0)
    config = config_of(teacher_folder, teacher_size=8, queue=queue, patch_weight=0.5, temperature=0.3)
    method = Distill(build(TINY), config).double().train()
    images = pixels(0)[0]
    for center in (method.center, method.patch_center):  # as after some steps
        center.record(torch.randn(9, 16, dtype=torch.float64))
        center.update()
    means = [center.value.numpy() for center in (method.center, method.patch_center)]

    def formula():
        with torch.no_grad():
            own, own_tokens = method.backbone.whole_and_tokens(images)
            their, their_tokens = (x.numpy() for x in method.teacher(images))
            predicted, predicted_tokens = method.head(own).numpy(), method.patch_head(own_tokens).numpy()
        total = 0.0
        for image in range(len(images)):
            p, t = unit(predicted[image]), unit(their[image] - means[0])
            if queue:
                logs = [log_softmax(method.queue.items.numpy() @ x / 0.3) for x in (p, t)]
                total += sum(math.exp(q) * (q - s) for s, q in zip(*logs, strict=True))
            else:
                total += 1 - p @ t
            pairs = zip(predicted_tokens[image], their_tokens[image], strict=True)
            total += 0.5 * np.mean([1 - unit(a) @ unit(b - means[1]) for a, b in pairs])
        return total / len(images)

    losses = method([images])
    losses["loss"].backward()
    assert losses["loss"].item() == pytest.approx(formula(), abs=FLOAT64)
    assert_gradients(method, formula)


def test_the_queue_holds_centered_features_and_the_centers_are_means(teacher_folder):
    method = Distill(build(STUDENTS["vit"]), config_of(teacher_folder, queue=6)).double()
    images = torch.rand(4, 3, 16, 16, dtype=torch.float64) * 255
    whole, tokens = method.teacher(images)
    method([images])
    method.after_step()
    assert torch.allclose(method.center.value, whole.mean(0), atol=FLOAT64)
    # both to the student's 2 × 2, by antialiased interpolation that keeps a constant
    assert method.resample_targets.shape == (4, 16)
    assert torch.allclose(method.patch_center.value, (method.resample_targets @ tokens).mean((0, 1)), atol=FLOAT64)
    assert torch.allclose(method.queue.items[:4], torch.nn.functional.normalize(whole), atol=FLOAT64)
    method([images])
    method.after_step()
    centered = torch.nn.functional.normalize(whole - whole.mean(0))
    assert torch.allclose(method.queue.items[[4, 5, 0, 1]], centered, atol=FLOAT64)


@pytest.mark.parametrize("student", STUDENTS)
@pytest.mark.parametrize("family", MAKERS)
def test_every_family_teaches_a_vit_and_a_resnet(family, student, tmp_path):
    shape, teacher = STUDENTS[student], {"from": str(checkpoint(family, tmp_path))}
    method = Distill(build(shape), parse(DistillConfig, {"teacher": teacher, "queue": 0}, "distill")).train()
    sizes = (shape.image_size, method.config.teacher.image_size)
    batch = [torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8) for size in dict.fromkeys(sizes)]
    losses = method(batch)
    assert all(0 < value < 2 * (1 + (name == "loss")) for name, value in losses.items())
    losses["loss"].backward()
    assert all(p.grad is not None for p in method.backbone.trunk.parameters() if p.requires_grad)


def test_the_teacher_stays_as_it_is_and_in_no_checkpoint(teacher_folder):
    method = Distill(build(STUDENTS["vit"]), config_of(teacher_folder)).train()
    backbone = method.teacher.backbone
    assert not any(module.training for module in backbone.modules())
    assert not any(p.requires_grad for p in backbone.parameters())
    assert not any("teacher" in name for name in [*method.state_dict(), *dict(method.named_parameters())])
    assert method.to("meta").teacher.backbone.mean.device.type == "meta"
    own = load(teacher_folder)
    assert torch.equal(
        Teacher(config_of(teacher_folder).teacher)(pixels(1)[0].float())[0], own.eval()(pixels(1)[0].float())
    )


def test_teacher_and_student_see_the_same_crop_each_in_its_own_size(teacher_folder, photos):
    views = Distill.views(config_of(teacher_folder, teacher_size=32, blur=0.0), 16)
    small, large = make_batch(photos, photos.rows("train")[:8], views, 0, 3)
    assert (small.shape[-1], large.shape[-1]) == (16, 32)
    shrunk = torch.nn.functional.interpolate(large.float(), (16, 16), mode="bilinear", antialias=True)
    assert (shrunk - small).abs().mean() < 4
    assert (shrunk - small.flip(0)).abs().mean() > 20
    assert len(Distill.views(config_of(teacher_folder, teacher_size=16), 16)) == 1


def test_features_of_whole_photos_are_those_that_are_evaluated(teacher_folder, photos):
    config = config_of(teacher_folder, teacher_sees="photo")
    rows, rounding = photos.rows("train"), BF16 if uses_bf16() else FLOAT32
    seen = whole_photos(config.teacher, photos.folder, CPU, with_maps=True)
    teacher = Teacher(config.teacher)
    assert torch.allclose(seen.features[rows], features(teacher.backbone, photos)[rows], atol=rounding)
    assert not seen.features[photos.rows("val", "test")].any()
    tokens = teacher(photos.squares(rows[:4], 16))[1]
    assert torch.allclose(seen.maps[rows[:4]].flatten(2).transpose(1, 2).float(), tokens, atol=max(1e-2, rounding))
    (batch,) = make_batch(photos, rows[5:9], [PhotoFeatures(config.teacher, with_maps=True)], 0, 0)
    assert torch.equal(batch, seen.features[rows[5:9]])


@pytest.mark.parametrize("square", ["crop", "squash"])
def test_tokens_of_a_view_lie_where_the_view_shows_the_photo(teacher_folder, photos, monkeypatch, square):
    """In a map whose two channels are the column and the row of each place, from 0 to 16."""
    side, rows = 16, photos.rows("train")[:12]
    column = (torch.arange(side) + 0.5).expand(side, side)
    maps = torch.stack([column, column.T]).half().expand(len(photos), -1, -1, -1)
    monkeypatch.setattr(teacher_views, "whole_photos", lambda *_, **__: TeacherOutputs(torch.empty(0), maps))
    teacher = config_of(teacher_folder).teacher.model_copy(update={"square": square})
    view = View(16, crop=(0.05, 0.6))
    source = BatchSource(photos, rows, 0, 1, CPU)
    tokens = PhotoTokens(teacher, view, view_index=0).make(source, 2)  # [B, side², 2]
    params = sample_params(view, source.shapes, source.uniform(0, DRAWS_PER_VIEW))
    assert 0 < params.flip.sum() < len(rows)
    for photo in range(len(rows)):
        height, width = source.shapes[photo].tolist()
        seen_height, seen_width = (min(height, width),) * 2 if square == "crop" else (height, width)
        top, left, box_height, box_width = params.boxes[photo].tolist()
        for i, j in ((0, 0), (3, 12), (15, 7)):
            y = top + box_height * (i + 0.5) / side
            x = left + box_width * ((side - 1 - j if params.flip[photo] else j) + 0.5) / side
            expected = [
                side * (x - (width - seen_width) / 2) / seen_width,
                side * (y - (height - seen_height) / 2) / seen_height,
            ]
            expected = np.clip(expected, 0.5, side - 0.5)  # the border
            assert tokens[photo, side * i + j].numpy() == pytest.approx(expected, abs=1e-3)


def test_a_run_with_whole_photos_resumes_to_the_same_bits(photos, monkeypatch):
    settings = {**SMALL["distill"], "teacher_sees": "photo"}
    monkeypatch.setitem(SMALL, "distill", settings)
    whole_photos.cache_clear()
    assert resumes("distill", photos, Accelerator(cpu=True)) == []


@pytest.mark.parametrize("sees", ["crop", "photo"])
def test_a_run_says_who_taught_and_learns(teacher_folder, photos, tmp_path, sees, monkeypatch):
    monkeypatch.setenv(PRECISION, "fp32")  # the features of a random teacher hardly differ, by less than bf16 rounds
    shape = {"kind": "vit", "image_size": 16, "patch_size": 8, "width": 16, "depth": 1, "heads": 2}
    own = {"teacher": {"from": str(teacher_folder)}, "teacher_sees": sees, "queue": 16}
    own["optimizer"] = {"kind": "adamw", "lr": 0.02}
    common = {"backbone": shape, "batch_size": 16, "epochs": 8}
    config = pretrain_config.configure_for("distill", {"common": common, "distill": own}, photos)
    pretrain.pretrain(config, photos.folder, tmp_path / "out")
    losses = [json.loads(line)["loss"] for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] - 0.1
    assert json.loads((tmp_path / "out" / "config.json").read_text())["settings"]["teacher"]["from"] == str(
        teacher_folder
    )
    kept = load(tmp_path / "out" / "backbone")
    assert (kept.teacher.source, kept.teacher.model_type, kept.origin) == (str(teacher_folder), "vit", None)
    kept.save(tmp_path / "again")
    assert load(tmp_path / "again").teacher == kept.teacher
    start = PublishedBackbone(**resolve({"kind": "published", "from": str(tmp_path / "again")}))
    assert build(start).teacher == kept.teacher  # also of what goes on from it


def test_a_teacher_with_other_weights_is_another_run(tmp_path):
    checkpoint("vit", tmp_path)
    shape = {"kind": "vit", "image_size": 16, "patch_size": 8, "width": 16, "depth": 1, "heads": 2}
    params = {"common": {"backbone": shape, "batch_size": 16, "epochs": 1}}
    params["distill"] = {"teacher": {"from": str(tmp_path)}}
    config = pretrain_config.configure("distill", params)
    before = pretrain.start_digests(config), fingerprint.fingerprints(params)["pretrain/distill"]["start"]
    (tmp_path / "model.safetensors").write_bytes(b"others")
    after = pretrain.start_digests(config), fingerprint.fingerprints(params)["pretrain/distill"]["start"]
    assert all(before)  # nothing would be equal to nothing
    assert all(one != other for one, other in zip(before, after, strict=True))


def test_what_cannot_teach_or_learn_is_refused_with_advice(teacher_folder, photos):
    with pytest.raises(ValueError, match=r"params.yaml: teacher: no published backbone 'nobody/nothing/here'"):
        parse(DistillConfig, {"teacher": {"from": "nobody/nothing/here"}}, "params.yaml")
    with pytest.raises(ValueError, match="from: an id, a folder or efficientnet-lite0 is needed; given: None"):
        parse(DistillConfig, {"teacher": {}}, "params.yaml")
    with pytest.raises(ValueError, match=r"queue 8; allowed: 0, or the batch_size 16 to the 67 training photos; try"):
        Distill.check(config_of(teacher_folder, queue=8), 67, 16, 1)
    patches = STUDENTS["vit"].model_copy(update={"patches": 8})
    with pytest.raises(ValueError, match=r"backbone.patches 8 has no patch features of its own; try patch_weight: 0"):
        Distill(build(patches), config_of(teacher_folder))
    Distill(build(patches), config_of(teacher_folder, patch_weight=0))
