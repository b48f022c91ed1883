"""`isobit generate`: text from the terminal, streaming."""

from __future__ import annotations

import dataclasses
import statistics
import sys
from typing import Annotated, Any

import typer

from isobit.errors import InputError, RankFault

from ...runtime.engine.engine import Batch, Engine, prepare
from ...runtime.scheduler.batch import check_requests, pages_for
from ...runtime.settings.engine import EngineSettings, SamplingSettings, check_sampling
from ...shard.plan.plan import PlanSettings
from ..models import model_folder
from ..placing import chosen_device
from ..printable import human_bytes
from ..tokenizer.stop_tokens import tokenizer_stop_ids
from ..tokenizer.tokenizer import Tokenizer
from .options import (
    AllReduce,
    Atoms,
    CardShare,
    Check,
    Degree,
    DeviceOption,
    DisableCustomAllReduce,
    Dtype,
    EnforceEager,
    GroupSize,
    Json,
    LauncherName,
    LauncherOption,
    Layout,
    LayoutName,
    LoadFormat,
    LoadFormatOption,
    MaxModelLen,
    Model,
    ModelFilesName,
    ModelFilesOption,
    Quantization,
    RayAddress,
    Threads,
    VerifyLoad,
    all_reduce_mode,
    launchers,
    load_settings,
    parse_ids,
)
from .output import errors, print_json, spinner


def generate(
    model: Model,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="The text to go on from.")
    ] = None,
    prompt_ids: Annotated[
        str | None, typer.Option(help="Token ids instead of text: 1,2,3. No tokenizer is needed.")
    ] = None,
    chat: Annotated[
        bool, typer.Option(help="Put the prompt into the model's chat template.")
    ] = False,
    degree: Degree = 1,
    max_tokens: Annotated[int, typer.Option(help="Most tokens to generate.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Keep the k likeliest tokens; 0 keeps all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Keep the likeliest tokens up to this mass.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the draws, with --temperature.")] = 0,
    ignore_eos: Annotated[bool, typer.Option(help="Go on after a stop token.")] = False,
    load_format: LoadFormatOption = LoadFormat.AUTO,
    quantization: Quantization = None,
    group_size: GroupSize = None,
    layout: Layout = LayoutName.PAD,
    atoms: Atoms = 8,
    dtype: Dtype = "auto",
    max_model_len: MaxModelLen = None,
    device: DeviceOption = "auto",
    enforce_eager: EnforceEager = False,
    gpu_memory_utilization: CardShare = None,
    threads: Threads = 0,
    verify_load: VerifyLoad = False,
    check: Check = "step",
    all_reduce: AllReduce = "auto",
    disable_custom_all_reduce: DisableCustomAllReduce = False,
    launcher: LauncherOption = LauncherName.AUTO,
    ray_address: RayAddress = None,
    model_files: ModelFilesOption = ModelFilesName.AUTO,
    as_json: Json = False,
) -> None:
    """Generate text with a model cut over a number of ranks."""
    if (prompt is None) == (prompt_ids is None):
        raise InputError("E-USAGE", "give either --prompt TEXT or --prompt-ids 1,2,3")
    if chat and prompt is None:
        raise InputError("E-USAGE", "--chat needs --prompt")
    load = load_settings(load_format, quantization, group_size, verify_load)
    if prompt is not None and load_format is LoadFormat.DUMMY:
        raise InputError(
            "E-USAGE", "--prompt: the answer of dummy weights is no text; give --prompt-ids 1,2,3"
        )
    sampling = SamplingSettings(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        ignore_eos=ignore_eos,
    )
    check_sampling(sampling)
    if temperature == 0 and (top_k or top_p != 1 or seed):
        raise InputError(
            "E-USAGE", "--top-k, --top-p and --seed need a --temperature above 0: 0 is greedy"
        )
    folder = model_folder(model, weights=load_format is LoadFormat.AUTO)
    plan = PlanSettings(degree=degree, atoms=atoms, layout=layout.value)
    settings = EngineSettings(
        plan=plan,
        load=load,
        dtype=dtype,
        max_model_len=max_model_len,
        threads=threads,
        device=chosen_device(device, launcher, ray_address, degree),
        enforce_eager=enforce_eager,
        gpu_memory_utilization=gpu_memory_utilization,
        verify_load=verify_load,
        check=check,
        all_reduce=all_reduce_mode(all_reduce, disable_custom_all_reduce),
        model_files=model_files.value,
    )
    spec, _ = prepare(folder, settings)
    text = Tokenizer(folder) if prompt is not None else None
    if text is not None:
        stop_ids = tokenizer_stop_ids(spec, text)
        sampling = dataclasses.replace(sampling, stop_ids=stop_ids)
    if prompt_ids is not None:
        ids = parse_ids(prompt_ids)
    else:
        assert text is not None and prompt is not None
        ids = text.encode_chat(prompt) if chat else text.encode(prompt)
    check_requests(spec, [ids], [sampling])
    settings = dataclasses.replace(settings, kv_pages=pages_for(len(ids) + max_tokens))
    stream = text.stream(ids) if text is not None else None

    def show(_: int, token: int) -> None:
        if not as_json:
            sys.stdout.write(f"{token} " if stream is None else stream.add([token]))
            sys.stdout.flush()

    with launchers(launcher, ray_address, degree, threads, settings.device) as new_launcher:
        with spinner(f"starting {degree} ranks and loading {folder.name}", as_json):
            engine = Engine(folder, settings, new_launcher())
        with engine:
            if not as_json and prompt is not None and not chat:
                sys.stdout.write(prompt)
            batch = engine.generate([ids], [sampling], show)
            if stream is not None and not as_json:
                sys.stdout.write(stream.finish())
            result = _report(engine, batch, ids, text)
    if (error := batch.completions[0].error) is not None:
        raise RankFault("E-NUM-LOGITS", error)
    if as_json:
        print_json(result)
    else:
        sys.stdout.write("\n")
        sys.stdout.flush()
        _print_summary(result, degree)


def _report(
    engine: Engine, batch: Batch, prompt: list[int], text: Tokenizer | None
) -> dict[str, Any]:
    completion = batch.completions[0]
    decode = statistics.median(batch.decode_s) * 1000 if batch.decode_s else None
    return {
        "text": None if text is None else text.decode(completion.tokens, prompt),
        "tokens": completion.tokens,
        "logits_digest": completion.logits_digest,
        "finish_reason": completion.finish_reason,
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


def _print_summary(result: dict[str, Any], degree: int) -> None:
    timing, count = result["timing"], len(result["tokens"])
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
        + f"logits digest {result['logits_digest']}",
        style="dim",
    )
