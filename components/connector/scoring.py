"""Scores answers: against the best guess without the image, and with another image in its place."""

from __future__ import annotations

import string
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from components.data.entries import DESCRIBE

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {"none": "0", **{word: str(number) for number, word in enumerate(NUMBERS)}}
PUNCTUATION = dict.fromkeys(map(ord, string.punctuation), " ")


def words(text: str) -> list[str]:
    """Returns the words in lower case, without punctuation."""
    return text.lower().translate(PUNCTUATION).split()


def normalized(answer: str) -> str:
    """Returns lower case without punctuation and articles, numbers as digits, with single spaces.

    As the VQA metric (https://visualqa.org/evaluation.html), but for its list of contractions.
    """
    return " ".join(DIGITS.get(word, word) for word in words(answer) if word not in ("a", "an", "the"))


def vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """Returns the VQA accuracy of an answer, 0 to 1: full where three people gave it (https://arxiv.org/abs/1505.00468).

    min(matches / 3, 1), averaged over all ways to leave one person out. It is made for ten people. With two or three,
    all that remain must agree with the answer; with one nobody can be left out, and it is exact match.
    """
    matches = [normalized(reference) == normalized(answer) for reference in references]
    if len(matches) == 1:
        return float(matches[0])
    full_score = min(3, len(matches) - 1)
    return sum(min((sum(matches) - match) / full_score, 1.0) for match in matches) / len(matches)


def blind_answers(training: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Returns the most common training answer to each question, the first in alphabetical order among equals."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for question, answer in training:
        counts[question][answer] += 1
    return {
        question: min(answers, key=lambda answer: (-answers[answer], answer)) for question, answers in counts.items()
    }


def question_kinds(training: Iterable[tuple[str, str]], questions: Iterable[str]) -> dict[str, str]:
    """Returns for each of `questions` the most frequent question of its kind.

    From the most frequent one down, a question joins the first kind that half of its training answers fit, so that
    "How many are there?" and "How many cars do you see?" are one kind, whatever their words; otherwise it is a new one.
    Descriptions of the picture are always a kind of their own.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for question, answer in training:
        counts[question][normalized(answer)] += 1
    kinds: dict[str, str] = {}
    leaders: list[str] = []

    def fits(question: str, leader: str) -> bool:
        num_fitting = sum(count for answer, count in counts[question].items() if answer in counts[leader])
        return num_fitting > 0 and 2 * num_fitting >= counts[question].total()

    for question in sorted(set(questions), key=lambda question: (-counts[question].total(), question)):
        leader = None if question == DESCRIBE else next((kind for kind in leaders if fits(question, kind)), None)
        kinds[question] = leader or question
        if not leader and question != DESCRIBE:
            leaders.append(question)
    return kinds


def derangement(rows: np.ndarray, seed: int) -> np.ndarray:
    """Returns for each entry of `rows` the row of another image, the same one for equal rows. int64 [len(rows)].

    Raises ValueError if there are fewer than two images.
    """
    images = np.random.default_rng(seed).permutation(np.unique(rows))
    if len(images) < 2:
        raise ValueError("exchanging images needs at least two; there is one")
    other_image = dict(zip(images.tolist(), np.roll(images, 1).tolist(), strict=True))
    return np.array([other_image[row] for row in rows.tolist()], dtype=np.int64)


def bootstrap(values: np.ndarray, images: np.ndarray, seed: int, draws: int = 2000) -> tuple[float, float]:
    """Returns the 95 % interval of the mean of `values`, one value a question.

    Whole images are drawn, because the answers to the questions about one image are not independent.
    """
    _, image = np.unique(images, return_inverse=True)
    sums, counts = np.bincount(image, values), np.bincount(image)
    samples = np.random.default_rng(seed).integers(len(sums), size=(draws, len(sums)))
    low, high = np.quantile(sums[samples].sum(1) / counts[samples].sum(1), (0.025, 0.975))
    return float(low), float(high)
