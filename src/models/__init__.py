"""A model as files and in memory: checked, loaded, merged and placed on devices."""
