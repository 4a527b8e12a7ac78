"""Of what output: a model, the examples whose outputs are explained, and the output function."""
