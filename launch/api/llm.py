"""A model in this process: `LLM(model, tensor_parallel_size=2).generate(["..."])`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from isobit.errors import InputError, RankFault

from ...runtime.engine.engine import Engine
from ...runtime.engine.results import Completion
from ...runtime.scheduler.batch import check_requests
from ...runtime.settings.engine import EngineSettings, LoadSettings
from ...shard.plan.plan import Layout, PlanSettings
from ..models import model_folder
from ..placing import chosen_device, launcher_name, placed
from ..tokenizer.stop_tokens import tokenizer_stop_ids
from ..tokenizer.tokenizer import Tokenizer
from .known_names import refuse_others, refuse_unbuilt, refuse_unknown
from .kv_pages import batches, with_kv_pages
from .outputs import CompletionOutput, RequestOutput
from .sampling_params import SamplingParams

log = logging.getLogger("isobit.launch")

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tokenizer": (None,),
    "tokenizer_mode": ("auto",),
    "skip_tokenizer_init": (False,),
    "trust_remote_code": (False,),
    "revision": (None,),
    "tokenizer_revision": (None,),
    "pipeline_parallel_size": (1,),
    "data_parallel_size": (1,),
    "enable_prefix_caching": (None, False),
    "enable_lora": (False,),
    "enable_expert_parallel": (False,),
    "kv_cache_dtype": ("auto",),
    "cpu_offload_gb": (0,),
    "swap_space": (0,),
    "max_num_batched_tokens": (None,),
    "speculative_config": (None,),
    "distributed_executor_backend": (None,),
    "hf_overrides": (None, {}),
    "disable_log_stats": (True, False),
}
"""Arguments of vLLM's that are not built, and the values of each that change nothing."""
Prompt = str | Sequence[int] | Mapping[str, Any]
PROMPT_KEYS = {"prompt", "prompt_token_ids"}
SEEDS = 1_000_003
"""Between the seeds of requests of one LLM and of the next, so that no two are the same."""


