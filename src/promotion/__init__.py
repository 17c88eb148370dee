"""From a decision to a champion: protocol, release, card, rollback and status."""
