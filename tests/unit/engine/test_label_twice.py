from __future__ import annotations

from megacontext.engine.memory import Memory


def test_a_label_that_is_put_on_twice_stays(memory: Memory) -> None:
    """A document's record is shown with its labels; what equals it then is still a change of what was recorded at first."""
    for _ in range(2):
        assert memory.label("text:functions", add=["secret"], tag=["draft"]).labels == ("secret",)
    assert memory.label("text:functions", untag=["draft"]).labels == ("secret",)
    assert memory.labels_of("text:functions").tags == ()
    memory.add(text="another version", name="functions")
    assert memory.labels_of("text:functions").labels == ("secret",)
