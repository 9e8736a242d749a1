"""The HTTP side: page, uploads, lists, health; and the door to the WebSocket.

Meant for one machine: loopback by default, requests only from its own page, as many live sessions as it is told.
"""

from __future__ import annotations

import io
import wave
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException, Request, Response, UploadFile, WebSocket
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from PIL import Image

from lpm_jax.errors import InputError, one_line
from lpm_jax.local import Guard
from lpm_jax.media import SAMPLE_RATE, load_audio, pcm16
from lpm_jax.pictures import load_image
from lpm_jax.serving.engine import Engine
from lpm_jax.serving.library import YOURS, Library
from lpm_jax.serving.meter import report
from lpm_jax.serving.websocket import Conversation

PAGE = Path(__file__).parent / "page"
MAX_SPEECH_SECONDS = 600.0


def create_app(
    load: Callable[[], Any],
    *,
    library: Library | None = None,
    defaults: dict[str, Any] | None = None,
    any_host: bool = False,
    image_size: tuple[int, int] = (128, 128),
    sessions: int = 1,
) -> FastAPI:
    """The service. ``load`` returns a warm ``Pipeline`` and runs in the model's thread; ``defaults`` are those of
    ``session.update``: character, prompt, seed. ``sessions`` may be live at a time."""
    engine, library = Engine(load, sessions), library or Library()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        engine.stop()

    app = FastAPI(title="lpm_jax", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(Guard, any_host=any_host)
    app.state.engine, app.state.library = engine, library

    @app.exception_handler(InputError)
    async def bad_input(_: Request, error: InputError) -> JSONResponse:
        return JSONResponse({"error": one_line(error)}, 400)

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, error.status_code)

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"state": "alive"}

    @app.get("/readyz")
    def readyz() -> JSONResponse:
        if engine.error is not None:
            return JSONResponse({"state": "failed", "error": one_line(engine.error)}, 503)
        return JSONResponse({"state": "ready" if engine.ready else "warming_up"}, 200 if engine.ready else 503)

    @app.get("/v1/stats")
    async def stats() -> dict[str, Any]:
        return report([conversation.figures() for conversation in engine.watched], engine.sessions)

    @app.get("/v1/characters")
    def characters() -> list[dict[str, str]]:
        names = [*library.images, *library.characters()]
        return [{"name": name, "image": f"/v1/images/{name}"} for name in names]

    @app.get("/v1/samples")
    def samples() -> list[dict[str, str]]:
        names = [YOURS] * (YOURS in library.speech) + list(library.samples())
        return [{"name": name, "audio": f"/v1/samples/{name}"} for name in names]

    @app.get("/v1/samples/{name}")
    def sample(name: str) -> Response:
        if name == YOURS and name in library.speech:
            return Response(_wav(library.speech[name]), media_type="audio/wav")
        if name not in library.samples():
            raise HTTPException(404, f"no sample {name[:60]!r}")
        return FileResponse(library.samples()[name])

    @app.get("/v1/images/{name}")
    def image(name: str) -> Response:
        try:
            found = library.image(name)
        except InputError as error:
            raise HTTPException(404, one_line(error)) from None
        if isinstance(found, Path):
            return FileResponse(found)
        data = io.BytesIO()
        Image.fromarray(np.asarray(found)).save(data, "PNG")
        return Response(data.getvalue(), media_type="image/png")

    @app.post("/v1/images")
    def upload_image(file: UploadFile) -> dict[str, str]:
        picture = load_image(file.file, image_size, name=_name(file))
        key = library.keep(library.images, picture)
        return {"id": key, "image": f"/v1/images/{key}"}

    @app.post("/v1/speech")
    def upload_speech(file: UploadFile) -> dict[str, Any]:
        sound = load_audio(file.file, name=_name(file), max_seconds=MAX_SPEECH_SECONDS)
        return {"id": library.keep(library.speech, sound), "seconds": round(len(sound) / 24_000, 3)}

    @app.websocket("/v1/ws")
    async def live(socket: WebSocket) -> None:
        await Conversation(socket, engine, library, defaults or {}).run()

    app.mount("/", StaticFiles(directory=PAGE, html=True))
    return app


def _wav(samples: np.ndarray) -> bytes:
    data = io.BytesIO()
    with wave.open(data, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(pcm16(samples).tobytes())
    return data.getvalue()


def _name(file: UploadFile) -> str:
    return Path(file.filename or "upload").name[:80]
