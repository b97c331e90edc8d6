"""From images anywhere to batches on a device: sources, the .beton file, the loader."""

from __future__ import annotations

import importlib

import numba.typed
import torch


def _import_ffcv() -> None:
    """Imports ffcv 1.0.2 without two side effects of doing so.

    It sets the number of torch threads of the whole process to one, and it compiles a typed dictionary of two
    entries, which is only ever read from Python, for about five seconds. A plain dictionary does the same.
    """
    threads, typed_dictionary = torch.get_num_threads(), numba.typed.Dict
    numba.typed.Dict = dict
    try:
        importlib.import_module("ffcv")
    finally:
        numba.typed.Dict = typed_dictionary
        torch.set_num_threads(threads)


_import_ffcv()
