"""onnxruntime, loaded so that it reports to nobody.

Since 1.31 its Linux wheels send events about processes, models and sessions to their maker, and
keep an identifier and a database in the user's cache. The full opt-out is read when the library
loads (https://github.com/microsoft/onnxruntime/pull/27379); calls made later come too late.
"""

import os
from functools import cache
from types import ModuleType

_OPT_OUT = "ORT_DISABLE_TELEMETRY"


@cache
def import_onnxruntime() -> ModuleType:
    """The one way to import onnxruntime here."""
    os.environ[_OPT_OUT] = "1"
    import onnxruntime

    return onnxruntime
