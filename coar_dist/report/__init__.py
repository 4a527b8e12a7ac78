"""What a run has found, for people: tables, figures, the report page."""
