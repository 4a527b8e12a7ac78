"""Stage 2: from margins to attributions, for every example at once. Owner of cuml."""
