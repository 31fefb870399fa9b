"""How result files become tables, curves and prose of the docs; run by ``tools.render_results``."""
