"""Erasing documents from everything a memory holds, with proof. See `rewrite`, `proof` and `finish`."""
