"""COAR-Edit: which components to ablate so that some outputs change and others stay."""
