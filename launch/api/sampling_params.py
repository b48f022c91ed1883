"""How the tokens of a request are chosen, with the names and defaults of vLLM's SamplingParams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...runtime.settings.engine import SamplingSettings, check_sampling
from .known_names import refuse_others

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (None, 1),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "stop": (None, [], ()),
    "bad_words": (None, [], ()),
    "include_stop_str_in_output": (False,),
    "min_tokens": (0,),
    "logprobs": (None,),
    "prompt_logprobs": (None,),
    "logit_bias": (None, {}),
    "allowed_token_ids": (None,),
    "detokenize": (True,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "logits_processors": (None, [], ()),
    "truncate_prompt_tokens": (None,),
    "structured_outputs": (None,),
    "guided_decoding": (None,),
    "extra_args": (None, {}),
}
"""Arguments of vLLM's that are not built, and the values of each that change nothing."""
MOST_SEED = 2**63


class SamplingParams:
    """How the tokens of a request are chosen. Draws of a seed are the same at every
    tensor-parallel size, in any batch.

    `temperature` 0 is greedy; `top_k` 0 or -1 keeps all tokens. `max_tokens` None goes on to the
    longest sequence of the model. `seed` None: each request has one of its own, which follows from
    the seed of the LLM and the request's number. Raises InputError E-SAMPLING for values out of
    range, E-ARGUMENT for unknown names, NotSupportedError E-ARGUMENT for what isobit lacks.
    """

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        max_tokens: int | None = 16,
        seed: int | None = None,
        ignore_eos: bool = False,
        stop_token_ids: Sequence[int] | None = None,
        **others: Any,
    ) -> None:
        refuse_others("SamplingParams", SamplingParams.__init__, others, NEUTRAL)
        self.temperature, self.top_p, self.top_k = temperature, top_p, max(top_k, 0)
        self.max_tokens, self.seed, self.ignore_eos = max_tokens, seed, ignore_eos
        self.stop_token_ids = tuple(stop_token_ids or ())
        check_sampling(self.settings(room=1, seed=0))

    def __repr__(self) -> str:
        return (
            f"SamplingParams({', '.join(f'{name}={each!r}' for name, each in vars(self).items())})"
        )

    def settings(self, *, room: int, seed: int, stop_ids: Sequence[int] = ()) -> SamplingSettings:
        """For an engine: `room` tokens where max_tokens is None, `seed` where there is none."""
        greedy = self.temperature == 0
        return SamplingSettings(
            max_tokens=room if self.max_tokens is None else self.max_tokens,
            temperature=self.temperature,
            top_k=0 if greedy else self.top_k,
            top_p=1.0 if greedy else self.top_p,
            seed=(seed if self.seed is None else self.seed) % MOST_SEED,
            ignore_eos=self.ignore_eos,
            stop_ids=tuple({*self.stop_token_ids, *stop_ids}),
        )
