"""`isobit generate`: text from the terminal, streaming."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from isobit.errors import InputError, RankFault

from ...runtime.engine.engine import Batch, Engine
from ...runtime.engine.preflight import prepare
from ...runtime.engine.results import Completion
from ...runtime.scheduler.batch import check_requests
from ...runtime.scheduler.kv_pages import with_pages_for
from ..models import model_folder
from ..printable import human_bytes
from ..tokenizer.stop_tokens import tokenizer_stop_ids
from ..tokenizer.tokenizer import Tokenizer
from .jsonl import STANDARD_OUTPUT, check_lines, write_lines
from .options.common import Degree, Json, Model
from .options.engine import EngineOptions
from .options.grouped import grouped
from .options.panels import OUTPUT, PROMPTS
from .options.prompts import Prompt, PromptOptions, ids_of
from .options.sampling import SamplingOptions
from .output import console, errors, print_json, spinner


@grouped
def generate(
    model: Model,
    prompts: PromptOptions,
    sampling: SamplingOptions,
    *,
    chat: Annotated[
        bool,
        typer.Option(
            rich_help_panel=PROMPTS, help="Put each prompt into the model's chat template."
        ),
    ] = False,
    degree: Degree = 1,
    engine: EngineOptions,
    as_json: Json = False,
    jsonl: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|-", rich_help_panel=OUTPUT, help="Write one JSON object for each prompt."
        ),
    ] = None,
) -> None:
    """Generate text with a model cut over a number of ranks."""
    if not prompts.given:
        raise InputError("E-USAGE", "give --prompt TEXT or --prompt-ids 1,2,3")
    if chat and not prompts.prompt:
        raise InputError("E-USAGE", "--chat needs --prompt")
    prompts.check(engine.dummy)
    check_lines(jsonl, as_json)
    sampling.settings()
    settings = engine.settings(degree)
    folder = model_folder(model, weights=not engine.dummy)
    spec, _ = prepare(folder, settings)
    text = Tokenizer(folder) if prompts.prompt else None
    asked = prompts.read(lambda: text or Tokenizer(folder), chat)
    each = sampling.settings(() if text is None else tokenizer_stop_ids(spec, text))
    check_requests(spec, ids_of(asked), [each] * len(asked))
    sampling.warn_of_unused()
    settings = with_pages_for(settings, [len(ids) + each.max_tokens for ids in ids_of(asked)])
    silent = as_json or jsonl == STANDARD_OUTPUT
    stream = text.stream(asked[0].ids) if asked[0].text is not None and text else None

    def show(_: int, token: int) -> None:
        if not silent and len(asked) == 1:
            sys.stdout.write(f"{token} " if stream is None else stream.add([token]))
            sys.stdout.flush()

    with engine.launchers(degree, settings.device) as new_launcher:
        with spinner(f"starting {degree} ranks and loading {folder.name}", silent):
            started = Engine(folder, settings, new_launcher())
        with started:
            if not silent and len(asked) == 1 and asked[0].text is not None and not chat:
                sys.stdout.write(asked[0].text)
            batch = started.generate(ids_of(asked), [each] * len(asked), show)
            if stream is not None and not silent and len(asked) == 1:
                sys.stdout.write(stream.finish())
            found = [
                _completion(number, prompt, completion, text)
                for number, (prompt, completion) in enumerate(
                    zip(asked, batch.completions, strict=True)
                )
            ]
            result = _report(started, batch, found)
    _refuse_broken(batch)
    if jsonl is not None:
        write_lines(jsonl, found)
    if as_json:
        print_json(result)
    elif not silent:
        _print(result, asked, degree, chat)


def _refuse_broken(batch: Batch) -> None:
    """Raise RankFault E-NUM-LOGITS naming every request whose logits were not finite."""
    broken = [(i, each.error) for i, each in enumerate(batch.completions) if each.error is not None]
    if not broken:
        return
    alone = len(batch.completions) == 1
    raise RankFault(
        "E-NUM-LOGITS",
        "\n".join(str(error) if alone else f"prompt {i}: {error}" for i, error in broken),
    )


def _completion(
    index: int, prompt: Prompt, completion: Completion, text: Tokenizer | None
) -> dict[str, Any]:
    told = None
    if prompt.text is not None:
        assert text is not None
        told = text.decode(completion.tokens, prompt.ids)
    return {
        "index": index,
        "prompt": prompt.text,
        "prompt_tokens": len(prompt.ids),
        "text": told,
        "tokens": completion.tokens,
        "logits_digest": completion.logits_digest,
        "finish_reason": completion.finish_reason,
    }


OF_ONE = ("text", "tokens", "logits_digest", "finish_reason")
"""What stands beside `completions` where there is only one."""


def _report(engine: Engine, batch: Batch, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    decode = statistics.median(batch.decode_s) * 1000 if batch.decode_s else None
    alone = {name: found[0][name] for name in OF_ONE} if len(found) == 1 else {}
    return alone | {
        "completions": found,
        # A checked run whose ranks disagree ends with E-RANK-DIVERGED and never comes here.
        "digests_agree": None if engine.settings.check == "off" else True,
        "plan": engine.plan.content_hash(),
        "max_model_len": engine.spec.max_positions,
        "rotary": engine.spec.rotary.report(),
        "device": engine.settings.device,
        "kernels": engine.ranks[0]["kernels"],
        "all_reduce": engine.ranks[0]["all_reduce"],
        "timing": {
            "load_s": round(engine.load_s, 3),
            "prefill_s": round(batch.prefill_s, 4),
            "decode_ms_per_step": None if decode is None else round(decode, 3),
        },
        "ranks": [
            {"rank": r["rank"], "bytes_read": r["bytes_read"], "node": r["node"]}
            for r in engine.ranks
        ],
    }


def _print(result: dict[str, Any], asked: Sequence[Prompt], degree: int, chat: bool) -> None:
    """The answers of several prompts, which do not stream, and the line under them all."""
    found = result["completions"]
    if len(found) == 1:
        sys.stdout.write("\n")
    else:
        for number, (prompt, each) in enumerate(zip(asked, found, strict=True), 1):
            console.rule(f"{number} of {len(found)}", style="dim", align="left")
            before = "" if chat or prompt.text is None else prompt.text
            shown = " ".join(map(str, each["tokens"])) if each["text"] is None else each["text"]
            sys.stdout.write(f"{before}{shown}\n")
    sys.stdout.flush()
    _print_summary(result, degree)


def _print_summary(result: dict[str, Any], degree: int) -> None:
    timing, found = result["timing"], result["completions"]
    count = sum(len(each["tokens"]) for each in found)
    agree = "1 rank" if degree == 1 else f"{degree} ranks agreed on every step"
    if result["digests_agree"] is None:
        agree = f"{degree} ranks, not compared (--check off)"
    read = ", ".join(human_bytes(rank["bytes_read"]) for rank in result["ranks"])
    per_token = timing["decode_ms_per_step"]
    errors.print()
    errors.print(
        f"[green]{agree}[/] · {count} tokens · loaded in {timing['load_s']:.1f} s, "
        f"first token {timing['prefill_s'] * 1000:.0f} ms"
        + ("" if per_token is None else f", then {per_token:.1f} ms each")
    )
    errors.print(
        f"bytes read per rank: {read} · kernels: {result['kernels']['isa']} · "
        + ("" if degree == 1 else f"all-reduce: {result['all_reduce']['name']} · ")
        + ("" if len(found) > 1 else f"logits digest {found[0]['logits_digest']}"),
        style="dim",
    )
