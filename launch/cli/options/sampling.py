"""How tokens are chosen, on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from ....runtime.settings.engine import SamplingSettings, check_sampling
from ..output import errors
from .panels import SAMPLING


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """The settings of a request, but for the tokens that end it."""

    max_tokens: Annotated[
        int, typer.Option(rich_help_panel=SAMPLING, help="Most tokens to generate.")
    ] = 128
    temperature: Annotated[float, typer.Option(rich_help_panel=SAMPLING, help="0 is greedy.")] = 0.0
    top_k: Annotated[
        int, typer.Option(rich_help_panel=SAMPLING, help="Keep the k likeliest tokens; 0: all.")
    ] = 0
    top_p: Annotated[
        float,
        typer.Option(rich_help_panel=SAMPLING, help="Keep the likeliest tokens up to this mass."),
    ] = 1.0
    seed: Annotated[
        int,
        typer.Option(
            rich_help_panel=SAMPLING,
            help="Seed of the draws, with --temperature: each prompt draws as it would alone.",
        ),
    ] = 0
    ignore_eos: Annotated[
        bool, typer.Option(rich_help_panel=SAMPLING, help="Go on after a stop token.")
    ] = False

    def settings(self, stop_ids: tuple[int, ...] = ()) -> SamplingSettings:
        """The settings of every request; raises InputError E-SAMPLING."""
        sampling = SamplingSettings(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            seed=self.seed,
            ignore_eos=self.ignore_eos,
            stop_ids=stop_ids,
        )
        check_sampling(sampling)
        return sampling

    def warn_of_unused(self) -> None:
        """Say on standard error which options mean nothing to a greedy choice."""
        given = {"--top-k": self.top_k, "--top-p": self.top_p != 1, "--seed": self.seed}
        if self.temperature == 0 and any(given.values()):
            named = ", ".join(name for name, yes in given.items() if yes)
            errors.print(
                f"[yellow]warning[/] {named}: without effect at --temperature 0, which is greedy",
                soft_wrap=True,
            )
