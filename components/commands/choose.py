"""Writes params.yaml for some photos and a machine: one setting after the other, each with the reason for it."""

from __future__ import annotations

import textwrap
from typing import Any

import yaml

from components.commands.photo_folder import PhotoFolder
from components.commands.plan import METHOD, TEACHER_SIZE, WORDS_STEPS, Plan, image_size, plan
from components.commands.speed import GIB, Machine, Speed
from components.models.pretrained import PACKAGED
from components.stages.prepare import PrepareConfig

SMALL = 96  # pixels of the shorter side, below which blur hides what there is
GPU_PER_PHOTO = 0.12  # GiB, of two views of 224 pixels, forward and backward
WIDTH = 120  # of a line

Setting = tuple[str, Any, str]  # name, after two spaces for each section it is in; value (None: a section); reason


def choose(folder: PhotoFolder, machine: Machine, speed: Speed, minutes: float) -> str:
    """Returns the text of params.yaml. minutes: what the whole run may take."""
    run_plan, size = plan(folder, machine, speed, minutes), image_size(folder, machine)
    settings = [
        *_methods(run_plan),
        *_data(folder, machine, size),
        *_prepare(folder),
        *_pretrain(folder, machine, run_plan, size),
        *_evaluate(folder),
        *_adapt(folder, run_plan),
        *_embed(folder, run_plan),
        *_words(folder, run_plan),
        *_connect(folder, run_plan),
        *_answer(folder, run_plan),
        *_report(),
    ]
    head = _head(folder, machine, speed, run_plan, minutes)
    lines = [textwrap.fill(line, WIDTH, initial_indent="# ", subsequent_indent="#   ") for line in head]
    return "\n".join([*lines, *(_lines(*setting) for setting in settings)]) + "\n"


def published(size: int) -> dict[str, Any]:
    """Returns the section of the backbone that every run starts from."""
    return {"kind": "published", "from": PACKAGED, "image_size": size}


def teacher(size: int) -> dict[str, Any]:
    """Returns the section of the teacher of a backbone for `size` pixels."""
    return {"from": PACKAGED, "image_size": TEACHER_SIZE[size]}


def packed_size(size: int) -> int:
    """Returns the pixels of the shorter side as packed: an eighth more than a view has, so that crops are reduced."""
    return size * 9 // 8


def _lines(name: str, value: Any, reason: str) -> str:
    """Returns a setting with its reason, which stands above it where one line is too short."""
    indent = " " * (len(name) - len(name.lstrip()))
    dumped = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False, allow_unicode=True)
    setting = f"{name}:" if value is None else f"{name}: {dumped}".removesuffix("...\n").rstrip()
    text = f"{setting}  # {reason}" if reason else setting
    text = text if len(text) <= WIDTH else f"{indent}# {reason}\n{setting}"
    return text if indent else f"\n{text}"


def _head(folder: PhotoFolder, machine: Machine, speed: Speed, run_plan: Plan, minutes: float) -> list[str]:
    parts = [f"{folder.classes} classes"] * bool(folder.classes)
    parts += [f"{folder.multi_labeled:,} with several labels"] * bool(folder.multi_labeled)
    labels = ", ".join(parts) or "no labels"
    splits = ", ".join(f"{name} {getattr(folder, name):,}" for name in ("train", "val", "test"))
    note = f" ({' and '.join(folder.drawn)} to be drawn)" if folder.drawn else ""
    stages = ", ".join(f"{name} {seconds / 60:.1f}" for name, seconds in run_plan.seconds.items())
    return [
        "Chosen by `selfsight settings` for these photos and this machine. The file is yours: change what you like. The"
        " same command leaves it as it is.",
        f"photos: {folder.photos:,}, {labels}, {folder.captioned:,} captions; {splits}{note}",
        f"their size: {folder.side} pixels on the shorter side, {folder.megapixels:.2g} megapixels (medians)",
        f"machine: {machine}",
        f"measured on it: {speed}",
        f"expected minutes if nothing else runs: {stages}",
        f"in all: {run_plan.minutes:.0f} minutes of {minutes:g}",
    ]


def _methods(run_plan: Plan) -> list[Setting]:
    why = "published weights, untouched: with a few thousand photos, no training from random weights comes near them"
    if not run_plan.epochs:
        why = "published weights, untouched: there is no time to train them further; give more --minutes"
    return [("methods", ["published", *[METHOD] * bool(run_plan.epochs)], why)]


def _data(folder: PhotoFolder, machine: Machine, size: int) -> list[Setting]:
    packed = packed_size(size)
    why = "pixels of the shorter side as stored, an eighth more than image_size; smaller photos stay as they are"
    settings: list[Setting] = [("data", None, ""), ("  source", str(folder.folder), ""), ("  size", packed, why)]
    gigabytes = folder.photos * packed * packed * 4 / GIB  # 3 bytes a pixel, and a longer side of 4 : 3
    if gigabytes > machine.memory / 2:
        why = f"raw pixels would take {gigabytes:.0f} GiB, more than half of the memory"
        settings.append(("  jpeg_quality", 95, why))
    return [*settings, ("  max_rejected", 0.1, "stop if more than this fraction of the files cannot be used")]


def _prepare(folder: PhotoFolder) -> list[Setting]:
    config = PrepareConfig()
    shares = {"val": config.val_share, "test": config.test_share}
    split_settings: list[Setting] = [
        (f"  {split}_share", shares[split], f"the folder has no {split} split: about {getattr(folder, split):,} photos")
        for split in folder.drawn
    ]
    return [("prepare", None, ""), *split_settings, ("  seed", 0, "")]


