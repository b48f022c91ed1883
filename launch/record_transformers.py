"""A trace of a transformers model, at the sites that isobit has, for `isobit compare`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from isobit.errors import InputError

from ..runtime.scheduler.batch import StepRows
from ..runtime.settings.trace import TraceSettings, check_trace_settings
from ..runtime.trace.folder import new_trace, write_index
from ..runtime.trace.index import TracedSite, TraceIndex, shape_of
from ..runtime.trace.tracer import Tracer
from ..shard.model.spec import ModelSpec, spec_from_config

ATTENTION = "isobit_trace"
Record = Callable[[str, torch.Tensor], None]


def record_transformers(
    model: Any,
    prompts: Sequence[list[int]],
    out: Path,
    *,
    records: tuple[str, ...] = ("digest", "statistics", "values"),
    sites: tuple[str, ...] = ("*",),
) -> Path:
    """Run token ids through a transformers model and write a trace of it as the folder `out`.

    `model` is a LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM or Qwen3ForCausalLM on the
    CPU, in any dtype; it is left as it was. Every row of every prompt is recorded, those of the
    final norm and the logits included, so that a generated text is compared by giving the prompt
    and the answer together. A model whose weights are quantized needs the library that
    transformers runs them with. Raises InputError E-MODEL-ARCH, E-TRACE-SETTINGS, E-OUT-EXISTS,
    E-OUT-PARENT, E-TRACE-DISK.
    """
    spec = spec_from_config(json.loads(model.config.to_json_string(use_diff=False)), None)
    names = _sites(spec)
    with new_trace(out) as folder:
        settings = TraceSettings(
            records=records, sites=sites, folder=str(folder) if "values" in records else None
        )
        check_trace_settings(settings, list(names), 1)
        tracer = Tracer(settings)
        traced, steps = [], []
        with torch.no_grad(), _Hooks(model, spec, tracer):
            for number, ids in enumerate(prompts):
                rows = list(range(len(ids)))
                tracer.begin_step(number, rows, rows)
                model(torch.tensor([ids], device=model.device), use_cache=False)
                traced.append([tracer.take()])
                steps.append(
                    StepRows(tokens=ids, positions=rows, owner=[number] * len(ids), sampled=rows)
                )
        tracer.close()
        seen = {record.site for (ranks,) in traced for record in ranks}
        index = TraceIndex(
            source="transformers",
            model=str(model.config.name_or_path),
            shape=shape_of(spec),
            dtype=str(model.dtype).removeprefix("torch."),
            degree=1,
            plan=None,
            plan_hash="",
            all_reduce="none",
            invariant=False,
            software={"transformers": version("transformers"), "torch": torch.__version__},
            prompts=[len(ids) for ids in prompts],
            tokens=[list(ids) for ids in prompts],
            errors=[None] * len(prompts),
            settings=TraceSettings(records=records, sites=sites),
            sites=[
                TracedSite(name=name, width=width, sampled=name in ("norm.out", "logits"))
                for name, width in names.items()
                if name in seen
            ],
            steps=steps,
            records=traced,
        )
        write_index(folder, index)
    return out


def load_transformers(folder: Path, dtype: torch.dtype) -> Any:
    """The model in a folder as transformers loads it; raises InputError E-TRACE-TRANSFORMERS."""
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, trust_remote_code=False
        ).eval()
    except (OSError, ValueError, ImportError, RuntimeError, KeyError) as error:
        raise InputError(
            "E-TRACE-TRANSFORMERS",
            f"{folder}: transformers cannot load it ({str(error).splitlines()[0]}). Quantized "
            "weights need the library that transformers runs them with; the model that they were "
            "made from needs none",
        ) from error


def _sites(spec: ModelSpec) -> dict[str, int]:
    """Site names in forward order, with their widths."""
    hidden, wide = spec.hidden_size, spec.intermediate_size
    queries, keys = spec.heads * spec.head_size, spec.kv_heads * spec.head_size
    found = {"embed_tokens.out": hidden}
    for layer in range(spec.layers):
        layer_sites = {
            "input_layernorm.out": hidden,
            "self_attn.q_proj.out": queries,
            "self_attn.k_proj.out": keys,
            "self_attn.v_proj.out": keys,
            "self_attn.q_rope.out": queries,
            "self_attn.k_rope.out": keys,
            "self_attn.o_proj.in": queries,
            "self_attn.o_proj.out": hidden,
            "self_attn.residual": hidden,
            "post_attention_layernorm.out": hidden,
            "mlp.gate_proj.out": wide,
            "mlp.up_proj.out": wide,
            "mlp.down_proj.in": wide,
            "mlp.down_proj.out": hidden,
            "mlp.residual": hidden,
        }
        found |= {f"layers.{layer}.{name}": width for name, width in layer_sites.items()}
    return found | {"norm.out": hidden, "logits": spec.vocab_size}


class _Hooks:
    """Forward hooks on the modules of a model for as long as the block lasts."""

    def __init__(self, model: Any, spec: ModelSpec, tracer: Tracer) -> None:
        self._model, self._spec, self._tracer = model, spec, tracer
        self._handles: list[Any] = []
        self._attention = model.config._attn_implementation

    def __enter__(self) -> _Hooks:
        model = self._model
        self._out("embed_tokens.out", model.model.embed_tokens)
        for number, layer in enumerate(model.model.layers):
            at = f"layers.{number}."
            attention, mlp = layer.self_attn, layer.mlp
            self._out(at + "input_layernorm.out", layer.input_layernorm)
            for name in ("q_proj", "k_proj", "v_proj"):
                self._out(f"{at}self_attn.{name}.out", getattr(attention, name))
            self._in(at + "self_attn.o_proj.in", attention.o_proj)
            self._out(at + "self_attn.o_proj.out", attention.o_proj)
            self._in(at + "self_attn.residual", layer.post_attention_layernorm)
            self._out(at + "post_attention_layernorm.out", layer.post_attention_layernorm)
            self._out(at + "mlp.gate_proj.out", mlp.gate_proj)
            self._out(at + "mlp.up_proj.out", mlp.up_proj)
            self._in(at + "mlp.down_proj.in", mlp.down_proj)
            self._out(at + "mlp.down_proj.out", mlp.down_proj)
            self._out(at + "mlp.residual", layer)
        self._out("norm.out", model.model.norm)
        self._out("logits", model.lm_head)
        self._watch_attention()
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._model.set_attn_implementation(self._attention)

    def _record(self, site: str, values: torch.Tensor) -> None:
        """Record values [1, T, N], or of the heads [1, H, T, D]."""
        if values.dim() == 4:
            values = values.transpose(1, 2).flatten(2)
        if self._tracer.wants(site):
            self._tracer.whole(site, values[0].contiguous())

    def _out(self, site: str, module: torch.nn.Module) -> None:
        def hook(_module: object, _inputs: object, output: Any) -> None:
            self._record(site, output[0] if isinstance(output, tuple) else output)

        self._handles.append(module.register_forward_hook(hook))

    def _in(self, site: str, module: torch.nn.Module) -> None:
        def hook(_module: object, inputs: tuple[torch.Tensor, ...]) -> None:
            self._record(site, inputs[0])

        self._handles.append(module.register_forward_pre_hook(hook))

    def _watch_attention(self) -> None:
        """Queries and keys with their positions exist only as arguments of the attention."""
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.masking_utils import sdpa_mask
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        right = ALL_ATTENTION_FUNCTIONS["sdpa"]

        def attention(module: Any, q: torch.Tensor, k: torch.Tensor, *rest: Any, **more: Any):
            at = f"layers.{module.layer_idx}.self_attn."
            self._record(at + "q_rope.out", q)
            self._record(at + "k_rope.out", k)
            return right(module, q, k, *rest, **more)

        AttentionInterface.register(ATTENTION, attention)
        AttentionMaskInterface.register(ATTENTION, sdpa_mask)
        self._model.set_attn_implementation(ATTENTION)
