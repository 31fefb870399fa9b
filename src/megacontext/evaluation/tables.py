"""Tables for people from result files: never typed by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LABELS = {
    "drop": "drop: the tail alone (floor)",
    "recency": "recency: the newest raw tokens",
    "recency_sinks": "recency with 4 sinks",
    "suffix": "suffix: raw blocks by longest match",
    "bm25": "BM25: raw blocks by the newest tokens",
    "dense": "dense: raw blocks by a bi-encoder",
    "noise": "noise as gists (control)",
    "mean": "mean-pooled gists (control)",
    "rarest": "rarest token as gist (control)",
    "swapped": "swapped gists (control)",
    "gist": "gists, nothing expanded",
    "random_expand": "gists, random expanded",
    "recent_expand": "gists, newest expanded",
    "cosine": "gists, expanded by cosine to the tail",
    "megacontext": "MegaContext (LensNet)",
    "oracle": "oracle: looks at the answer",
    "full": "full: all raw (ceiling)",
}
"""What each arm shows the base beside the tail, in the order of tables."""

COLUMNS = ("beside the tail", "slots", "NLL", "recovered [95 %]", "far-copy", "recovered")


def quality_rows(arms: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One row an arm: label, slots, NLL, recovered with its interval; NLL and recovered on far-copy tokens."""
    rows: list[tuple[str, ...]] = []
    for name, label in LABELS.items():
        arm = arms.get(name)
        if arm is None:
            continue
        copied = arm["far_copy"]
        rows.append(
            (
                label + _conditions(arm),
                f"{arm['slots']:.0f}",
                _figure(arm, "nll", ".3f"),
                _with_interval(arm, "recovered", ".2f"),
                _figure(copied, "nll", ".3f"),
                _figure(copied, "recovered", ".2f"),
            )
        )
    return rows


def _conditions(arm: Mapping[str, Any]) -> str:
    """What an arm differs in from its neighbours: its interval, and on how many items it ran."""
    parts = [f"every {arm['renewal']}"] if "renewal" in arm else []
    parts += [f"{arm['items']} items"] if "items" in arm else []
    return f" ({', '.join(parts)})" if parts else ""


