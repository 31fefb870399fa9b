"""Result files as the benchmarks and training write them, with figures that are made up: only their form is real."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

ENVIRONMENT = {
    **{"machine": "x86_64", "python": "3.11.7", "torch": "2.13.0", "transformers": "5.23.0"},
    **{"megacontext": "0.1.0", "threads": 2, "commit": "0123456789abcdef"},
}


def around(name: str, value: float, half: float = 0.01) -> dict[str, Any]:
    """A figure with its interval."""
    return {name: value, "ci" if name in ("diff", "nats") else f"{name}_ci": [value - half, value + half]}


def arm(nll: float, *, drop: float = 3.0, full: float = 2.6, slots: float = 28.0) -> dict[str, Any]:
    """An arm's figures from its NLL; on far-copy tokens everything is one nat worse and the gap twice as wide."""

    def figures(own: float, low: float, high: float) -> dict[str, Any]:
        recovered = (high - own) / (high - low)
        return (
            around("nll", own)
            | around("delta_nll", own - low)
            | around("delta_nll_share", (own - low) / low)
            | around("recovered", recovered, 0.05)
        )

    return {**figures(nll, full, drop), "slots": slots, "far_copy": figures(2 * nll - drop + 1, 2 * full - drop + 1, drop + 1)}


def quality(gist: float = 2.75) -> dict[str, Any]:
    """A whole quality result; ``gist`` is the NLL of the gist arm (drop 3.0, full 2.6)."""
    nll = {
        "drop": 3.0,
        "recency": 2.9,
        "noise": 3.01,
        "mean": 2.98,
        "rarest": 2.96,
        "swapped": 2.995,
        "gist": gist,
        "full": 2.6,
    }
    arms = {name: arm(value, slots={"drop": 0.0, "full": 896.0}.get(name, 28.0)) for name, value in nll.items()}
    differences = {
        f"gist-{name}": around("diff", gist - nll[name]) | {"far_copy": around("diff", 2 * (gist - nll[name]))}
        for name in ("drop", "swapped", "noise", "mean", "rarest", "recency")
    }
    budgets = {
        name: {"slots": slots, "arms": {"recency": arm(2.9 - slots / 1000), "megacontext": arm(2.8 - slots / 1000)}}
        | {"differences": {"megacontext-recency": around("diff", -0.1) | {"far_copy": around("diff", -0.2)}}}
        for name, slots in (("1/4", 224), ("1/8", 112), ("1/16", 56))
    }
    return {
        "schema": 2,
        "kind": "quality",
        "environment": ENVIRONMENT,
        "config": {"far": 896, "tail": 128, "horizon": 64, "items": 300, "renewal": 16, "seed": 0},
        "gate": {"judged": True, "drop_minus_full": 0.4, "drop_minus_full_ci": [0.35, 0.45]}
        | {"drop_minus_full_far_copy": 0.8, "ci": [0.7, 0.9]},
        "arms": arms,
        "differences": differences,
        "budgets": budgets,
        "unneeded_cost": around("nats", 0.002) | {"gists": 28, "raw_tokens": 512},
        "reconstruction": around("tokens", 0.3) | {"swapped": 0.05},
        "quick": False,
    }


def capacity() -> dict[str, Any]:
    """A whole capacity result."""
    nll = {
        "drop": 3.0,
        "gist": 2.8,
        "swapped": 2.99,
        "replayed_swapped": 3.02,
        "replayed": 2.5,
        "answer_seeing": 1.0,
        "full": 2.6,
    }
    whole = quality()
    judged = {"judged": True} | around("share", 0.4, 0.1)
    return {
        **{key: whole[key] for key in ("environment", "gate", "quick")},
        **{"schema": 1, "kind": "capacity", "config": {"items": 24, "steps": 150}},
        "arms": {name: arm(value) for name, value in nll.items()},
        "reached": {
            "replayed": judged | {"far_copy": judged},
            "answer_seeing": {"judged": False, "far_copy": {"judged": False}},
        },
    }


