"""How MegaContext learns: corpus → tokenizer → base → GistNet → LensNet. See ``docs/training.md``."""
