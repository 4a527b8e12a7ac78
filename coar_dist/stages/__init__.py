"""One module per stage: what it reads from the run directory, what it leaves there, what it says of it."""
