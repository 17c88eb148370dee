"""What each command does; the only package that joins src and utils."""
