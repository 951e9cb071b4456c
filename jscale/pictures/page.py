"""One HTML page that holds all it needs: no network, no font, no other file."""

import base64
import hashlib
import json
import math
from pathlib import Path
from typing import Any

from jscale.pictures.markup import Markup, element
from jscale.pictures.picture import STYLE

HERE = Path(__file__).parent
SCRIPT = (HERE / "page.js").read_text(encoding="utf-8")


def page(title: str, body: Markup, data: Any = None) -> str:
    """The page. `data`, if any, is put into it as JSON, for its script and for other programs.

    A policy in the page forbids the browser every request, and every script and style but ours.
    """
    style = STYLE + (HERE / "page.css").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; style-src {digest(style)}; script-src {digest(SCRIPT)};"
        " base-uri 'none'; form-action 'none'"
    )
    scripts: list[Markup] = []
    if data is not None:
        scripts.append(
            element("script", Markup(embedded(data)), type="application/json", id="data")
        )
        scripts.append(element("script", Markup(SCRIPT)))
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Markup(style)),
    )
    whole = element("html", head, "\n", element("body", body, "\n", scripts), lang="en")
    return f"<!doctype html>\n{whole}\n"


def digest(text: str) -> str:
    """What a content security policy calls an inline text that it allows."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def embedded(data: Any) -> str:
    """JSON that no HTML parser takes for anything else; numbers that JSON lacks are strings.

    >>> embedded({"a</script>": [1.5, float("nan")]})
    '{"a\\\\u003c/script>":[1.5,"NaN"]}'
    """
    text = json.dumps(sayable(data), separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("&", "\\u0026")


def sayable(data: Any) -> Any:
    if isinstance(data, dict):
        return {str(key): sayable(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [sayable(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return "NaN" if math.isnan(data) else "Infinity" if data > 0 else "-Infinity"
    return data
