"""Hydra configuration: installed as ``coar_dist.conf``."""
