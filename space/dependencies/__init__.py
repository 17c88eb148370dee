"""The requirements of the Space: strategies, and checks of what is installed."""
