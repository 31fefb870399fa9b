"""The tables and curves that the template calls by name, made from results alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from megacontext.cli.bench_capacity import LABELS as CAPACITY_LABELS
from megacontext.errors import ConfigError
from megacontext.evaluation.recall_bench.tables import RAW_COLUMNS, memory_table, raw_rows
from megacontext.evaluation.storage_bench.tables import COLUMNS as STORAGE_COLUMNS
from megacontext.evaluation.storage_bench.tables import summary_rows as storage_summary
from megacontext.evaluation.storage_bench.tables import table_rows as storage_rows
from megacontext.evaluation.tables import LABELS, difference_rows, quality_markdown
from tools.report import experiments, plots, scaling, speed, walkthrough
from tools.report.files import Result, Results
from tools.report.focus import focus_lengths, suffix_table
from tools.report.markdown import figure_text, table, with_interval
from tools.report.targets import target_rows

RECOVERED = {
    "gist": ("gists", plots.BLUE),
    "swapped": ("swapped gists", plots.RED),
    "recency": ("as many raw tokens", plots.GREY),
}

OWN_PAGES = ("speed", "storage", "suffix", "focus", "reuse")
"""Kinds of results that have a page of their own."""


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Blocks over ``results``; curves are collected in ``figures``: file name → SVG."""

    results: Results
    figures: dict[str, str] = field(default_factory=dict)
    _shown: set[str] = field(default_factory=set)

    def by_name(self) -> dict[str, Callable[..., str]]:
        """What a template may call."""
        return {
            "quality_table": quality_markdown,
            "comparison": self.comparison,
            "arms_plot": self.arms_plot,
            "budgets_plot": self.budgets_plot,
            "difference": difference,
            "targets": targets,
            "environment": environment,
            "capacity_table": capacity_table,
            "capacity_plot": self.capacity_plot,
            "run_plot": self.run_plot,
            "experiments": self.experiments,
            "other_experiments": self.other_experiments,
            "scaling_table": self.scaling_table,
            "scaling_laws": self.scaling_laws,
            "scaling_plot": self.scaling_plot,
            "storage_table": storage_table,
            "storage_aims": storage_aims,
            "suffix_table": suffix_table,
            "focus_lengths": focus_lengths,
            "session_steps": walkthrough.steps_table,
            "session_strips": self.session_strips,
            "session_spent": self.session_spent,
            "recall_raw": recall_raw,
            "recall_memory": recall_memory,
            "speed_aims": speed.aims,
            "speed_load": speed.load,
            "speed_decode": speed.decode,
            "speed_plot": self.speed_plot,
            "speed_refocus": speed.refocus,
            "speed_profile": speed.profile,
            "speed_reuse": speed.reuse,
            "speed_ingest": speed.ingest,
            "speed_first_token": speed.first_token,
            "speed_roofline": speed.roofline,
            "sources": self.sources,
        }

    def comparison(self) -> str:
        """One row for every quality result, each against its own references: what its gists carry, and what they cost."""
        rows = []
        for name, result in self.results.of("quality").items():
            gist = result["arms"].get("gist")
            if gist is None:
                continue
            unneeded = result.get("unneeded_cost")
            rows.append(
                (
                    name.partition("quality")[2].strip("-").replace("-", " ") or "shipped",
                    f"{gist['slots']:.0f}",
                    f"{result['arms']['full']['nll']:.3f}",
                    with_interval(result["gate"], "drop_minus_full", ".3f"),
                    *(_recovered(result["arms"].get(arm)) for arm in ("recency", "swapped", "gist")),
                    with_interval(gist["far_copy"], "recovered", ".2f") if "recovered" in gist["far_copy"] else "–",
                    with_interval(gist, "delta_nll", "+.3f"),
                    with_interval(unneeded, "nats", "+.4f", ci="ci") if unneeded else "–",
                )
            )
        columns = ("base and gists", "slots", "NLL, all raw", "gate: drop − full", "recency", "swapped", "gists")
        return table((*columns, "gists, far-copy", "ΔNLL of gists", "unneeded gists cost"), rows)

    def arms_plot(self, result: Result, name: str) -> str:
        """Recovered fractions of every arm of a quality result."""
        return self._plot(f"arms-{name}", "Recovered fraction of every arm with 95 % intervals", plots.arms(result, LABELS))

    def budgets_plot(self, result: Result, name: str) -> str:
        """Recovered fractions of the arms that fill a budget, over the budgets' slots."""
        budgets = sorted((found for found in result["budgets"].values() if found.get("arms")), key=lambda found: found["slots"])
        names = [arm for arm in LABELS if any("recovered" in found["arms"].get(arm, {}) for found in budgets)]
        curves = [
            (
                arm.replace("_", " "),
                [found["slots"] for found in budgets],
                [found["arms"].get(arm, {}).get("recovered") for found in budgets],
                plots.BUDGET_COLOURS.get(arm),
            )
            for arm in names
        ]
        drawn = plots.lines(curves, x="slots beside the tail", y="recovered (0 = drop, 1 = full)", zero=True)
        return self._plot(f"budgets-{name}", "Recovered fraction by slots beside the tail", drawn)

    def capacity_plot(self, result: Result, name: str) -> str:
        """Recovered fractions of optimised vectors, the encoder's gists and those of another history."""
        drawn = plots.arms(result, CAPACITY_LABELS)
        return self._plot(f"capacity-{name}", "Recovered fraction of optimised vectors and of gists with 95 % intervals", drawn)

    def run_plot(self, run: Result) -> str:
        """One run's validation figures over its steps: recovered fractions, or for a base NLL with and without far context."""
        name, figures, steps = run["name"], run["curve"]["figures"], run["curve"]["steps"]
        recovered = {arm: figures[f"recovered/{arm}"] for arm in RECOVERED if f"recovered/{arm}" in figures}
        if recovered:
            curves = [(RECOVERED[arm][0], steps, values, RECOVERED[arm][1]) for arm, values in recovered.items()]
            text, y = f"Recovered fractions on validation items while {name} trains", "recovered (0 = drop, 1 = full)"
        else:
            gap = zip(figures["full"], figures["drop_minus_full"], strict=True)
            drop = [None if low is None or more is None else low + more for low, more in gap]
            curves = [("drop: tail alone", steps, drop, plots.GREY), ("full: all raw", steps, figures["full"], plots.BLUE)]
            text, y = f"Loss with and without far context while {name} trains", "NLL (nats per token)"
        return self._plot(f"run-{name}", text, plots.lines(curves, x="steps", y=y, zero=bool(recovered)))

    def experiments(self, group: str) -> str:
        """The runs of one group: what differs between them and what came out, with their curves where there are several."""
        runs = [run for run in self.results.of("run").values() if run["group"] == group]
        if not runs:
            raise ConfigError(f"no run belongs to a group {group}: summarise some with --group {group}")
        self._shown.add(group)
        text = experiments.group_tables(runs)
        curves = experiments.real_curves(runs)
        if len(curves) < 2:
            return text
        drawn = plots.lines(curves, x="steps", y="real (gists − swapped)", zero=True)
        return text + "\n\n" + self._plot(f"group-{group}", f"Real information while the runs of {group} train", drawn)

    def other_experiments(self) -> str:
        """Every group of runs that no block above has shown, each under a heading of its own."""
        groups = {str(run["group"]) for run in self.results.of("run").values()} - {"", scaling.GROUP} - self._shown
        return "\n\n".join(f"### {group.capitalize()}\n{self.experiments(group)}" for group in sorted(groups))

    def scaling_table(self) -> str:
        """One row a base that was trained: parameters, tokens, figures."""
        names = [name for name in scaling.FIGURES if any(name in size.figures for size in self._sizes())]
        rows = [
            (
                size.arm,
                str(size.width),
                f"{size.parameters:,}",
                f"{size.tokens:,}" if size.tokens is not None else "–",
                str(size.gist_runs) if size.gist_runs else "–",
                *(figure_text(size.figures.get(name), ".3f") for name in names),
            )
            for size in self._sizes()
        ]
        columns = ("base", "width", "parameters", "tokens", "GistNets", *(scaling.FIGURES[name] for name in names))
        return table(columns, rows)

    def scaling_laws(self) -> str:
        """What a straight line says about larger bases, with prediction intervals and its own test."""
        columns = ("base", "figure", "with every doubling", *(f"at {size / 1e9:.0f}B" for size in scaling.TARGETS))
        rows = []
        for arm, points in scaling.by_arm(self._sizes()).items():
            for name, label in scaling.FIGURES.items():
                law = scaling.fit(points, name)
                if law is None:
                    continue
                form = ".2f"
                ranges = [(law.at(size), law.interval(size)) for size in scaling.TARGETS]
                rows.append(
                    (
                        arm,
                        label,
                        f"× {2**law.b:.3f}" if law.power else f"{law.b * scaling.LOG2:+.3f}",
                        *(f"{at:{form}} [{low:{form}}, {high:{form}}]" for at, (low, high) in ranges),
                        _tested(scaling.largest_from_others(points, name)),
                    )
                )
        return table((*columns, "largest, from the others → measured"), rows)

    def scaling_plot(self) -> str:
        """Figures over parameters, one line of panels for each arm with enough sizes."""
        parts = []
        for arm, points in scaling.by_arm(self._sizes()).items():
            laws = {name: scaling.fit(points, name) for name in scaling.FIGURES}
            if any(law is not None for law in laws.values()):
                text = f"Figures of the {arm} bases over their parameters, with the fitted laws"
                parts.append(self._plot(f"scaling-{arm}", text, plots.scaling(points, laws)))
        return "\n\n".join(parts)

    def speed_plot(self, result: Result) -> str:
        """Milliseconds per token over the history, for both bases."""
        return self._plot("speed-decode", "Milliseconds per token over tokens of history", speed.drawn(result))

    def sources(self, *kinds: str) -> str:
        """Every result file of these kinds, or of all that are about models."""
        chosen = {
            kind: named for kind, named in self.results.by_kind.items() if (kind in kinds if kinds else kind not in OWN_PAGES)
        }
        names = [("runs/" if kind == "run" else "") + name for kind, named in chosen.items() for name in named]
        return ", ".join(f"`{name}.json`" for name in sorted(names))

    def session_strips(self, session: Mapping[str, Any]) -> str:
        """The window of a recorded session after every refocus."""
        return self._plot("session-strips", "How a session's window was spent after every refocus", walkthrough.strips(session))

    def session_spent(self, session: Mapping[str, Any]) -> str:
        """What every token of a recorded session sent through the base."""
        return self._plot("session-spent", "Slots through the base for every decoded token", walkthrough.spent(session))

    def _sizes(self) -> list[scaling.Size]:
        return scaling.sizes(self.results.of("run").values())

    def _plot(self, name: str, text: str, drawn: str) -> str:
        self.figures[f"{name}.svg"] = drawn
        return f"![{text}](poc_results/{name}.svg)"


