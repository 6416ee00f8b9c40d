"""Training of the shipped models: `python -m modalities.microworld.train NAME|all`."""
