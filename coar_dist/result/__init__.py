"""What a run found, as Python holds it: attributions as arrays and tables, pictures, and what can be done next."""
