"""What a run tells people while it is under way: lines, progress, tables, logs, trackers."""
