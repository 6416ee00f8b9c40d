"""A static page that shows what each latent responds to: opens from disk, asks no server and no network, safe with hostile captions.

vsae.report.explore(run.sae, store.site(), image, "page", title="topk on DINOv2, block 11", facts=[Fact("NMSE", "0.412", "1 = predict the mean")])
"""

from vsae.report.page import Fact, explore

__all__ = ["Fact", "explore"]
