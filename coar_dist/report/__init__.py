"""What a person sees: progress while a run works, and tables of what it found."""
