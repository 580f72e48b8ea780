"""What the page says about the language model: whether it sees, and how good its answers are by kind of question."""

from __future__ import annotations

from typing import Any

from components.data.entries import DESCRIBE

KINDS = 12  # rows of the table


def sight(answering: dict[str, Any]) -> tuple[str, str] | None:
    """Returns whether the language model sees, and the numbers that decide it, as a sentence in two parts.

    None if that was not measured. answering: the metrics of the stage answer.
    """
    if "sees" not in answering:
        return None
    numbers = []
    if "exact_match" in answering:
        right, blind = (f"{100 * answering[name]['value']:.1f} %" for name in ("exact_match", "blind"))
        points = (100 * answering["over_blind"][name] for name in ("value", "low", "high"))
        over = "{:+.1f} points, {:+.1f} to {:+.1f}".format(*points)
        numbers = [f"{right} of its answers are right, and {blind} of the guesses without the photo ({over})"]
    numbers.append(f"with a wrong photo, the loss of the expected answer rises by {nats(answering['gap'])}")
    if answering["sees"]:
        return "The language model sees:", f"{'; '.join(numbers)}."
    chance = "A difference whose interval includes 0 may be chance. Try more connect.steps or a better backbone."
    return "The language model does not see:", f"{'; '.join(numbers)}. {chance}"


def nats(number: dict[str, float]) -> str:
    """Returns a difference of losses and its 95 % interval."""
    return "{value:.2f} nats ({low:.2f} to {high:.2f})".format(**number)


def kinds(answering: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns a row for each kind of question: name, words, exact_match, blind and of; [] if there are none.

    Descriptions, which are not right or wrong, have cider_d in place of exact_match.
    """
    rows = []
    for name, scores in answering.get("per_kind", {}).items():
        others = scores["wordings"] - 1
        more = f" and {scores['more_answers']} more" if scores["more_answers"] else ""
        words = [f"and {others} other wording{'s' * (others > 1)}"] if others else []
        if name != DESCRIBE and scores["answers"]:
            words.append(f"answers: {', '.join(scores['answers'])}{more}")
        row = {"name": name, "words": "; ".join(words), "of": scores["exact_match"]["of"]}
        if name == DESCRIBE:
            rows.append({**row, "cider_d": answering.get("cider_d")})
        else:
            rows.append({**row, "exact_match": scores["exact_match"], "blind": scores["blind"]})
    return rows
