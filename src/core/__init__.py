"""What every stage shares: errors, parameters and records."""
