"""Files of other libraries: read as our SAEs, written from them. One module a format; `read` recognises which."""

from vsae.interop.foreign import Imported
from vsae.interop.formats import READERS, WRITERS, read, recognised, write

__all__ = ["READERS", "WRITERS", "Imported", "read", "recognised", "write"]
