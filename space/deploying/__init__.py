"""Push the bundle to a Space on the Hugging Face Hub, and check the live Space."""