def _recovered(arm: Mapping[str, Any] | None) -> str:
    return with_interval(arm, "recovered", ".2f") if arm is not None and "recovered" in arm else "–"


def recall_raw(result: Result) -> str:
    """What the base does with a recall task when it reads everything."""
    return table(RAW_COLUMNS, raw_rows(result))


def recall_memory(result: Result) -> str:
    """What comes of it through the memory."""
    return table(*memory_table(result))


def difference(result: Result, pair: str) -> str:
    """A paired difference in words: nats, interval, and what it allows to say."""
    found = result["differences"].get(pair)
    if found is None:
        raise ConfigError(f"no difference {pair} in this result; it has {', '.join(result['differences'])}")
    ((_, text, verdict),) = difference_rows({pair: found})
    return f"{text} nats ({verdict})"


def capacity_table(result: Result) -> str:
    """Optimised vectors beside the encoder's gists, and the shares of the former's gains that the encoder reaches."""
    rows = [
        (
            label,
            f"{arm['slots']:.0f}",
            with_interval(arm, "nll", ".3f"),
            with_interval(arm, "recovered", ".2f") if "recovered" in arm else "–",
            with_interval(arm["far_copy"], "recovered", ".2f") if "recovered" in arm["far_copy"] else "–",
        )
        for label, arm in ((label, result["arms"].get(name)) for name, label in CAPACITY_LABELS.items())
        if arm is not None
    ]
    text = table(("beside the tail", "slots", "NLL [95 %]", "recovered [95 %]", "on far-copy tokens"), rows)
    reached = [
        (
            CAPACITY_LABELS[bound],
            with_interval(found, "share", ".2f") if found["judged"] else "not judged",
            with_interval(found["far_copy"], "share", ".2f") if found["far_copy"]["judged"] else "not judged",
        )
        for bound, found in result["reached"].items()
    ]
    columns = ("of what is gained over drop by vectors …", "the encoder reaches [95 %]", "on far-copy tokens")
    return text + "\n\n" + table(columns, reached)


def targets(result: Result) -> str:
    """The targets that were set beforehand, what was measured, and whether that is within them."""
    return table(("target", "measured [95 %]", ""), target_rows(result))


def storage_table(result: Result) -> str:
    """Every timed record of a storage result: the memory beside the plain file."""
    return table(STORAGE_COLUMNS, storage_rows(result))


def storage_aims(result: Result) -> str:
    """What was aimed at, what was measured, and whether that is within it."""
    return table(("", "aim", "measured", ""), storage_summary(result))


def environment(result: Result) -> str:
    """Machine, versions and commit of a result."""
    found: Mapping[str, Any] = result["environment"]
    commit = found["commit"][:12] if found.get("commit") else "unknown"
    return (
        f"{found['machine']}, {found['threads']} threads, Python {found['python']}, torch {found['torch']}, "
        f"transformers {found['transformers']}, commit `{commit}`"
    )


def _tested(found: tuple[float, float] | None) -> str:
    return "–" if found is None else f"{found[0]:.3f} → {found[1]:.3f}"
