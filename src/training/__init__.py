"""A LoRA adapter from a base model and two splits."""
