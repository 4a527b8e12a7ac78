"""The run directory: its identity, margin shards, attribution and evaluation tables. Owner of pyarrow."""
