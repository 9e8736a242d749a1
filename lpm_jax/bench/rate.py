"""A local page on which people rate two runs: which of a pair is better, and grades from 1 to 5.

python -m lpm_jax.bench rate A B --votes votes.csv       the page, http://127.0.0.1:8010
python -m lpm_jax.bench rate A --ask likert              one run, grades only

Which run is which is not told, and the sides are drawn anew for each case and rater. Every vote is on the disk before
the page goes on; stop and start as you like.
"""

from __future__ import annotations

import argparse
import threading
from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field

from lpm_jax.bench.ballot import ASK, Ballot, Screen, hint
from lpm_jax.bench.runs import open_run
from lpm_jax.bench.stills import frames_at, jpeg
from lpm_jax.bench.votes import DIMENSIONS, GRADES, SIDES, UNDO, VoteFile, check_rater, now
from lpm_jax.errors import ArgumentParser, InputError, one_line
from lpm_jax.local import Guard, bind

PAGE = Path(__file__).parent / "page"
NAME = Query(max_length=100)


class Answer(BaseModel):
    """To question ``question`` of the rater's own order."""

    rater: str = Field(max_length=100)
    question: int = Field(ge=0)
    choice: str = Field(max_length=10)


class Rater(BaseModel):
    rater: str = Field(max_length=100)


class Booth:
    """The ballot and the file of votes: what each rater has answered and what comes next. Methods may be called from
    any thread."""

    def __init__(self, ballot: Ballot, votes: VoteFile, raters: int) -> None:
        self.ballot, self.votes, self.raters = ballot, votes, raters
        self.lock = threading.Lock()

    def admit(self, name: str) -> str:
        """The rater's name as first spelt. With as many others in the file as are wanted, nobody else is let in."""
        name = check_rater(name)
        seated = {vote.rater.casefold(): vote.rater for vote in self.ballot.concerning(self.votes.votes)}
        if name.casefold() not in seated and len(seated) >= self.raters:
            wanted = f"{self.raters} rater{'s' * (self.raters != 1)}"
            raise InputError(
                f"rater: expected one of the {wanted} who began ({', '.join(seated.values())}), found {name}"
            )
        return seated.get(name.casefold(), name)

    def _answered(self, rater: str) -> dict[tuple, str]:
        own = [vote for vote in self.ballot.concerning(self.votes.votes) if vote.rater == rater]
        return {vote.question: vote.choice for vote in own}

    def state(self, name: str) -> dict[str, Any]:
        """How far the rater is, and the next question (None: all are answered)."""
        rater = self.admit(name)
        questions, answered = self.ballot.questions(rater), self._answered(rater)
        keys = [self.ballot.vote(rater, "", *question, "").question for question in questions]
        done = [key in answered for key in keys]
        number = done.index(False) if False in done else None
        return {
            "rater": rater,
            "total": len(questions),
            "done": sum(done),
            "undo": any(done),
            "question": None if number is None else self._describe(number, *questions[number]),
        }

    def _describe(self, number: int, screen: Screen, dimension: str) -> dict[str, Any]:
        case = self.ballot.runs[screen.left].cases[screen.case]
        return {
            "number": number,
            "screen": number // len(DIMENSIONS),
            "dimension": dimension,
            "place": DIMENSIONS.index(dimension),
            "dimensions": DIMENSIONS,
            "hint": hint(dimension, case["kind"]),
            "pair": screen.right is not None,
            "kind": case["kind"],
            "seconds": case.get("seconds"),
            "prompt": str(case.get("prompt") or ""),
            "reference": self.truth(screen) is not None,
        }

    def answer(self, answer: Answer) -> dict[str, Any]:
        with self.lock:
            rater = self.admit(answer.rater)
            screen, dimension = self._question(rater, answer.question)
            choices = GRADES if screen.right is None else SIDES
            if answer.choice not in choices:
                raise InputError(f"choice: expected {', '.join(choices)}, found {answer.choice!r}")
            self.votes.add(self.ballot.vote(rater, now(), screen, dimension, answer.choice))
        return self.state(rater)

    def undo(self, name: str) -> dict[str, Any]:
        """Take back the rater's last vote on these runs that still stands."""
        with self.lock:
            rater = self.admit(name)
            asked = {self.ballot.vote(rater, "", *q, "").question: q for q in self.ballot.questions(rater)}
            given = [key for key in self._answered(rater) if key in asked]
            if not given:
                raise InputError("undo: expected a vote to take back, found none")
            self.votes.add(self.ballot.vote(rater, now(), *asked[given[-1]], UNDO))
        return self.state(rater)

    def _question(self, rater: str, number: int) -> tuple[Screen, str]:
        questions = self.ballot.questions(rater)
        if number >= len(questions):
            raise InputError(f"question: expected 0 to {len(questions) - 1}, found {number}")
        return questions[number]

    def screen(self, name: str, number: int) -> Screen:
        return self._question(self.admit(name), number * len(DIMENSIONS))[0]

    def truth(self, screen: Screen) -> Path | None:
        """The true video, from whichever run has it: its first picture is the one that the case starts from."""
        found = (run.video(run.cases[screen.case], "truth") for run in self.ballot.runs)
        return next((path for path in found if path is not None), None)


