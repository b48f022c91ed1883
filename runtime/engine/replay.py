"""A file with all that is needed to run into the same divergence again."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isobit.errors import InputError

from ...shard.plan.plan import ShardPlan
from ..scheduler.batch import Request

FORMAT = "isobit-replay-1"
MOST_BYTES = 1 << 30
LAYOUTS = ("pad", "ragged")


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
    max_model_len: int,
) -> Path:
    """Write a replay file, in one piece, and return its path. Raises OSError."""
    content = {
        "format": FORMAT,
        "reason": reason,
        "model": str(model.absolute()),
        "plan": plan.to_dict(),
        "plan_hash": plan.content_hash(),
        "max_model_len": max_model_len,
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


@dataclass(frozen=True, kw_only=True)
class Replay:
    """A case to run again: prompts, tokens to generate until the step that failed, and the plan.

    `max_model_len` is None in files of versions that did not write it.
    """

    prompts: list[list[int]]
    max_tokens: int
    plan: ShardPlan
    max_model_len: int | None


def read_replay(path: Path) -> Replay:
    """Read a replay file.

    Raises InputError E-REPLAY when the file is not one.
    """
    content = read_json(path)
    try:
        if content["format"] != FORMAT:
            raise InputError("E-REPLAY", f"{path}: format {content['format']!r:.40}, not {FORMAT}")
        prompts = [_ids(request["prompt"]) for request in content["requests"]]
        emitted = max(len(_ids(request["emitted"])) for request in content["requests"])
        plan = ShardPlan.from_dict(content["plan"])
        if not all(type(n) is int for n in (plan.degree, plan.atoms)) or plan.layout not in LAYOUTS:
            raise TypeError("no tp, atoms or layout of a plan")
        length = content.get("max_model_len")
        if length is not None and type(length) is not int:
            raise TypeError("max_model_len is no integer")
        return Replay(prompts=prompts, max_tokens=emitted + 1, plan=plan, max_model_len=length)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _no_replay(path, error) from error


def read_json(path: Path) -> Any:
    """The contents of a file that `keep` wrote. Raises InputError E-REPLAY for anything else."""
    try:
        # A pipe would keep whoever opens it waiting for a writer.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise _no_replay(path, "not a regular file")
            if status.st_size > MOST_BYTES:
                raise _no_replay(path, f"{status.st_size} bytes, more than any has")
            return json.loads(file.read(), parse_constant=_refuse_constant)
    except (OSError, ValueError) as error:
        raise _no_replay(path, error) from error
    except RecursionError as error:
        raise _no_replay(path, "lists within lists without end") from error


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _ids(values: Any) -> list[int]:
    if not isinstance(values, list) or not all(type(each) is int for each in values):
        raise TypeError("token ids are not integers")
    return values


def _no_replay(path: Path, reason: object) -> InputError:
    return InputError("E-REPLAY", f"{path} is no replay file: {reason}")
