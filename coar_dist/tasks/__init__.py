"""What is explained: a model, its examples, and the output function."""
