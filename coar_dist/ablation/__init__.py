"""Forward and gradient passes of ablated models: the engine (one process, one device), and the actor that runs it."""
