"""A rehearsal of the whole pipeline at full size, with an engine whose margins cost next to nothing."""
