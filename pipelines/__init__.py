"""The entry points: ``python -m pipelines.run`` and ``python -m pipelines.report``."""
