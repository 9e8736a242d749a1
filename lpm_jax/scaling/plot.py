"""Loss against compute, as a picture. matplotlib is an extra (``uv sync --extra plots``) and imported here only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lpm_jax.errors import InputError
from lpm_jax.scaling import laws

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe and Ito's


def check() -> None:
    """Says in one line that matplotlib is missing, before anything is trained.

    Raises:
      InputError: it is.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError("--plot: expected matplotlib, found none; install it with: uv sync --extra plots") from None


def save(path: Path, results: dict[str, Any]) -> None:
    """Draws every run with its standard error, the law of the frontier with its interval, and the prediction."""
    check()
    from matplotlib.figure import Figure

    found = laws.points(results["runs"])
    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes = figure.add_subplot()
    _draw_law(axes, found)
    spread = found.clips.std(axis=1, ddof=1) / np.sqrt(found.clips.shape[1]) if found.clips.shape[1] > 1 else None
    names = [label.split()[0] for label in found.labels]
    for i, name in enumerate(dict.fromkeys(names)):
        here = np.array([other == name for other in names])
        style = {"color": COLOURS[i % len(COLOURS)], "marker": "o", "capsize": 3, "label": name}
        axes.errorbar(found.compute[here], found.loss[here], None if spread is None else spread[here], **style)
    on = laws.frontier(found.compute, found.loss)
    axes.plot(found.compute[on], found.loss[on], "o", mfc="none", mec="black", ms=11, label="frontier")
    held = results["laws"]["held_back"]
    if "predicted" in held["compute"]:
        at = found.compute[-1]
        axes.plot(at, held["compute"]["predicted"], "x", color="black", ms=9, label="predicted without the largest")
    axes.set(xscale="log", yscale="log", xlabel="training compute, FLOP", ylabel="held-out flow-matching loss")
    axes.set_title(f"{results['stage']}: loss against compute (bars: standard error over clips)", fontsize=10)
    _ticks(axes)
    axes.grid(True, which="both", alpha=0.25)
    axes.legend(fontsize=9)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp")
    figure.savefig(aside, format="png", dpi=140)
    aside.replace(path)


def _ticks(axes: Any) -> None:
    """Compute at 1, 2 and 5 of each decade, losses as plain numbers: the axes span a decade or two."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    plain = FuncFormatter(lambda y, _: f"{y:g}")
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_minor_formatter(plain)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0e}".replace("e+", "e")))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _draw_law(axes: Any, found: laws.Points) -> None:
    """The law and the 95 % of its resamples, half a decade further than the runs; nothing where there is no law."""
    try:
        law, resamples = laws.compute_law(found)
    except ValueError:
        return
    at = np.geomspace(found.compute.min(), found.compute.max() * 3, 100)
    low, high = np.percentile(resamples(at[:, None]), [2.5, 97.5], axis=0)
    axes.fill_between(at, low, high, color="black", alpha=0.1, lw=0)
    text = f"${float(law.E):.3g} + A\\,C^{{-{float(law.exponents[0]):.3g}}}$"
    axes.plot(at, law(at[:, None]), "--", color="black", lw=1, label=text)
