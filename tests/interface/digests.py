"""Bits of answers of twelve models, both layouts, tensor-parallel sizes 1 to 4, as recorded.

    python -m tests.interface.digests [--write]

Greedy and sampled answers under one forced instruction set, so that a record holds on every machine
that has it. Without --write: what differs from the record, and exit status 1 if anything does.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isobit.kernels.native import ENVIRONMENT
from isobit.runtime.engine.engine import Engine
from isobit.runtime.settings.engine import EngineSettings, SamplingSettings
from isobit.runtime.worker.forked_launcher import ForkedLauncher
from isobit.shard.plan.plan import PlanSettings

from ..support import DENSE, GOLDEN, INT4

ISA = "avx2"
RECORD = Path(__file__).with_name("digests.json")
MODELS = (
    DENSE,
    INT4,
    *(
        GOLDEN / name
        for name in (
            "gptq-v1",
            "gptq-v2-asymmetric",
            "gptq-act-order",
            "gptq-int8",
            "awq",
            "ct-int4-asymmetric",
            "ct-int8-channel",
            "ct-w8a8-dynamic",
            "bnb-nf4",
            "bnb-int8",
        )
    ),
)
PROMPTS = ([1, 5, 9, 2, 7, 3, 8], [4, 4, 11])
NEW = 12
GREEDY = SamplingSettings(max_tokens=NEW, ignore_eos=True)
SAMPLED = SamplingSettings(max_tokens=NEW, ignore_eos=True, temperature=0.7, seed=4)


def runs() -> Iterator[tuple[str, Path, PlanSettings]]:
    """Every run by name, as "gptq-v1 ragged tp 3"."""
    for model in MODELS:
        for layout in ("pad", "ragged"):
            for degree in range(1, 5):
                name = f"{model.name} {layout} tp {degree}"
                yield name, model, PlanSettings(degree=degree, layout=layout)


def digests(model: Path, plan: PlanSettings) -> dict[str, Any]:
    """Tokens and digests of logits of a greedy and of a sampled batch."""
    with Engine(model, EngineSettings(plan=plan), ForkedLauncher()) as engine:
        found = {}
        for name, sampling in (("greedy", GREEDY), ("sampled", SAMPLED)):
            batch = engine.generate([list(p) for p in PROMPTS], [sampling] * len(PROMPTS))
            found[name] = [[c.logits_digest, *c.tokens] for c in batch.completions]
        return found


def main() -> None:
    os.environ[ENVIRONMENT] = ISA
    found = {}
    for name, model, plan in runs():
        found[name] = digests(model, plan)
        sys.stderr.write(f"{name}\n")
    if "--write" in sys.argv[1:]:
        lines = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in found.items())
        RECORD.write_text("{\n" + lines + "\n}\n")
        return
    recorded = json.loads(RECORD.read_text())
    differing = [name for name in recorded | found if recorded.get(name) != found.get(name)]
    sys.stdout.write("".join(f"differs: {name}\n" for name in differing))
    sys.stdout.write(f"{len(found) - len(differing)} of {len(recorded)} as recorded\n")
    sys.exit(bool(differing))


if __name__ == "__main__":
    main()
