"""The Hugging Face Hub: client, identity, repository, upload and card."""
