"""Accuracies as text."""

from __future__ import annotations

from typing import Any


def percent(proportion: dict[str, float] | None) -> str:
    """Returns a proportion and its 95 % interval in percent; a dash for None."""
    if proportion is None:
        return "–"
    value, low, high = (100 * proportion[key] for key in ("value", "low", "high"))
    return f"{value:.1f} % ({low:.1f} to {high:.1f})"


def over_seeds(seeds: dict[str, Any], kind: str, before: str = "") -> str:
    """Returns mean and standard deviation over seeds in percent; "" for one seed. before: text in front of them."""
    if seeds.get("count", 1) == 1 or kind not in seeds:
        return ""
    mean, deviation = (100 * seeds[kind][key] for key in ("mean", "deviation"))
    return f"{before}{seeds['count']} seeds: {mean:.1f} ± {deviation:.1f}"
