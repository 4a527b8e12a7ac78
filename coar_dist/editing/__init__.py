"""COAR-Edit: score, choose, apply, export."""
