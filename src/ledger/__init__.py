"""Ledger slots and their hash chain, and what the services look like to the promotion."""