def quality_markdown(result: Mapping[str, Any]) -> str:
    """A quality result as Markdown: gate, arms and differences, budgets, levels, distances, costs; what is there."""
    parts = [
        _table(COLUMNS, quality_rows(result["arms"])),
        gate_sentence(result["gate"]),
        _differences(result["differences"]),
        *(summary_sentences(result)),
        *(_budget(name, found) for name, found in result.get("budgets", {}).items() if found.get("arms")),
        _renewal(result),
        *(level_sentences(result)),
        _distances(result),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def summary_sentences(result: Mapping[str, Any]) -> list[str]:
    """What the gists carry of this history, and what they cost where they are not needed."""
    sentences = []
    gist = result["arms"].get("gist", {})
    if "delta_nll" in gist:
        share, ends = gist["delta_nll_share"], gist["delta_nll_share_ci"]
        sentences.append(
            f"With the whole far context as gists, ΔNLL = {_with_interval(gist, 'delta_nll', '+.3f')} nats, {share:.1%} "
            f"[{ends[0]:.1%}, {ends[1]:.1%}] of the NLL with all of it raw."
        )
    if "real" in result:
        sentences.append(
            f"Real information, recovered(gist) − recovered(swapped): {_with_interval(result['real'], 'recovered', '.2f')}, "
            f"on far-copy tokens {_with_interval(result['real']['far_copy'], 'recovered', '.2f')}."
        )
    if "unneeded_cost" in result:
        cost = result["unneeded_cost"]
        sentences.append(
            f"{cost['gists']} gists of an unrelated history in front of {cost['raw_tokens']} raw tokens cost "
            f"{cost['nats']:+.4f} nats [{_interval(cost['ci'], '+.4f')}]."
        )
    if "reconstruction" in result:
        found = result["reconstruction"]
        sentences.append(
            f"Tokens reconstructed from their gist: {found['tokens']:.1%} [{found['tokens_ci'][0]:.1%}, "
            f"{found['tokens_ci'][1]:.1%}]; from another block's gist {found['swapped']:.1%}."
        )
    return sentences


def level_sentences(result: Mapping[str, Any]) -> list[str]:
    """LOD2 and LOD3: what they gain over dropping their tokens, beside their controls."""
    sentences = []
    for name in ("lod2", "lod3"):
        found = result.get(name, {})
        for place, level in (("", found), (" right before the tail", found.get("adjacent", {}))):
            if "gain" not in level:
                continue
            config, differences = level["config"], level["differences"]
            text = (
                f"{name.upper()}{place}: {config['spans']} gist(s) for {config['far']:,} tokens gain "
                f"{_with_interval(level, 'gain', '+.4f')} nats over dropping them ({config['items']} items"
            )
            for control in ("swapped", "mean", "noise"):
                difference = differences.get(f"{name}-{name}_{control}")
                if difference:
                    text += f"; against {control} {difference['diff']:+.4f} [{_interval(difference['ci'], '+.4f')}]"
            text += ")."
            if level.get("judged"):
                text += f" Of what LOD1 gists of the same tokens gain, {_with_interval(level, 'kept_of_lod1', '.0%')} is kept."
            elif "judged" in level:
                text += " LOD1 gists of the same tokens gain nothing clear here, so the share kept is not judged."
            sentences.append(text)
    return sentences


def difference_rows(differences: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Pair, difference with interval, and what the interval allows to say."""
    rows = []
    for pair, value in differences.items():
        low, high = value["ci"]
        verdict = "lower" if high < 0 else "higher" if low > 0 else "no clear difference"
        rows.append((pair.replace("-", " − "), f"{value['diff']:+.3f} [{_interval(value['ci'], '+.3f')}]", verdict))
    return rows


def gate_sentence(gate: Mapping[str, Any]) -> str:
    """Whether the base uses far context on these items at all."""
    if "drop_minus_full_ci" not in gate:
        return "Gate: not judged, since the base cannot read the whole context raw."
    verdict = "judged" if gate["judged"] else "NOT judged: this base does not use far context enough on these items"
    copied = (
        f"{gate['drop_minus_full_far_copy']:.3f} [{_interval(gate['ci'], '.3f')}] on far-copy tokens"
        if "drop_minus_full_far_copy" in gate
        else "no far-copy tokens"
    )
    return (
        f"Gate: drop − full = {gate['drop_minus_full']:.3f} nats [{_interval(gate['drop_minus_full_ci'], '.3f')}], "
        f"{copied} ({verdict})."
    )


def budget_title(name: str, found: Mapping[str, Any]) -> str:
    """A budget in words, with the oracle's share where it is known."""
    share = f"; {_with_interval(found, 'share_of_oracle', '.2f')} of the oracle's gain" if "share_of_oracle" in found else ""
    return f"{name} of the far context, {found['slots']} slots beside the tail{share}"


def choice_sentence(found: Mapping[str, Any]) -> str:
    """Where a budget leaves nothing to choose, that; else ''."""
    if found.get("openings", 1):
        return ""
    return (
        "Nothing to choose at this budget: the gists of all blocks leave less than one more block takes, so every arm that "
        "expands gists shows the gists alone, and only those are compared."
    )


def _budget(name: str, found: Mapping[str, Any]) -> str:
    rows = [
        (*row[:3], forwards, *row[3:])
        for row, forwards in zip(quality_rows(found["arms"]), _forwards(found["arms"]), strict=True)
    ]
    columns = (*COLUMNS[:3], "forwards", *COLUMNS[3:])
    title = f"**Budget {budget_title(name, found)}**"
    parts = (title, choice_sentence(found), _table(columns, rows), _differences(found["differences"]))
    return "\n\n".join(part for part in parts if part)


def _forwards(arms: Mapping[str, Any]) -> list[str]:
    return [_figure(arms[name], "token_forwards", ".1f") for name in LABELS if name in arms]


def _renewal(result: Mapping[str, Any]) -> str:
    """Every arm that chooses, by budget and interval: what it recovers, spends, and how far MegaContext is below it."""
    tables = []
    for budget, found in result.get("budgets", {}).items():
        parts = found.get("renewal", {})
        if found.get("openings", 1) and parts:
            tables.append(_renewal_table(budget, parts))
    return "\n\n".join(tables)


def _renewal_table(budget: str, parts: Mapping[str, Any]) -> str:
    intervals = sorted(parts, key=int, reverse=True)
    rows = []
    for name in LABELS:
        if name in ("recency", "recency_sinks") or not all(name in parts[each]["arms"] for each in intervals):
            continue
        cells = []
        for each in intervals:
            arm = parts[each]["arms"][name]
            cells += [_with_interval(arm, "recovered", ".2f"), _figure(arm, "token_forwards", ".1f")]
        rows.append((LABELS[name], *cells))
    shares = [_with_interval(parts[each], "share_of_oracle", ".2f") for each in intervals]
    rows.append(("MegaContext: share of the oracle's gain", *(cell for share in shares for cell in (share, ""))))
    items = {parts[each]["items"] for each in intervals if "items" in parts[each]}
    title = f"Budget {budget} by renewal interval" + (f" ({items.pop()} items)" if len(items) == 1 else "")
    columns = (title, *(text for each in intervals for text in (f"every {each}: recovered [95 %]", "forwards")))
    return _table(columns, rows)


def _distances(result: Mapping[str, Any]) -> str:
    found = result.get("by_distance", {})
    names = [name for name in LABELS if name != "full" and all("delta_nll" in part.get(name, {}) for part in found.values())]
    if not found or not names:
        return ""
    rows = [(LABELS[name], *(_with_interval(part[name], "delta_nll", "+.3f") for part in found.values())) for name in names]
    return _table(("ΔNLL by distance after the edge", *(f"tokens {each.replace('-', '–')}" for each in found)), rows)


def _differences(differences: Mapping[str, Any]) -> str:
    rows = difference_rows(differences)
    return _table(("paired difference", "nats [95 %]", ""), rows) if rows else ""


def _table(columns: tuple[str, ...], rows: list[Any]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|---" + "|---:" * (len(columns) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _figure(figures: Mapping[str, Any], name: str, form: str) -> str:
    return f"{figures[name]:{form}}" if name in figures else "–"


def _with_interval(figures: Mapping[str, Any], name: str, form: str) -> str:
    if name not in figures:
        return "–"
    return (
        f"{figures[name]:{form}} [{_interval(figures[f'{name}_ci'], form)}]"
        if f"{name}_ci" in figures
        else (f"{figures[name]:{form}}")
    )


def _interval(ends: tuple[float, float], form: str) -> str:
    return f"{ends[0]:{form}}, {ends[1]:{form}}"
