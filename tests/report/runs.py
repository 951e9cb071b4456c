"""Runs to report on: real ones, and folders written by hand where a test needs odd numbers."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any


def write_run(folder: Path, lines: list[dict[str, Any]], **files: Any) -> Path:
    """A folder with a recipe, these lines of metrics, and more files by the stem of their name."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe = {"type": "jscale.recipe:Recipe", "name": folder.name, "steps": 100}
    recipe["data"] = {"batch": 4, "length": 8}
    parts = {"recipe": recipe, **files}
    for stem, content in parts.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / f"{stem}.json").write_text(text, encoding="utf-8")
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    return folder


def line(step: int, time: float | None = None, **values: Any) -> dict[str, Any]:
    """A line of metrics; `train_loss` is `train/loss`."""
    named = {name.replace("_", "/", 1): value for name, value in values.items()}
    return {"step": step, "time": 1000.0 + (step if time is None else time), "values": named}


class Page(HTMLParser):
    """What stands on a page: its data, the text of each element, exact numbers, all tags."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.exact: dict[str, str] = {}
        self.words: list[str] = []
        self._inside: list[str] = []
        self._data = ""
        self.raw = path.read_text(encoding="utf-8")
        self.feed(self.raw)
        self.data: dict[str, Any] = json.loads(self._data) if self._data else {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self._inside.append("json" if dict(attrs).get("id") == "data" else tag)

    def handle_endtag(self, tag: str) -> None:
        if self._inside:
            self._inside.pop()

    def handle_data(self, data: str) -> None:
        inside = self._inside[-1] if self._inside else ""
        if inside == "json":
            self._data += data
        elif inside not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())
