"""A release that is fetched by its name: by the hub's own client, from a server of this test."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from formats.drawn import drawn

from jscale.formats.files import write_files
from jscale.formats.huggingface import files, table
from jscale.models import Llama

SMALL = Llama(vocab=32, dim=16, layers=2, heads=4, kv_heads=2, hidden=24)
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CODE = "modeling_small.py"  # never fetched
ASK = """
import sys
from jscale.errors import UserError
from jscale.mesh import MeshShape
from jscale.pretrained import folder_of, from_pretrained
try:
    print(*sorted(p.name for p in folder_of(sys.argv[1]).iterdir()))
    print(from_pretrained(sys.argv[1], MeshShape()).model.config)
except UserError as error:
    print(error)
"""


class Hub(BaseHTTPRequestHandler):
    """What the client asks of huggingface.co: which files there are, their hashes, the files."""

    folder: Path

    def do_GET(self) -> None:
        self.answer(True)

    def do_HEAD(self) -> None:
        self.answer(False)

    def answer(self, whole: bool) -> None:
        path = self.path.partition("?")[0]
        names = sorted(p.name for p in self.folder.iterdir())
        if path.startswith("/api/models/our/small/revision/"):
            told = {"id": "our/small", "sha": COMMIT, "siblings": [{"rfilename": n} for n in names]}
            return self.send(200, json.dumps(told).encode(), {}, whole)
        if path.startswith("/api/models/our/small/tree/"):
            sizes = [(n, (self.folder / n).stat().st_size) for n in names]
            tree = [{"type": "file", "path": n, "size": s, "oid": COMMIT} for n, s in sizes]
            return self.send(200, json.dumps(tree).encode(), {}, whole)
        name = path.rpartition("/")[2]
        if path == f"/our/small/resolve/{COMMIT}/{name}" and name in names:
            data = (self.folder / name).read_bytes()
            tags = {"ETag": f'"{sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
            return self.send(200, data, tags, whole)
        self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, whole)

    def send(self, status: int, data: bytes, headers: dict[str, str], whole: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if whole:
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is printed."""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The surroundings of a process whose hub has `our/small`."""
    folder = tmp_path_factory.mktemp("small")
    arrays = table(SMALL).lazily(drawn(SMALL))
    write_files(arrays, folder, lambda lazy: lazy.fetch(), shard=4000)
    (folder / "config.json").write_text(files(SMALL, {})["config.json"])
    (folder / CODE).write_text("raise SystemExit('code of a release was run')")
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Ours", (Hub,), {"folder": folder}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    where = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0"}
    home = str(tmp_path_factory.mktemp("home"))
    yield {**os.environ, **where, "HF_HOME": home, "JAX_PLATFORMS": "cpu"}
    server.shutdown()
    server.server_close()


def asked(name: str, surroundings: dict[str, str]) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", ASK, name], env=surroundings, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_release_is_fetched_by_its_name_without_its_code(hub: dict[str, str]) -> None:
    names, config = asked("our/small", hub)
    assert "config.json" in names and "model.safetensors.index.json" in names
    assert "model-00002-of-" in names and CODE not in names
    assert config == repr(SMALL)


def test_a_release_that_the_hub_lacks_is_one_sentence(hub: dict[str, str]) -> None:
    (line,) = asked("our/large", hub)
    assert line.startswith("the release our/large cannot be had from the hub: ")
