"""The settings of a sampler and of a whole run: files, overrides, schema."""
