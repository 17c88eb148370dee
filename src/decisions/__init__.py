"""A decision as a record, in words, in the history, and under another policy."""
