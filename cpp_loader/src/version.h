// What this build of the engine is, for log files and for the summary of a run.
//
// Not the version of the Python package: the two are installed together, but a stale build must be able to say so.
// Called by bindings.cc only. Both functions are pure and may be called from any thread.
#pragma once

#include <string>

namespace reprise {

// Version of the engine's interface to Python, "major.minor". Raised with every change that Python can see.
std::string InterfaceVersion();

// One line: interface version, C++ standard and compiler, for example "0.1 C++20 gcc 12.2.0".
std::string Version();

}  // namespace reprise