def _pretrain(folder: PhotoFolder, machine: Machine, run_plan: Plan, size: int) -> list[Setting]:
    why = "no GPU; 224 px takes three times as long, and adds 3 points of kNN accuracy on photos of clothes"
    if folder.side < SMALL:
        why = (
            "small photos are enlarged; at 128 instead of 64 pixels, photos of clothes had 11 points more kNN accuracy"
        )
    elif machine.gpu:
        why = "as the weights were trained" if size == 224 else "the photos are small"
    settings: list[Setting] = [
        ("pretrain", None, ""),
        ("  common", None, "for all methods; a method's own section overrides it"),
        ("    backbone", published(size), why),
        ("    batch_size", *_batch_size(folder, machine)),
        ("    epochs", 1, "for methods without their own section"),
        ("    seed", 0, ""),
    ]
    return settings + (_distill(folder, run_plan, size) if run_plan.epochs else [])


def _distill(folder: PhotoFolder, run_plan: Plan, size: int) -> list[Setting]:
    minutes = run_plan.seconds[METHOD] / 60
    reason = f"{run_plan.epochs * folder.train:,} photos seen; about {minutes:.0f} minutes with its evaluation"
    rates = {"backbone_lr": 1.0, "layer_decay": 1.0, "patch_lr": 1.0, "frozen": 0.0, "measured": run_plan.measured}
    adamw = {"kind": "adamw", "lr": 0.001, "weight_decay": 0.05, "schedule": {"kind": "cosine", "warmup": 0.1}}
    return [
        (f"  {METHOD}", None, "it learns to predict from small photos what the same weights see in larger ones"),
        ("    teacher", teacher(size), "has a higher accuracy, but a photo takes two to three times as long"),
        ("    epochs", run_plan.epochs, reason),
        ("    queue", "auto", "a quarter of the training photos"),
        ("    crop", [0.3, 1.0], "fraction of the area; smaller crops would not show what is in the photo"),
        ("    blur", 0.0, "off, so that student and teacher see the same"),
        ("    optimizer", adamw, "a higher rate than the default, because the run is short"),
        ("    start", rates, "all layers learn at one rate; the best of start and measured points is kept"),
    ]


def _batch_size(folder: PhotoFolder, machine: Machine) -> tuple[Any, str]:
    for size in (256, 128):
        if size * GPU_PER_PHOTO <= machine.gpu_memory and size * 16 <= folder.train:
            return size, f"{machine.gpu_memory:.0f} GiB of GPU memory hold it, and an epoch has 16 steps or more"
    return "auto", "64, or a quarter of the training photos where that is less"


def _evaluate(folder: PhotoFolder) -> list[Setting]:
    per_class = folder.train // max(1, folder.classes)
    why = "for the kNN classifier"
    why += f"; a class has about {per_class} training photos" if per_class < 20 else ""
    return [("evaluate", None, ""), ("  neighbors", max(1, min(20, per_class)), why), ("  seed", 0, "")]


def _method(folder: PhotoFolder, run_plan: Plan) -> Setting:
    if folder.classes and run_plan.epochs:
        return "  method", METHOD, "it keeps the best of its start and later points"
    why = "without labels, nothing tells whether training made it better" if run_plan.epochs else "the only method"
    return "  method", "published", why


def _adapt(folder: PhotoFolder, run_plan: Plan) -> list[Setting]:
    return [
        ("adapt", None, "" if folder.classes or folder.multi_labeled else "skipped: these photos have no labels"),
        _method(folder, run_plan),
        ("  kind", "linear", "takes seconds; mlp, attention, lora and full take longer, see benchmarks/adapters.md"),
        ("  seed", 0, ""),
    ]


def _embed(folder: PhotoFolder, run_plan: Plan) -> list[Setting]:
    return [("embed", None, "computes a vector for each photo, for search"), _method(folder, run_plan)]


def _words(folder: PhotoFolder, run_plan: Plan) -> list[Setting]:
    return [
        ("words", None, "" if folder.questions else "skipped: these photos have no labels or captions"),
        _method(folder, run_plan),
        ("  steps", WORDS_STEPS, "training steps of a small text encoder, for search by words"),
        ("  seed", 0, ""),
    ]


def _connect(folder: PhotoFolder, run_plan: Plan) -> list[Setting]:
    reason = f"{run_plan.steps * run_plan.questions:,} questions seen, of {folder.questions:,} from labels and captions"
    return [
        ("connect", None, "" if folder.questions else "skipped: these photos have no labels or captions"),
        _method(folder, run_plan),
        ("  llm", "smollm2", "installed as a package, needs no network; or a Hugging Face id or a folder"),
        ("  steps", run_plan.steps, reason if folder.questions else ""),
        ("  batch_size", run_plan.questions, ""),
        ("  seed", 0, ""),
    ]


def _answer(folder: PhotoFolder, run_plan: Plan) -> list[Setting]:
    why = f"90 % of the answers have at most {folder.answer_length} letters" if folder.answer_length else ""
    return [
        ("answer", None, ""),
        ("  pictures", run_plan.pictures, "test photos that the language model answers questions about"),
        ("  max_new_tokens", run_plan.new_tokens, why),
    ]


def _report() -> list[Setting]:
    return [("report", None, ""), ("  queries", 8, "test photos whose nearest training photos the page shows")]
