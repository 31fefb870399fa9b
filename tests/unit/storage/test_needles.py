"""Many needles in a haystack, against plain searching."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from megacontext.storage.erasure.names import REDACTED, name_needles, redactor, text_needles
from megacontext.storage.erasure.needles import NAMES, TEXTS, Finder, Needle

# Few letters, so that needles overlap, repeat, and lie within each other.
HAY = st.lists(st.sampled_from([b"a", b"b", b"\0", b"abab", b"aaaa", b"baab" * 3]), max_size=60).map(b"".join)


def plain(data: bytes, needle: bytes) -> int:
    return sum(data.startswith(needle, at) for at in range(len(data)))


@given(hay=HAY, cuts=st.lists(st.tuples(st.integers(0, 200), st.integers(4, 70)), max_size=12), more=st.lists(HAY, max_size=4))
def test_as_plain_searching_finds_them(hay: bytes, cuts: list[tuple[int, int]], more: list[bytes]) -> None:
    texts = [hay[at % (len(hay) or 1) :][:size] for at, size in cuts] + more
    finder = Finder(Needle(TEXTS, text) for text in texts)
    counts = finder.find(hay)
    assert {each.data for each in finder.needles} == {text for text in texts if len(text) >= 4}
    for number, needle in enumerate(finder.needles):
        assert counts.get(number, 0) == plain(hay, needle.data)


def test_across_the_edges_of_what_is_looked_at_together() -> None:
    data = bytearray(np.random.default_rng(0).integers(0, 256, 1 << 18, np.uint8).tobytes())
    needle = b"sixteen bytes and more"
    for at in (0, (1 << 16) + 1, (1 << 17) - 7, len(data) - len(needle)):
        data[at : at + len(needle)] = needle
    assert Finder([Needle(TEXTS, needle)]).find(bytes(data)) == {0: 4}


def test_names_within_longer_ones_are_excused() -> None:
    finder = Finder(name_needles(["file:a.txt"], ["file:a.txt.old", "profile:a.txt", "else"]))
    assert not finder.find(b'"file:a.txt.old" profile:a.txt "source":"file:a.txt.old"')
    assert finder.find(b"file:a.txt.ol")
    assert finder.find(b'{\\"source\\":\\"file:a.txt\\"}')


def test_a_name_that_is_a_word_of_the_format_is_sought_where_names_stand() -> None:
    finder = Finder(name_needles(["documents"], []))
    assert not finder.find(b'{"kind":"documents","records":[]}')
    assert finder.find(b'{"kind":"documents","records":[{"source":"documents"}]}')


def test_names_are_sought_as_json_spells_them() -> None:
    finder = Finder(name_needles(['file:"ä".txt'], []))
    for data in ('file:"ä".txt', 'file:\\"ä\\".txt', 'file:\\"\\u00e4\\".txt'):
        assert finder.find(data.encode()), data
    assert {needle.kind for needle in finder.needles} == {NAMES}


def test_short_texts_are_not_sought() -> None:
    assert not text_needles(["short", " " * 80])
    assert text_needles(["a text that is long enough to tell"])


def test_messages() -> None:
    redact = redactor(["file:src/a.txt", "text:notes"], ["file:src/a.txt.old", "file:lib/b.txt", "file:x/footnotes"])
    assert redact("Remove file:src/a.txt, src/a.txt and a.txt") == f"Remove {REDACTED}, {REDACTED} and {REDACTED}"
    assert redact("Keep file:src/a.txt.old and data.txt; b.txt") == "Keep file:src/a.txt.old and data.txt; b.txt"
    assert redact("About notes, not footnotes") == f"About {REDACTED}, not footnotes"
    assert redactor([], ["x"])("nothing") == "nothing"
