"""Stage 1, the forward passes: the engine (one process, one device), the actor, the driver. Owner of ray."""
