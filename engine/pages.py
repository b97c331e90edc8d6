"""HTML pages of one look, each from its template; they load nothing from a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from engine.evidence import is_number


def render(template: str, **values: Any) -> str:
    """A page from a template of this folder. Values are text, never markup, unless they are Markup."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": _count, "duration": _duration, "value": _value, "scale": "{:g}".format}
    return environment.get_template(template).render(**values)


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _value(value: float) -> str:
    return f"{value:.4g}" if is_number(value) else "–"


def _duration(seconds: float) -> str:
    """12.3 s, 4 min 5 s, 2 h 7 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"
