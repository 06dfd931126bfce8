"""Controllers as files: saving, loading, the Hub and the model card."""
