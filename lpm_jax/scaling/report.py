"""A study in words: a Markdown table of its runs and a line for each law."""

from __future__ import annotations

from typing import Any


def line(run: dict[str, Any]) -> str:
    """One finished run."""
    seconds = run["seconds_per_step"]
    pace = "" if seconds is None else f", {seconds:.3g} s a step"
    error = run["standard_error"]
    spread = "" if error is None else f" +- {error:.4f}"
    return (
        f"{run['name']}, {run['steps']} steps, seed {run['seed']}: {run['parameters'] / 1e6:.2f} M parameters, "
        f"{run['flops']:.3g} FLOP{pace}, held-out loss {run['loss']:.4f}{spread}"
    )


def table(results: dict[str, Any]) -> str:
    """The runs by compute, the best at their compute in bold."""
    best = results["laws"]["compute"].get("frontier", [])
    lines = [
        "| run | parameters | of the blocks | steps | video tokens | FLOP | seconds | held-out loss | standard error |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for run in sorted(results["runs"], key=lambda run: (run["flops"], run["seed"])):
        bold = "**" if f"{run['name']} {run['steps']}" in best else ""
        name = run["name"] + (f", seed {run['seed']}" if run["seed"] else "")
        seconds, error = (run[key] for key in ("seconds", "standard_error"))
        cells = (
            name, f"{run['parameters']:,}", f"{run['blocks']:,}", f"{run['steps']:,}", f"{run['tokens']:,}",
            f"{run['flops']:.3g}", "-" if seconds is None else f"{seconds:.0f}", f"{bold}{run['loss']:.4f}{bold}",
            "-" if error is None else f"{error:.4f}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _between(low_high: list[float] | None) -> str:
    return "none" if low_high is None else f"{low_high[0]:.3g} to {low_high[1]:.3g}"


def sentences(laws: dict[str, Any]) -> list[str]:
    """The laws, or why there is none, and the prediction of the largest run."""
    law, size, held = laws["compute"], laws["size"], laws["held_back"]
    told = []
    if "missing" in law:
        told.append(f"L(C) = E + A C^-alpha: not fitted: {law['missing']}.")
    else:
        told.append(
            f"L(C) = {law['E']:.4g} + {law['A']:.4g} C^-{law['alpha']:.4g} on the frontier; 95 % over clips: alpha "
            f"{_between(law['alpha_interval'])}, E {_between(law['E_interval'])}; alpha with one run left out: "
            f"{_between(law['alpha_left_out'])}; largest residual {100 * law['largest_residual']:.2g} %."
        )
    if "missing" in size:
        told.append(f"L(N, D) = E + A N^-alpha + B D^-beta: not fitted: {size['missing']}.")
    else:
        told.append(
            f"L(N, D) = {size['E']:.4g} + {size['A']:.4g} N^-{size['alpha']:.4g} + "
            f"{size['B']:.4g} D^-{size['beta']:.4g}; 95 % over clips: alpha {_between(size['alpha_interval'])}, "
            f"beta {_between(size['beta_interval'])}; largest residual {100 * size['largest_residual']:.2g} %."
        )
    where = "" if held["on_frontier"] else ", which is not on the frontier"
    told.append(f"Held back: {held['run']}{where}, measured {held['measured']:.4f}.")
    for name, title in (("compute", "L(C)"), ("size", "L(N, D)")):
        found = held[name]
        if "missing" in found:
            told.append(f"{title} of the others: not fitted: {found['missing']}.")
        else:
            error, low, high = (f"{100 * value:+.2g} %" for value in (found["error"], *found["error_interval"]))
            told.append(
                f"{title} of the others predicts {found['predicted']:.4f}, {error} off "
                f"(95 % over clips: {low} to {high})."
            )
    return told
