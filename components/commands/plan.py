"""Divides the minutes of a run among its stages: for how long the backbone is trained, and what the rest takes."""

from __future__ import annotations

from dataclasses import dataclass

from components.commands.photo_folder import PhotoFolder
from components.commands.speed import Machine, Speed
from components.evaluation.points import PAIRS
from components.stages.connect import WARM_START_PHOTOS

STRIDE = 32  # pixels of a photo for each of the network's tokens
METHOD = "distill"  # trains on from published weights; their teacher has the same weights and sees larger photos
TEACHER_SIZE = {128: 224, 224: 320}  # pixels that the teacher sees, by those of the student
FEWEST_EPOCHS, MOST_EPOCHS = 2, 100
PHOTOS_SEEN = {"cpu": 30_000, "gpu": 600_000}  # in training, at most
QUESTIONS_SEEN = {"cpu": 5_000, "gpu": 20_000}  # by the language model, at most
REPEATS = 20  # of a question, at most
MEASURED = {"cpu": 1, "gpu": 5}  # times that the features are compared with the start's; 1: at the end
PICTURES = {"cpu": 100, "gpu": 400}  # test photos to answer questions about
WORDS_STEPS, WORDS_TEXTS, WORDS_TOKENS = 200, 256, 10  # of the stage words, where a text is a sentence about a photo
WORDS_TOKEN = 1 / 150  # the time of one of its tokens, as a fraction of that of a token of the language model
PROMPT = 14  # tokens of a question, its template and the end of its answer
USED = 0.9  # of the minutes; the rest is for what was not measured


@dataclass(frozen=True)
class Plan:
    """epochs: of METHOD, 0 if there is no time for it. seconds: by stage."""

    epochs: int
    measured: int
    steps: int  # of connect
    questions: int  # in one of them
    pictures: int
    new_tokens: int
    seconds: dict[str, float]

    @property
    def minutes(self) -> float:
        return sum(self.seconds.values()) / 60


def image_size(folder: PhotoFolder, machine: Machine) -> int:
    """Returns the pixels of a view: 224, as the weights were trained, for large photos on a GPU, otherwise 128.

    Smaller photos are enlarged: of photos of clothes reduced to 64 pixels, kNN named 60 % right at 64 and 71 % at 128.
    """
    return 224 if machine.gpu and folder.side >= 192 else 128


def plan(folder: PhotoFolder, machine: Machine, speed: Speed, minutes: float) -> Plan:
    """Returns what fits into `minutes`. What every run needs is never cut, so that few minutes may be exceeded."""
    device = "gpu" if machine.gpu else "cpu"
    start, photos = 2 * speed.start, folder.photos * speed.forward
    new_tokens = min(64, max(16, folder.answer_length // 3 + 4))  # a token is three letters or more
    pictures = max(2, min(PICTURES[device], folder.test))
    num_asked = pictures * max(1, round(folder.questions / folder.train)) if folder.questions else 0
    tokens = (image_size(folder, machine) // STRIDE) ** 2 + PROMPT + folder.answer_length // 3
    seconds = {
        "prepare": start + folder.photos * speed.read,
        "published": 2.5 * start + (2 if folder.classes else 1) * photos,  # its features, and untrained ones
        # the second start: an ONNX file, 19 s of one core
        "adapt": start + (photos + start if folder.classes or folder.multi_labeled else 0),
        "embed": start + photos,
        "words": start,
        "connect": start,
        "answer": start + num_asked * (3 * speed.forward + (1.5 * tokens + 2 * new_tokens) * speed.token),
        "report": start,
    }
    if folder.questions:  # its language model is read, its projector computed
        seconds["connect"] += start + min(WARM_START_PHOTOS, folder.train) * speed.forward
        texts = WORDS_STEPS * min(WORDS_TEXTS, folder.train) * (WORDS_TOKENS + folder.answer_length // 3)
        seconds["words"] += start + photos + texts * WORDS_TOKEN * speed.token
    remaining = USED * 60 * minutes - sum(seconds.values())

    measured = MEASURED[device]
    max_epochs = min(MOST_EPOCHS, max(FEWEST_EPOCHS, PHOTOS_SEEN[device] // folder.train))
    # of METHOD: its two stages, its features and those of its start, and the measurements during the run
    fixed_seconds = 2.5 * start + (2 if folder.classes else 1) * photos
    num_measured = folder.train + folder.val
    fixed_seconds += (1 + measured) * (num_measured + 2 * min(PAIRS, num_measured)) * speed.forward
    share = remaining * (0.5 if folder.questions else 1.0) - fixed_seconds
    epochs = min(max_epochs, int(share / (folder.train * speed.train)))
    epochs = epochs if epochs >= FEWEST_EPOCHS else 0
    training_seconds = {METHOD: fixed_seconds + epochs * folder.train * speed.train} if epochs else {}

    questions = 16 if folder.questions >= 64 else min(4, max(1, folder.questions))
    step = questions * (speed.forward + tokens * speed.token)
    max_steps = min(QUESTIONS_SEEN[device], REPEATS * folder.questions) // questions
    steps = max(30, min(max_steps, int((remaining - sum(training_seconds.values())) / step)))
    if folder.questions:
        seconds["connect"] += steps * step
    order = ["prepare", "published", *training_seconds, "adapt", "embed", "words", "connect", "answer", "report"]
    seconds |= training_seconds
    return Plan(epochs, measured, steps, questions, pictures, new_tokens, {name: seconds[name] for name in order})
