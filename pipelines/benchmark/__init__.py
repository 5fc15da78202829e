"""How fast the engine is, beside the authors' way, in one run on one machine."""
