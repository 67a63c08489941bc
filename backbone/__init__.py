"""The frozen shared transformer and where its weights come from."""
