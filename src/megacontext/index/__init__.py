"""Search indexes over a memory: derived from storage, disposable, rebuilt whenever they are missing or damaged."""
