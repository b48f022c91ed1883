"""A file with all that is needed to run into the same divergence again."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..kernels.errors import InputError
from ..shard.plan import ShardPlan
from .batch import Request

FORMAT = "isobit-replay-1"


def replay_folder() -> Path:
    """Where replay files go: $XDG_STATE_HOME/isobit/replays, or ~/.local/state/isobit/replays."""
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "isobit" / "replays"


def keep(kind: str, content: Mapping[str, Any]) -> Path:
    """Write a file of the replay folder, in one piece, named by time, process and `kind`.

    Returns its path. Raises OSError.
    """
    folder = replay_folder()
    folder.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".replay-", suffix=".json")
    with os.fdopen(descriptor, "w") as file:
        json.dump(content, file, indent=1)
    path = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{kind}.json"
    Path(temporary).replace(path)
    return path


def write_replay(
    model: Path,
    plan: ShardPlan,
    requests: Sequence[Request],
    step: int,
    digests: Mapping[int, Mapping[str, Any]],
    reason: str,
) -> Path:
    """Write a replay file, in one piece, and return its path. Raises OSError."""
    content = {
        "format": FORMAT,
        "reason": reason,
        "model": str(model.absolute()),
        "plan": plan.to_dict(),
        "plan_hash": plan.content_hash(),
        "step": step,
        "requests": [
            {
                "prompt": request.prompt,
                "emitted": request.emitted,
                "sampling": dataclasses.asdict(request.sampling),
            }
            for request in requests
        ],
        "digests": {
            str(rank): {key: answer[key] for key in ("hidden_digest", "logits_digests")}
            for rank, answer in digests.items()
        },
    }
    return keep(f"step-{step}", content)


def read_replay(path: Path) -> tuple[list[list[int]], int, ShardPlan]:
    """Prompts, the tokens to generate until the step that failed, and the plan.

    Raises InputError E-REPLAY when the file is not one.
    """
    try:
        content = json.loads(path.read_text())
        if content["format"] != FORMAT:
            raise InputError("E-REPLAY", f"{path}: format {content['format']!r}, not {FORMAT}")
        prompts = [list(map(int, request["prompt"])) for request in content["requests"]]
        emitted = max(len(request["emitted"]) for request in content["requests"])
        return prompts, emitted + 1, ShardPlan.from_dict(content["plan"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError("E-REPLAY", f"{path} is no replay file: {error}") from error
