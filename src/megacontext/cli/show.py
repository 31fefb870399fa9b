"""megacontext show: one commit, document or node."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megacontext.cli import output
from megacontext.cli.changes import change_facts, change_lines, counted, print_lines
from megacontext.cli.kept import kept_line
from megacontext.cli.layers import coverage
from megacontext.cli.log import commit_facts, local_time
from megacontext.cli.text import beginning
from megacontext.cli.verb import Call, quiet_loading
from megacontext.errors import DetailPruned, ModelError, UnknownReference

if TYPE_CHECKING:
    from megacontext.engine.kept import Kept
    from megacontext.engine.memory import Memory
    from megacontext.storage import DocumentRecord, Snapshot

_NODE = re.compile(r"(\d{1,2}):(\d{1,18})")
_SOURCES = 8
_KEPT = 12
# As in a GistNet's configuration.
KEY_VALUE = "megacontext-kv-gistnet"


def show(
    call: Call,
    what: Annotated[
        str,
        typer.Argument(
            metavar="COMMIT|DOCUMENT|NODE",
            help="A commit, branch or tag; a document by its source or the end of it; or a node as LOD:INDEX, such as "
            "2:5 (0:INDEX is a raw block).",
        ),
    ],
    at: Annotated[str | None, typer.Option(metavar="REF", help="Look at the memory as of this branch, tag or commit.")] = None,
) -> None:
    """Show a commit and what it changed, the text of a document, or a node of the tree.

    A document's text comes back exactly as it was added; with --at, as it was then.
    """
    memory = call.memory()
    if match := _NODE.fullmatch(what):
        _show_node(call, memory, memory.snapshot(at), int(match[1]), int(match[2]))
        return
    snapshot = memory.snapshot(at)
    document = next((each for each in snapshot.documents.live() if each.source == what), None)
    if document is None and (name := _commit_name(memory, what)) is not None:
        _show_commit(call, memory, name)
        return
    _show_document(call, memory, snapshot, document or _find(memory, snapshot, what))


def _commit_name(memory: Memory, what: str) -> str | None:
    try:
        return memory.repository.resolve(what)
    except UnknownReference as error:
        if "more digits" in str(error) or "does not exist" in str(error):
            raise
        return None


def _find(memory: Memory, snapshot: Snapshot, what: str) -> DocumentRecord:
    try:
        return memory.find_document(what, snapshot)
    except UnknownReference as error:
        raise UnknownReference(f"{what!r} is no branch, tag or commit, and {error}") from error


def _show_commit(call: Call, memory: Memory, name: str) -> None:
    commit, layers = memory.repository.commit(name), memory.layers(name)
    documents = sum(1 for _ in memory.snapshot(name).documents.live())
    rows = [
        ("commit", name),
        ("parents", ", ".join(output.short(each) for each in commit.parents) or "none"),
        ("time", local_time(commit.time)),
        ("author", commit.author or "unknown"),
        ("message", commit.message),
        ("documents", f"{documents:,}"),
        ("blocks", f"{commit.blocks:,}"),
        ("layers", "\n           ".join(map(coverage, layers)) or "none"),
    ]
    changes = change_facts(memory.changes(name))
    value = {"kind": "commit", **commit_facts(name, commit), "documents": documents, **changes}
    value["layers"] = [each.to_json() for each in layers]

    def human() -> None:
        output.facts([*rows, ("changes", counted(changes))])
        print_lines(change_lines(changes))

    call.show(value, human)


def _show_document(call: Call, memory: Memory, snapshot: Snapshot, record: DocumentRecord) -> None:
    text = memory.text(record, snapshot)
    call.show({"kind": "document", **record.to_json(), "text": text}, lambda: output.piece(text))


def _show_node(call: Call, memory: Memory, snapshot: Snapshot, lod: int, index: int) -> None:
    facts = node_facts(memory, snapshot, lod, index)
    kept = [] if facts["pruned"] else _kept(memory, snapshot, lod, index)
    facts["kept"] = [each.to_json() for each in kept]
    rows = [
        ("node", f"LOD{lod} #{index}" if lod else f"raw block #{index}"),
        ("tokens", f"{facts['start']:,}..{facts['stop'] - 1:,} ({facts['real_tokens']:,} real)"),
        ("dead", f"{facts['dead']:,} of {facts['blocks']:,} blocks: superseded or removed" if facts["dead"] else "none"),
        ("sources", "\n         ".join(_place(each) for each in facts["sources"])),
        ("gist", "\n        ".join(map(_gist, facts["gists"])) or "none"),
        ("text", beginning(facts["text"], 200) if facts["text"] or not facts["pruned"] else "pruned: megacontext restore"),
        *[("keeps" if at == 0 else "", kept_line(each)) for at, each in enumerate(kept[:_KEPT])],
    ]
    if len(kept) > _KEPT:
        rows.append(("", f"and {len(kept) - _KEPT} more"))
    if facts["more_sources"]:
        rows.insert(4, ("", f"and {facts['more_sources']} more"))
    call.show({"kind": "node", **facts}, lambda: output.facts(rows))


def node_facts(memory: Memory, snapshot: Snapshot, lod: int, index: int) -> dict[str, Any]:
    """A complete node: span in tokens, how many of its blocks are dead, documents that it touches, norm of each gist vector,
    the first block's text.

    Raises UnknownReference for a node that is not complete.
    """
    import numpy as np

    from megacontext.core import BLOCK, node_blocks

    levels = {0: snapshot.blocks} | {each: snapshot.blocks >> 5 * (each - 1) for each in range(1, 13)}
    if lod not in levels or index >= levels[lod]:
        there = ", ".join(f"{each}:0 to {each}:{count - 1}" for each, count in levels.items() if count)
        raise UnknownReference(f"no node {lod}:{index}; there are {there or 'none yet: add something first'}")
    start, stop = node_blocks(lod, index)
    blocks = np.arange(start, stop)
    ordinals = np.unique(snapshot.documents_at(blocks)).tolist()
    firsts = [max(start, snapshot.documents[each].start_block) for each in ordinals[:_SOURCES]]
    lines = snapshot.spans_at(np.array(firsts, dtype=np.int64))[1].tolist()
    sources = [snapshot.documents[each].source for each in ordinals[:_SOURCES]]
    return {
        "lod": lod,
        "index": index,
        "start": start * BLOCK,
        "stop": stop * BLOCK,
        "blocks": stop - start,
        "dead": int(snapshot.timeline().dead_mask(np.zeros(len(blocks), np.int8), blocks).sum()),
        "real_tokens": int(snapshot.fill_at(blocks).sum(dtype=np.int64)),
        "sources": [{"source": source, "line": line} for source, line in zip(sources, lines, strict=True)],
        "more_sources": max(0, len(ordinals) - _SOURCES),
        "gists": _gists(snapshot, lod, index),
        "pruned": int(snapshot.timeline().finest(blocks).sum()),
        "text": _beginning_of(memory, snapshot, start, min(stop, start + 4)),
    }


def _beginning_of(memory: Memory, snapshot: Snapshot, start: int, stop: int) -> str:
    """The text of blocks, as far as it is there."""
    try:
        return memory.text_of_blocks(snapshot, start, stop)
    except DetailPruned:
        return ""


def _kept(memory: Memory, snapshot: Snapshot, lod: int, index: int) -> list[Kept]:
    """What a key/value gist keeps; it takes the model to tell, which is loaded only where there is such a gist."""
    from megacontext.engine.model_folder import gist_kind

    if not lod or not snapshot.layers or gist_kind(memory.model) != KEY_VALUE:
        return []
    quiet_loading(memory.model)
    try:
        return memory.kept(lod, index, snapshot)
    except ModelError as error:
        output.warning(f"note: what the gist keeps cannot be told: {error}")
        return []


def _gists(snapshot: Snapshot, lod: int, index: int) -> list[dict[str, Any]]:
    """The length of each gist vector of a node, for each layer that covers it; none for a raw block."""
    import numpy as np

    found = []
    for name in sorted(snapshot.layers) if lod else ():
        layer = snapshot.layer(name)
        if index < layer.count(lod):
            vectors = layer.gists(lod, index, index + 1)[0].astype(np.float32)
            found.append({"layer": name, "norms": np.linalg.norm(vectors, axis=-1).tolist()})
    return found


def _gist(each: dict[str, Any]) -> str:
    return f"of {output.short(each['layer'])}: " + ", ".join(f"norm {norm:.3f}" for norm in each["norms"])


def _place(each: dict[str, Any]) -> str:
    return f"{each['source']}:{each['line']}" if each["line"] > 0 else str(each["source"])
