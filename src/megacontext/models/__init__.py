"""What is learned: the adapter over a frozen base model, GistNet, LensNet and position strategies.

Import names from the modules: ``base_lm``, ``cache``, ``gistnet``, ``lensnet``, ``positions``.
"""
