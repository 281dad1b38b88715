// The one file that knows pybind11. Thin: every function here forwards to one function of the engine.
// The signatures are repeated for type checkers in _core.pyi.
#include <pybind11/pybind11.h>

#include "version.h"

PYBIND11_MODULE(_core, module) {
  module.doc() = "The C++ engine of Reprise.";
  module.def("version", &reprise::Version, "One line: interface version, C++ standard and compiler of this build.");
}
