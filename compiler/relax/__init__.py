"""What every target that lowers with TVM starts from. Importing it does not import tvm."""

from compiler.relax.importer import AttributeValue, FusedConverter, relax_from_program
from compiler.relax.lean import import_tvm, import_tvm_ffi

__all__ = ["AttributeValue", "FusedConverter", "import_tvm", "import_tvm_ffi", "relax_from_program"]