def run(
    name: str, *, trains: str = "gist", group: str = "", config: dict[str, Any] | None = None, **figures: Any
) -> dict[str, Any]:
    """A run's summary; ``figures`` are those of its last of three evaluations, towards which the curve rises."""
    steps = [100, 200, 300]
    own = {"output": f"runs/{name}", "steps": 300, "seed": 0, **(config or {})}
    return {
        "schema": 1,
        "kind": "run",
        "name": name,
        "group": group,
        "trains": trains,
        "config": own,
        "steps": 300,
        "finished": True,
        "parameters": {"base": 2_000_000} if trains != "gist" else {"gistnet": 600_000},
        "seconds": 100.0,
        "loss": {"steps": steps, "loss": [4.0, 3.5, 3.2]},
        "curve": {"steps": steps, "figures": {key: [value / 3, value / 2, value] for key, value in figures.items()}},
        "best": {key: {"value": value, "step": 300} for key, value in figures.items()},
        "chosen": {"step": 300, "figures": dict(figures)},
    }


def sized(
    width: int, parameters: int, *, tokens: int | None = 5_000_000, group: str = "scaling", **figures: float
) -> list[Any]:
    """A plain base of that size and one GistNet for it: NLL 20·N^−0.13, recovered 0.04 for every doubling, unless given."""
    law = {
        "full": 20 * parameters**-0.13,
        "drop": 20 * parameters**-0.13 + 0.1,
        "drop_minus_full": 0.1,
        "recovered/gist": 0.04 * math.log2(parameters) - 0.6,
        "recovered/swapped": 0.01,
    } | figures
    base = run(f"w{width}-base", trains="base", group=group, config={"shape": {"width": width}}, **law)
    base["parameters"] = {"base": parameters}
    if tokens is not None:
        base["tokens"] = tokens
    gist = run(f"w{width}-gist", group=group, config={"base": f"runs/w{width}-base/model"}, **law)
    return [base, gist]


def save(root: Path, **named: Any) -> None:
    """Write results below ``root``: runs into their own folder; an underscore in a name becomes a dash."""
    folder = root / "benchmarks" / "results"
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    for name, content in named.items():
        place = folder / "runs" if content["kind"] == "run" else folder
        (place / f"{name.replace('_', '-')}.json").write_text(json.dumps(content))


def storage(open_ms: float = 5.0) -> dict[str, Any]:
    """A storage result of two records."""

    def times(p50: float, p99: float, computing: float) -> dict[str, float]:
        return {"p50_ms": p50, "p99_ms": p99, "min_ms": p50 / 2, "computing_p50_ms": computing}

    size = {"what": "size", "blocks": 1_000_000, "memory": {"bytes": 1003}, "plain": {"bytes": 1000}, "ratio": 1.003}
    opened = {"memory": times(open_ms, 20.0, 5.0), "plain": times(0.1, 0.2, 0.1), "ratio": open_ms / 0.1}
    return {
        "schema": 1,
        "kind": "storage",
        "environment": ENVIRONMENT,
        "config": {"blocks": 1_000_000, "document_blocks": 100, "width": 384, "seed": 0},
        "records": [size, {"what": "open", "blocks": 1_000_000, "repeats": 60, **opened}],
        "summary": {"open_ms": open_ms, "size_ratio": 1.003},
    }


def suffix(*, bytes_per_token: float) -> dict[str, Any]:
    """A result of tools.bench_suffix with one length of history."""
    record = {
        **{"tokens": 1_000_000, "new_tokens": 1_000_000, "runs": 9, "bytes_per_token": bytes_per_token, "matches": 8.0},
        **{"build_seconds": 0.5, "build_tokens_per_second": 2e6},
        **{"find_us": {"p50": 150.0, "p99": 300.0}, "scan_us": {"p50": 9000.0, "p99": 9100.0}},
    }
    config = {"sizes": [1_000_000], "queries": 20, "each": 8}
    return {"schema": 1, "kind": "suffix", "environment": ENVIRONMENT, "config": config, "records": [record], "summary": {}}
