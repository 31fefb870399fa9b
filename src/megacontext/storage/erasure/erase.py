"""Erasing documents: what would go (`survey`), and making it so (`erase`).

Everything new is made and checked aside first; then a note is written from which on it happens, whatever crashes (`intent`,
`finish`). Before the note a crash leaves objects that nothing names.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from megacontext.errors import EraseIncomplete, InvariantError, ProtectedTag, UnknownReference
from megacontext.storage.closure import ORIGINAL, Closure
from megacontext.storage.commit import load_commit
from megacontext.storage.documents import DocumentRecord, load_page
from megacontext.storage.erased import load_erased
from megacontext.storage.erasure.doomed import Doomed, Records, completed, page_names
from megacontext.storage.erasure.evidence import Evidence
from megacontext.storage.erasure.finish import all_branches, all_refs, erasing, finish, place_of
from megacontext.storage.erasure.intent import Intent, load_intent
from megacontext.storage.erasure.names import name_needles, redactor, text_needles
from megacontext.storage.erasure.needles import NAMES, Finder
from megacontext.storage.erasure.proof import Scan, scan
from megacontext.storage.erasure.rewrite import Remake, Rewriter, Rewritten, in_order
from megacontext.storage.gists import LayerSpec
from megacontext.storage.labels import load_labels
from megacontext.storage.objects import ObjectReader
from megacontext.storage.place import Place, local_store
from megacontext.storage.refs import TAGS, Refs
from megacontext.storage.stubs import Stubs
from megacontext.storage.whole import WholeReader, WholeStore

# Quoted names of branches hold no "+".
_STAGING = "+erase"


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What an erasure would touch: `records` that go, distinct; the `commits` that would be written anew; the `refs` (kind and
    name) that would move, of which the `protected` tags stand in the way."""

    records: tuple[DocumentRecord, ...]
    commits: tuple[str, ...]
    refs: tuple[tuple[str, str], ...]
    protected: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be erased, and how: `remake` gives what makes gists of a layer again (None: that GistNet is not at hand);
    `texts` are pieces of what goes, to look for."""

    doomed: Doomed
    remake: Callable[[LayerSpec], Remake | None]
    texts: Sequence[str] = ()
    author: str = ""
    include_protected: bool = False


def all_records(reader: ObjectReader, commits: Iterable[str]) -> list[DocumentRecord]:
    """The distinct records of these commits."""
    pages = dict.fromkeys(page for name in commits for page in page_names(reader, load_commit(reader, name)))
    return list(dict.fromkeys(record for page in pages for record in load_page(reader, page)))


def reached_commits(root: Path) -> list[str]:
    """Every commit that a branch or a tag leads to, each after its parents."""
    return in_order(ObjectReader(local_store(root, "unused")), (commit for _, _, commit in all_refs(root)))


def survey(root: Path, doomed: Doomed) -> Survey:
    """What erasing these documents would touch; what journals hold is not looked at. Changes nothing."""
    reader = ObjectReader(local_store(root, "unused"))
    refs = all_refs(root)
    order = in_order(reader, (commit for _, _, commit in refs))
    records = Records(reader, doomed)
    kept = _kept_strings(root, reader, order, doomed)
    redact = redactor(doomed.sources, kept)
    touched: dict[str, None] = {}
    found: dict[DocumentRecord, None] = {}
    for name in order:
        commit = load_commit(reader, name)
        gone = records.doomed(commit)
        found.update(dict.fromkeys(gone))
        if gone or any(parent in touched for parent in commit.parents) or redact(commit.message) != commit.message:
            touched[name] = None
    moved = tuple((kind, name) for kind, name, commit in refs if commit in touched)
    protected = tuple(name for kind, name in moved if kind == TAGS and Refs(root).protected(kind, name))
    return Survey(records=tuple(found), commits=tuple(touched), refs=moved, protected=protected)


def erase(root: Path, order: Order) -> dict[str, Any]:
    """Erases documents from the memory at `root`; returns the receipt, which the audit log has as well.

    What is pruned is erased in its archive, too. Raises MissingObject where that is not at hand, UnknownReference where there
    is no such document, ProtectedTag where one stands in the way, BranchLocked where a branch is being written,
    InvariantError where the scan cannot see what is there: nothing is changed then. Raises EraseIncomplete where the scan
    still finds something afterwards; then `finish` tries again.
    """
    with erasing(root):
        left: Intent | None = None
        try:
            finish(root)
        except EraseIncomplete:
            left = load_intent(root)
        place = place_of(root)
        with all_branches(place):
            _prepare(root, place, order, left).save(root)
        receipt = finish(root)
    assert receipt is not None
    return receipt


@dataclass
class _Plan:
    doomed: Doomed
    seen: Survey
    done: Rewritten
    evidence: Evidence
    kept: frozenset[str]
    kept_texts: frozenset[str]


def _prepare(root: Path, place: Place, order: Order, left: Intent | None) -> Intent:
    """Makes everything new, durably, and checks it; returns the note."""
    reader = place.whole()
    commits = in_order(reader, (commit for _, _, commit in all_refs(root)))
    records = all_records(reader, commits)
    doomed = completed(order.doomed, records)
    texts = frozenset(record.text_hash for record in records if record not in doomed)
    seen = survey(root, doomed)
    if not seen.records:
        raise UnknownReference("there is no such document in any branch, tag or commit")
    if seen.protected and not order.include_protected:
        tags = ", ".join(seen.protected)
        message = f"what is to be erased is under protected tags ({tags}): --include-protected erases it there, too"
        raise ProtectedTag(message, seen.protected)
    store = WholeStore(root, _STAGING)
    for original in {record.original for record in seen.records} - {""}:
        # It is erased in its archive, too: that has to be at hand.
        store.get(original)
    store.clean()
    try:
        kept = _kept_strings(root, reader, commits, doomed)
        evidence = Evidence(reader, place.segment_blocks)
        rewriter = Rewriter(store, place.segment_blocks, doomed, order.remake, redactor(doomed.sources, kept), evidence)
        done = rewriter.history(commits)
        evidence.check(done, doomed, WholeReader(store))
        intent = _Proof(root, store, _Plan(doomed, seen, done, evidence, kept, texts)).note(order, left)
        store.sync()
    except BaseException:
        store.discard()
        raise
    return intent


class _Proof:
    """The scan before anything goes, and the note that the scan after it goes by."""

    def __init__(self, root: Path, store: WholeStore, plan: _Plan) -> None:
        self._root, self._store, self._plan = root, store, plan

    def note(self, order: Order, left: Intent | None) -> Intent:
        """The note of an erasure; `left` is an earlier one that was not finished."""
        plan = self._plan
        names, originals = self._new_objects()
        needles = plan.evidence.needles() + name_needles(plan.doomed.sources, plan.kept) + text_needles(order.texts)
        finder = Finder([*needles, *(left.needles if left else ())])
        elsewhere = sorted({*Stubs(self._root).elsewhere(), *(left.elsewhere if left else ())})
        before = scan(self._root, finder, originals, elsewhere)
        shared = self._shared(finder, before, names, originals)
        self._check_sight(finder, before, shared)
        erased = load_erased(self._root)
        texts = plan.evidence.texts() - plan.kept_texts
        versions = {(each.source, each.version, each.text_hash) for each in plan.seen.records if not each.removed}
        receipt = {
            "documents": len({record.source for record in plan.seen.records}),
            "versions": len(versions),
            "sources": sorted(erased.key_hash(source) for source in plan.doomed.sources),
            "blocks": plan.evidence.blocks,
            "commits": len(plan.done.renamed),
            "refs": len(plan.seen.refs),
            "messages": plan.done.redacted,
            "dropped_layers": sorted(plan.done.dropped),
            "protected": len(plan.seen.protected),
            "before": before.report(finder, shared),
            "shared": dict(finder.by_kind(shared)),
        }
        return Intent(
            id=secrets.token_hex(8),
            author=order.author,
            renamed={**(left.renamed if left else {}), **plan.done.renamed},
            erased=erased.with_erased(plan.doomed.sources, texts).to_json(),
            originals=sorted(originals),
            receipt=receipt,
            needles=finder.without(shared).needles,
            elsewhere=elsewhere,
        )

    def _new_objects(self) -> tuple[set[str], set[str]]:
        """What branches and tags will lead to, and the texts of documents among that."""
        closure, originals = Closure(WholeReader(self._store)), set()
        roots = {self._plan.done.renamed.get(commit, commit) for _, _, commit in all_refs(self._root)}
        for named in closure.of(sorted(roots)):
            if named.kind == ORIGINAL:
                originals.add(named.name)
        return closure.names, originals

    def _shared(self, finder: Finder, before: Scan, names: set[str], originals: set[str]) -> set[int]:
        """Needles that what stays holds as well: equal blocks of other documents. `Evidence.check` made sure that nothing
        else is left of them in there."""
        shared: set[int] = set()
        staged = self._staged()
        known: dict[str, set[int]] = {}
        for path, counts in before.found.items():
            known.setdefault(PurePath(path).name, set()).update(counts)
        for name in sorted(names):
            found = known.get(name) or set(finder.find(self._store.get(name)) if name in staged else ())
            kinds = {finder.needles[number].kind for number in found}
            if NAMES in kinds and name not in originals:
                raise InvariantError(f"a name that is to be erased would still stand in object {name}: nothing was changed")
            shared |= found
        return {number for number in shared if finder.needles[number].kind != NAMES}

    def _staged(self) -> set[str]:
        return {path.name for path in (self._root / "staging" / _STAGING).glob("*")}

    def _check_sight(self, finder: Finder, before: Scan, shared: set[int]) -> None:
        """A scan that does not find what is there proves nothing."""
        seen, own = before.numbers | shared, set(self._plan.evidence.needles())
        blind = [each for number, each in enumerate(finder.needles) if each in own and number not in seen]
        named = any(finder.needles[number].kind == NAMES for number in before.numbers)
        if blind or (self._plan.doomed.sources and not named):
            what = f"{len(blind)} of {len(own)} blocks and gists" if blind else "any of the names"
            raise InvariantError(f"the scan does not see {what} that are there, so it would prove nothing: nothing was changed")


def _kept_strings(root: Path, reader: ObjectReader, commits: Sequence[str], doomed: Doomed) -> frozenset[str]:
    """Names of what stays, which may hold a name that goes: sources, tags, labels, authors, branches."""
    kept: set[str] = {name for _, name, _ in all_refs(root)}
    for record in all_records(reader, commits):
        if record not in doomed and record.source not in doomed.sources:
            kept.update((record.source, record.media_type, *record.tags, *record.labels))
    for name in commits:
        commit = load_commit(reader, name)
        kept.add(commit.author)
        labels = load_labels(reader, commit.labels)
        kept.update(labels.ranges)
        for marks in labels.documents.values():
            kept.update((*marks.tags, *marks.labels))
    return frozenset(kept - {""})
