"""llama.cpp's own server as it comes in xllamacpp's wheel: `python -m dsr1_tune.serve.llama_server FILE.gguf`.

It needs nothing else of this package, so that a container needs no more than this file.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> None:
    """Serve until a signal ends it."""
    parser = argparse.ArgumentParser(description="llama.cpp's server with its OpenAI-compatible API.")
    parser.add_argument("model", type=Path, help="a .gguf file, or a folder with one")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--context", type=int, default=0, help="tokens; 0 takes the model's own")
    parser.add_argument("--chat-template-kwargs", default="{}", help="JSON: the chat template's usual arguments")
    given = parser.parse_args(arguments)

    file = given.model
    if file.is_dir():
        found = sorted(file.glob("*.gguf"))
        if len(found) != 1:
            sys.exit(f"{file}: holds {len(found)} .gguf files, and one is served")
        file = found[0]

    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = str(file)
    settings.hostnames = [given.host]
    settings.port = given.port
    settings.n_ctx = given.context
    settings.use_jinja = True
    kwargs = json.loads(given.chat_template_kwargs)
    settings.default_template_kwargs = {name: json.dumps(value) for name, value in kwargs.items()}
    settings.model_alias = {file.stem}
    try:
        server = xllamacpp.Server(settings)
    except RuntimeError as error:
        sys.exit(f"{file}: llama.cpp cannot load it: {error}")
    print(f"llama.cpp at {server.listening_address}", flush=True)
    signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    main()
