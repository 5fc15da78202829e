"""Pretrains the embedded world's models; see ``python -m pipelines.pretrain``."""
