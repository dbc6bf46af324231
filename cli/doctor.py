"""`siamdetr doctor DATA`: every problem of a data set, where it is and what will be done with it."""

from __future__ import annotations
