"""What people and programs see of conversations."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from ....runtime.evaluation.evaluate import number
from ....runtime.evaluation.stability import first_repetition
from ...evaluation.evaluation import ModelRun
from ...evaluation.turns import Turn


def turns_report(asked: list[list[str]], ours: ModelRun, theirs: ModelRun | None) -> dict[str, Any]:
    """Turn by turn as JSON has it.

    `kl_mean` and `top1_agreement` are over the reference's own answer of a turn, after what it said
    before: they do not depend on where the two parted.
    """
    runs = {"model": ours, "reference": theirs}
    said = {name: _by_place(run.turns) for name, run in runs.items() if run is not None}
    turns: list[dict[str, Any]] = [
        {
            "conversation": conversation,
            "turn": turn,
            "model": _answer(said["model"].get((conversation, turn))),
            "reference": _answer(said.get("reference", {}).get((conversation, turn))),
            "same_answer": None,
            "kl_mean": None,
            "top1_agreement": None,
        }
        for conversation, messages in enumerate(asked)
        for turn in range(len(messages))
    ]
    if theirs is not None and theirs.followed is not None and ours.followed is not None:
        places = {(each["conversation"], each["turn"]): each for each in turns}
        start = 0
        for theirs_said in theirs.turns:
            place = (theirs_said.conversation, theirs_said.turn)
            end = start + len(theirs_said.transcript) - 1
            here = slice(start + theirs_said.answered.start, end)
            ours_said = said["model"].get(place)
            same = ours_said is not None and ours_said.answer == theirs_said.answer
            places[place]["same_answer"] = same
            if theirs_said.answer:
                divergences = ours.followed.divergences[here]
                pairs = zip(ours.followed.tokens[here], theirs.followed.tokens[here], strict=True)
                count = len(divergences)
                places[place]["kl_mean"] = number(math.fsum(divergences) / count)
                places[place]["top1_agreement"] = sum(a == b for a, b in pairs) / count
            start = end
    return {"conversations": len(asked), "turns": turns}


def turn_rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    """A line for each turn, over all conversations."""
    rows = []
    for number_of in sorted({each["turn"] for each in report["turns"]}):
        here = [each for each in report["turns"] if each["turn"] == number_of]
        held = [each["model"] for each in here if each["model"] is not None]
        parts = ["1 answer" if len(held) == 1 else f"{len(held)} answers"]
        if loops := sum(each["repetition"] is not None for each in held):
            parts.append(f"{loops} loop")
        if len(here) > len(held):
            parts.append(f"no room for {len(here) - len(held)}")
        found = [each["kl_mean"] for each in here if each["kl_mean"] is not None]
        if found:
            agreed = [each["top1_agreement"] for each in here if each["kl_mean"] is not None]
            parts.append(f"{sum(bool(each['same_answer']) for each in here)} as the reference")
            parts.append(f"KL {math.fsum(found) / len(found):.3g}")
            parts.append(f"same token {math.fsum(agreed) / len(agreed):.1%}")
        rows.append((f"turn {number_of + 1}", ", ".join(parts)))
    return rows


def _by_place(turns: list[Turn]) -> dict[tuple[int, int], Turn]:
    return {(turn.conversation, turn.turn): turn for turn in turns}


def _answer(turn: Turn | None) -> dict[str, Any] | None:
    """An answer without its text; None where the conversation had ended."""
    if turn is None:
        return None
    found = first_repetition(turn.answer)
    return {
        "prompt_tokens": len(turn.prompt),
        "tokens": len(turn.answer),
        "error": turn.error,
        "repetition": None if found is None else asdict(found),
    }