class LLM:
    """A running model. Use as a context manager, or call `close`; the ranks end with this process
    in any case.

    `tensor_parallel_size` ranks hold `model`, a folder or a Hugging Face id. `max_num_seqs`
    sequences of `max_model_len` tokens have memory on CPUs; more prompts run one batch after
    another. `launcher`, `device`, `threads`, `atoms`, `layout` and `check` are as on the command
    line. A folder whose tokenizer cannot be read answers token ids with token ids, and says so in a
    warning. Raises InputError as `isobit generate` does, E-ARGUMENT for unknown arguments,
    NotSupportedError E-ARGUMENT for arguments of vLLM's that isobit lacks.
    """

    def __init__(
        self,
        model: str,
        *,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        quantization: str | None = None,
        max_model_len: int | None = None,
        max_num_seqs: int = 8,
        gpu_memory_utilization: float | None = None,
        seed: int = 0,
        enforce_eager: bool = False,
        disable_custom_all_reduce: bool = False,
        load_format: str = "auto",
        launcher: str = "auto",
        ray_address: str | None = None,
        device: str = "auto",
        threads: int = 0,
        atoms: int = 8,
        layout: Layout = "pad",
        check: str = "step",
        **others: Any,
    ) -> None:
        refuse_others("LLM", LLM.__init__, others, NEUTRAL)
        name = launcher_name(launcher)
        folder = model_folder(model, weights=load_format != "dummy")
        settings = EngineSettings(
            plan=PlanSettings(degree=tensor_parallel_size, atoms=atoms, layout=layout),
            load=LoadSettings(format=load_format, quantization=quantization),
            dtype=dtype,
            max_model_len=max_model_len,
            threads=threads,
            device=chosen_device(device, name, ray_address, tensor_parallel_size),
            enforce_eager=enforce_eager,
            gpu_memory_utilization=gpu_memory_utilization,
            check=check,
            all_reduce="gather" if disable_custom_all_reduce else "auto",
        )
        if max_num_seqs < 1:
            raise InputError("E-USAGE", f"max_num_seqs {max_num_seqs}: expected at least 1")
        self._seed = seed
        self._max_num_seqs, self._count = max_num_seqs, 0
        self._tokenizer, self._without = _tokenizer(folder)
        settings = with_kv_pages(folder, settings, max_num_seqs)
        with ExitStack() as starting:
            ranks = placed(name, ray_address, tensor_parallel_size, settings.device)
            new_launcher = starting.enter_context(ranks)
            self._engine = starting.enter_context(Engine(folder, settings, new_launcher()))
            self._ends = starting.pop_all()
        texts = self._tokenizer
        self._stop = () if texts is None else tokenizer_stop_ids(self._engine.spec, texts)

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the ranks."""
        self._ends.close()

    def get_tokenizer(self) -> Tokenizer:
        """The model's own tokenizer; raises as Tokenizer does."""
        if self._tokenizer is None:
            assert self._without is not None
            raise self._without
        return self._tokenizer

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = False,
    ) -> list[RequestOutput]:
        """Answer prompts: a text, `{"prompt_token_ids": [...]}`, or a list of such; in their order.

        One SamplingParams serves all prompts, or there is one for each. Raises InputError E-PROMPT,
        E-SAMPLING and as an engine does, RankFault when ranks die or disagree or logits are not
        finite.
        """
        refuse_unbuilt("generate", {"use_tqdm": use_tqdm}, {"use_tqdm": (False,)})
        listed: list[Any] = [prompts] if isinstance(prompts, (str, Mapping)) else list(prompts)
        if listed and all(isinstance(each, int) for each in listed):
            raise InputError("E-PROMPT", 'token ids go into {"prompt_token_ids": [1, 2, 3]}')
        params = sampling_params or SamplingParams()
        each = [params] * len(listed) if isinstance(params, SamplingParams) else list(params)
        if len(each) != len(listed):
            raise InputError(
                "E-SAMPLING", f"{len(each)} sampling_params for {len(listed)} prompts: give as many"
            )
        return self._answered([self._read(prompt) for prompt in listed], each)

    def chat(
        self,
        messages: Sequence[dict[str, str]] | Sequence[Sequence[dict[str, str]]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Answer a conversation, or several, put into the model's chat template.

        Raises as `generate` does, and InputError E-CHAT-TEMPLATE.
        """
        several: Any = [messages] if messages and isinstance(messages[0], Mapping) else messages
        tokenizer = self.get_tokenizer()
        ids = [{"prompt_token_ids": tokenizer.encode_messages(each)} for each in several]
        return self.generate(ids, sampling_params)

    def _read(self, prompt: Prompt) -> tuple[str | None, list[int]]:
        if isinstance(prompt, str):
            return prompt, self.get_tokenizer().encode(prompt)
        if isinstance(prompt, Mapping):
            refuse_unknown("a prompt", set(prompt) - PROMPT_KEYS, PROMPT_KEYS)
            if len(prompt) == 1:
                if "prompt" in prompt:
                    return self._read(str(prompt["prompt"]))
                return None, [int(each) for each in prompt["prompt_token_ids"]]
        raise InputError("E-PROMPT", 'a prompt is a text, or {"prompt_token_ids": [1, 2, 3]}')

    def _answered(
        self, prompts: list[tuple[str | None, list[int]]], params: list[SamplingParams]
    ) -> list[RequestOutput]:
        engine = self._engine
        sampling = []
        for index, ((_, ids), each) in enumerate(zip(prompts, params, strict=True)):
            room = max(1, engine.spec.max_positions - len(ids))
            seed = self._seed * SEEDS + self._count + index
            sampling.append(each.settings(room=room, seed=seed, stop_ids=self._stop))
        check_requests(engine.spec, [ids for _, ids in prompts], sampling)
        found: list[RequestOutput] = []
        ids_of = [ids for _, ids in prompts]
        for batch in batches(ids_of, sampling, engine.kv_pages, self._max_num_seqs):
            part = engine.generate([prompts[i][1] for i in batch], [sampling[i] for i in batch])
            for i, completion in zip(batch, part.completions, strict=True):
                number = str(self._count + i)
                found.append(self._output(number, *prompts[i], completion, sampling[i].seed))
        self._count += len(prompts)
        return found

    def _output(
        self, number: str, prompt: str | None, ids: list[int], completion: Completion, seed: int
    ) -> RequestOutput:
        if completion.error is not None:
            raise RankFault("E-NUM-LOGITS", completion.error)
        texts = self._tokenizer
        answer = CompletionOutput(
            index=0,
            text="" if texts is None else texts.decode(completion.tokens, ids),
            token_ids=completion.tokens,
            finish_reason=completion.finish_reason,
            logits_digest=completion.logits_digest,
            logits_digests=completion.logits_digests,
        )
        return RequestOutput(
            request_id=number,
            prompt=prompt,
            prompt_token_ids=ids,
            outputs=[answer],
            seed=seed,
        )


def _tokenizer(folder: Path) -> tuple[Tokenizer | None, InputError | None]:
    """The tokenizer of a folder, or why there is none: token ids are answered without one."""
    try:
        return Tokenizer(folder, 'give token ids: {"prompt_token_ids": [1, 2, 3]}'), None
    except InputError as error:
        log.warning("answers have no text, only token ids: %s", error.message)
        return None, error
