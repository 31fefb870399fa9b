"""The engine: the only place that composes core, storage, models and index."""
