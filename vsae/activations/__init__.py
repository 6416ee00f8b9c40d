"""Activations on disk and in flight: write a store, open it, read it shuffled or in order, or stream from a model."""

from vsae.activations import fingerprint
from vsae.activations.joined import JoinedSource
from vsae.activations.loader import StoreSource
from vsae.activations.moments import Moments
from vsae.activations.pairs import Pair, PairSource
from vsae.activations.select import Select
from vsae.activations.source import Batch, BatchIterator, Source, whole_samples
from vsae.activations.store import ActivationStore, SiteReader
from vsae.activations.stream import StreamSource
from vsae.activations.writer import write_store

__all__ = [
    "ActivationStore",
    "Batch",
    "BatchIterator",
    "JoinedSource",
    "Moments",
    "Pair",
    "PairSource",
    "Select",
    "SiteReader",
    "Source",
    "StoreSource",
    "StreamSource",
    "fingerprint",
    "whole_samples",
    "write_store",
]
