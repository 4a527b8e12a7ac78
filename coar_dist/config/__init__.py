"""What can be set: the schema with its defaults, and everything that can be checked without a model."""
