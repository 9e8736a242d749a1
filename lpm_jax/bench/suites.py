"""Which cases a suite has: kinds, lengths and seeds, always the same.

``full`` has the composition of the paper's benchmark (arXiv 2604.07823): speaking 400, listening 200, conversation 200,
diverse motion 100, character generalisation 100; sound of 5 to 180 seconds, one case in ten longer, up to an hour.
``small`` has the same shares in 50 short cases, ``long`` measures drift over 10 and 45 minutes, ``tiny`` (4 cases of
three seconds) only shows that everything works.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from lpm_jax.errors import InputError

#: Seeds above every other: data sets draw 32 bits, benchmarks/toy.py begins at 2^40, the reader's test at 2^41.
FIRST_SEED = 1 << 42
SHARES = {"speaking": 0.4, "listening": 0.2, "conversation": 0.2, "motion": 0.1, "generalisation": 0.1}
SUITES = ("tiny", "small", "full", "long")


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a case is made from."""

    id: str
    kind: str
    seconds: float
    seed: int

    @property
    def scene(self) -> str:
        """The kind of conversation behind it (``data_pipeline.performers.conversation``)."""
        talk = {"speaking": "speak", "listening": "listen"}.get(self.kind, "conversation")
        idle = self.kind == "motion" and self.seed % 2
        return "idle" if idle else "speak" if self.kind == "motion" else talk


def specs(suite: str) -> list[Spec]:
    """The cases of ``suite``, kind by kind.

    Raises:
      InputError: there is no such suite.
    """
    if suite not in SUITES:
        raise InputError(f"--suite: expected one of {', '.join(SUITES)}, found {suite!r}")
    if suite == "tiny":
        lengths = {kind: [3.0] for kind in ("speaking", "listening", "conversation", "motion")}
    elif suite == "long":
        lengths = {"long": [600.0, 600.0, 2700.0]}
    else:
        count = {"small": 50, "full": 1000}[suite]
        lengths = {kind: _lengths(suite, kind, round(share * count)) for kind, share in SHARES.items()}
    seed = FIRST_SEED + (SUITES.index(suite) << 32)
    out = []
    for kind, times in lengths.items():
        out += [Spec(f"{kind}-{i:03d}", kind, s, seed + len(out) + i) for i, s in enumerate(times)]
    return out


def _lengths(suite: str, kind: str, count: int) -> list[float]:
    """Seconds of each case: one in ten is long; even on a logarithmic scale, in an order that mixes them."""
    short, long = ((5.0, 180.0), (180.0, 3600.0)) if suite == "full" else ((4.0, 6.0), (15.0, 15.0))
    if suite == "small" and kind == "motion":
        short = (8.0, 8.0)  # time for two prompts
    longs = count // 10
    spread = lambda low, high, n: np.geomspace(low, high, n) if n > 1 else np.full(n, high)  # noqa: E731
    times = np.concatenate([spread(*short, count - longs), spread(*long, longs)])
    order = np.random.default_rng(len(kind)).permutation(count)
    return [float(round(s * 6) / 6) for s in times[order]]  # whole latent frames, of a sixth of a second
