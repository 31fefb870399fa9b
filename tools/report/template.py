"""Prose with placeholders: the only figures in it are those that a result file holds.

::

    <!-- let: best = quality.code-3m -->              a short name for a result, here and below
    <!-- needs: best, best.lod2 -->                   this section is left out unless all of these exist
    Gists recover {{best.arms.gist.recovered|.2f}} {{best.arms.gist.recovered_ci|ci.2f}}.
    {{arms_plot(best)}}                               a block: a table, a curve
    <!-- /needs -->

A placeholder is a path of field names joined by dots, with a format of Python after a bar; ``ci`` before the format writes
a pair as an interval. Sections do not nest. A path that leads nowhere outside a section that needs it is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from megacontext.errors import ConfigError

Block = Callable[..., str]
SECTION = re.compile(r"<!-- needs: ([^>]*?) -->\n(.*?)<!-- /needs -->\n", re.DOTALL)
LET = re.compile(r"<!-- let: (\w+) = ([^\s>]+) -->\n")
CALL = re.compile(r"(\w+)\((.*)\)")
PLACEHOLDER = re.compile(r"\{\{([^{}|]+)(?:\|([^{}]+))?\}\}")
NOTE = re.compile(r"<!-- note: .*? -->\n", re.DOTALL)


def render(template: str, data: Mapping[str, Any], blocks: Mapping[str, Block]) -> str:
    """The text with every placeholder resolved; ``blocks`` by the name by which the template calls them.

    ConfigError names the placeholder that leads nowhere, the block that is not there or the marker that is not closed.
    """
    known = dict(data)
    text = NOTE.sub("", template)
    for name, path in LET.findall(text):
        found = lookup(known, path)
        if found is not None:
            known[name] = found
    text = LET.sub("", text)
    text = SECTION.sub(lambda found: found[2] if _all_there(known, found[1]) else "", text)
    stray = re.search(r"<!-- /?(needs|let)\b.*", text)
    if stray:
        raise ConfigError(f"the template has a marker without its counterpart, or a section inside a section: {stray[0]}")
    text = PLACEHOLDER.sub(lambda found: _resolve(found[1].strip(), found[2], known, blocks), text)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def lookup(data: Mapping[str, Any], path: str) -> Any:
    """What lies at ``path`` (field names joined by dots), or None."""
    value: Any = data
    for name in path.strip().split("."):
        if not isinstance(value, Mapping) or name not in value:
            return None
        value = value[name]
    return value


def _all_there(data: Mapping[str, Any], paths: str) -> bool:
    found = [lookup(data, path) for path in paths.split(",")]
    return not any(value is None or (isinstance(value, Mapping | list) and not value) for value in found)


def _resolve(expression: str, form: str | None, data: Mapping[str, Any], blocks: Mapping[str, Block]) -> str:
    call = CALL.fullmatch(expression)
    if call:
        if call[1] not in blocks:
            raise ConfigError(f"the template calls {call[1]}(…), but there is only {', '.join(sorted(blocks))}")
        return blocks[call[1]](*(_argument(each.strip(), data) for each in call[2].split(",") if each.strip()))
    value = lookup(data, expression)
    if value is None:
        raise ConfigError(f"the template names {{{{{expression}}}}}, which no result file holds: name it in a 'needs' marker")
    if isinstance(value, Mapping):
        raise ConfigError(f"{{{{{expression}}}}} is no figure but has {', '.join(value)} inside")
    if form and form.startswith("ci"):
        low, high = value
        return f"[{low:{form[2:]}}, {high:{form[2:]}}]"
    return f"{value:{form or ''}}"


def _argument(text: str, data: Mapping[str, Any]) -> Any:
    """A block's argument: a quoted word, or what a path leads to."""
    if text.startswith('"') and text.endswith('"'):
        return text[1:-1]
    value = lookup(data, text)
    if value is None:
        raise ConfigError(f"the template hands {text} to a block, which no result file holds")
    return value