def create_app(booth: Booth) -> FastAPI:
    """The page and what it asks for."""
    app = FastAPI(title="lpm_jax rating", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard)
    app.state.booth = booth

    @app.exception_handler(InputError)
    async def bad_input(_: Request, error: InputError) -> JSONResponse:
        return JSONResponse({"error": one_line(error)}, 400)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "request"
        return JSONResponse({"error": one_line(InputError(f"{where}: {first['msg']}"))}, 400)

    @app.exception_handler(OSError)
    async def not_saved(_: Request, error: OSError) -> JSONResponse:
        return JSONResponse({"error": f"the vote was not saved: {one_line(error)}"}, 507)

    @app.get("/v1/state")
    def state(rater: str = NAME) -> dict[str, Any]:
        return booth.state(rater)

    @app.post("/v1/votes")
    def vote(answer: Answer) -> dict[str, Any]:
        return booth.answer(answer)

    @app.post("/v1/undo")
    def undo(rater: Rater) -> dict[str, Any]:
        return booth.undo(rater.rater)

    @app.get("/v1/screens/{number}/reference")
    def reference(number: int, rater: str = NAME) -> Response:
        path = booth.truth(booth.screen(rater, max(number, 0)))
        if path is None:
            raise HTTPException(404, "no picture")
        return Response(jpeg(frames_at(path, [0.0])[0]), media_type="image/jpeg")

    @app.get("/v1/screens/{number}/{side}")
    def video(number: int, side: Literal["left", "right"], rater: str = NAME) -> FileResponse:
        screen = booth.screen(rater, max(number, 0))
        place = screen.left if side == "left" else screen.right
        if place is None:
            raise HTTPException(404, "a single video is on the left")
        run = booth.ballot.runs[place]
        path = run.video(run.cases[screen.case])
        if path is None:
            raise HTTPException(404, "the video is gone")
        return FileResponse(path, media_type="video/mp4")

    app.mount("/", StaticFiles(directory=PAGE, html=True))
    return app


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        "lpm_jax.bench rate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("a", metavar="A", help="folder of a run")
    add("b", metavar="B", nargs="?", help="folder of another one, of the same suite and seed")
    add("--votes", default="votes.csv", metavar="CSV", help="where votes are added to (default: votes.csv)")
    add("--raters", type=int, default=3, metavar="N", help="how many people rate (default: 3)")
    add("--port", type=int, default=8010)
    add("--ask", choices=ASK, help="default: both; likert for one run")
    add("--cases", type=int, metavar="N", help="ask about N cases only, evenly over kinds")
    add("--seed", type=int, default=0, help="of the order and the sides")
    args = parser.parse_args(argv)
    if not 1 <= args.raters <= 99:
        raise InputError(f"--raters: expected 1 to 99, found {args.raters}")
    if args.cases is not None and args.cases < 1:
        raise InputError(f"--cases: expected 1 or more, found {args.cases}")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    runs = [open_run(folder) for folder in (args.a, args.b) if folder is not None]
    ballot = Ballot(runs, args.ask or ("both" if len(runs) == 2 else "likert"), args.seed, args.cases)
    listener = bind("127.0.0.1", args.port)
    votes = VoteFile(args.votes)
    if votes.cut:
        print(f"note: {votes.path}: a half-written last line was cut off ({votes.cut} bytes, never confirmed)")
    if ballot.skipped:
        print(f"note: {len(ballot.skipped)} cases are left out, a video is missing: {', '.join(ballot.skipped[:5])}")
    count = len(ballot.questions(""))
    print(f"{count} questions a rater about {len(ballot.cases)} cases; votes go to {votes.path}")
    print(f"open http://127.0.0.1:{listener.getsockname()[1]} (Ctrl-C ends)", flush=True)

    import uvicorn

    app = create_app(Booth(ballot, votes, args.raters))
    try:
        config = uvicorn.Config(app, log_level="error", access_log=False, timeout_graceful_shutdown=2)
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        votes.close()
    return 0
