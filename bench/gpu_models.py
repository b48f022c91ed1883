"""Tokens a second of whole models of random int4 weights, with graphs and without, and what the
contract costs.

`python -m bench.gpu_models NAME ATOMS graphs|eager BATCHES` runs one, as `isobit bench throughput
--load-format dummy --device cuda` does, and prints a line of JSON for each batch.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isobit.runtime.engine.engine import Engine
from isobit.runtime.ranks.launcher import LocalLauncher
from isobit.runtime.scheduler.kv_pages import pages_for
from isobit.runtime.settings.engine import EngineSettings, LoadSettings
from isobit.runtime.tasks.throughput import Workload, measure
from isobit.shard.plan.plan import PlanSettings

from .gpu_children import streamed

BATCHES = (1, 16, 64)
PROMPT, NEW, ROUNDS = 128, 32, 1
LAYERS = "num_hidden_layers"
COMMON = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "vocab_size": 152064,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
SHAPES: dict[str, dict[str, int]] = {
    "7B": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        LAYERS: 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
    "14B": {
        "hidden_size": 5120,
        "intermediate_size": 13824,
        LAYERS: 48,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
    },
    "32B": {
        "hidden_size": 5120,
        "intermediate_size": 27648,
        LAYERS: 64,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
    },
}
"""Qwen2.5's shapes."""


@dataclass(frozen=True)
class Run:
    """One model, loaded once. `atoms` 1 is a plain loop: each product one chain of additions."""

    shape: str
    atoms: int = 8
    eager: bool = False

    @property
    def name(self) -> str:
        how = "eager" if self.eager else "graphs"
        return f"{self.shape}, {how}" + ("" if self.atoms > 1 else ", plain loop")


RUNS = (
    Run("14B"),
    Run("14B", atoms=1),
    Run("7B"),
    Run("14B", eager=True),
    Run("32B"),
    Run("7B", eager=True),
    Run("32B", eager=True),
)
"""What is asked of the card first comes first: time may not suffice for the last."""


def write_config(shape: str, folder: Path) -> None:
    """The config.json of a model without weights."""
    (folder / "config.json").write_text(json.dumps({**COMMON, **SHAPES[shape]}))


def settings(run: Run, batches: Sequence[int], device: str = "cuda") -> EngineSettings:
    """How a model is loaded and run."""
    return EngineSettings(
        plan=PlanSettings(degree=1, atoms=run.atoms),
        load=LoadSettings(format="dummy", quantization="int4", group_size=128),
        device=device,
        enforce_eager=run.eager,
        kv_pages=max(batches) * pages_for(PROMPT + NEW),
    )


def measured(run: Run, seconds: float, on_row: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Run one model in processes of its own; what was measured when time was up is kept."""
    command = ["-m", "bench.gpu_models", run.shape, str(run.atoms)]
    command += ["eager" if run.eager else "graphs", ",".join(map(str, BATCHES))]
    rows: list[dict[str, Any]] = []

    def take(row: dict[str, Any]) -> None:
        rows.append(row)
        on_row(row)

    # Ranks end with their driver, however it ends.
    error = streamed(command, seconds, take)
    return {"run": run.name, "rows": rows, "error": error}


def contract_cost(models: Sequence[dict[str, Any]], shape: str = "14B") -> dict[int, float]:
    """By batch: the time of a decode step over that of the plain loop, less one."""
    steps = {
        found["run"]: {row["batch"]: row["decode_ms_per_step"] for row in found["rows"]}
        for found in models
    }
    ours, plain = (steps.get(Run(shape, atoms=atoms).name, {}) for atoms in (8, 1))
    return {batch: ours[batch] / plain[batch] - 1 for batch in ours if batch in plain}


def main(arguments: Sequence[str]) -> None:
    run = Run(arguments[0], atoms=int(arguments[1]), eager=arguments[2] == "eager")
    batches = [int(batch) for batch in arguments[3].split(",")]
    with tempfile.TemporaryDirectory() as folder:
        write_config(run.shape, Path(folder))
        with Engine(Path(folder), settings(run, batches), LocalLauncher()) as engine:
            for batch in batches:
                workload = Workload(
                    batch_size=batch, prompt_tokens=PROMPT, new_tokens=NEW, rounds=ROUNDS
                )
                found = measure(engine, workload)
                row = {
                    "batch": batch,
                    "decode_ms_per_step": found.decode_ms_per_step,
                    "tokens_per_s": found.decode_tokens_per_s,
                    "prefill_tokens_per_s": found.prefill_tokens_per_s,
                    "weights_bytes": found.weights_bytes,
                    "load_s": engine.load_s,
                }
                sys.stdout.write(json.dumps(row) + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
