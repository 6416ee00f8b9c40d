"""One loop that turns shuffled activations into a run directory. `vsae.train` is `vsae.training.loop.train`."""
