"""Run the service on a socket that is already bound, until Ctrl-C; the model loads and compiles meanwhile."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

import uvicorn

from lpm_jax.local import LOOPBACK
from lpm_jax.serving.app import create_app
from lpm_jax.serving.engine import Engine
from lpm_jax.serving.library import Library
from lpm_jax.serving.memory import keep_room, one_heap


class _Server(uvicorn.Server):
    """uvicorn that also stops when the model failed to load."""

    def __init__(self, config: uvicorn.Config, engine: Engine) -> None:
        super().__init__(config)
        self.engine = engine

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self.engine.error is not None


def serve(
    load: Callable[[], Any],
    listener: socket.socket,
    host: str,
    library: Library,
    defaults: dict[str, Any],
    sessions: int = 1,
    size: tuple[int, int] = (128, 128),
) -> None:
    """Serve the page on ``listener``. ``load`` returns a pipeline, cold; what it raises is raised here."""
    one_heap()
    address, port = listener.getsockname()[:2]
    url = f"http://{f'[{address}]' if ':' in address else address}:{port}"

    def warm() -> Any:
        started = time.perf_counter()
        print(f"{url} is up; the model is being compiled ...", flush=True)
        pipeline = load()
        pipeline.warm_up()
        keep_room()
        print(f"ready after {time.perf_counter() - started:.1f} s: open {url} (Ctrl-C ends)", flush=True)
        return pipeline

    app = create_app(
        warm, library=library, defaults=defaults, any_host=host not in LOOPBACK, image_size=size, sessions=sessions
    )
    engine: Engine = app.state.engine
    config = uvicorn.Config(
        app, log_level="error", access_log=False, ws_max_size=4_000_000, timeout_graceful_shutdown=2, lifespan="on"
    )
    _Server(config, engine).run(sockets=[listener])
    if engine.error is not None:
        raise engine.error
