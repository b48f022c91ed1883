"""Templates of this folder to pages; `base.html.j2` has the skeleton and the styles of all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent, encoding="utf-8"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(template: str, **values: Any) -> str:
    """The page that a template makes of values. Text in them is escaped, Markup is not."""
    return _TEMPLATES.get_template(template).render(**values)
