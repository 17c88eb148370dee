"""Raw conversations in, splits out, rows read back."""
