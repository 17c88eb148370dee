"""The app: an OpenAI-compatible API and a chat page around one model."""
