#include "version.h"

namespace reprise {
namespace {

std::string Compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown compiler";
#endif
}

}  // namespace

std::string InterfaceVersion() { return "0.1"; }

std::string Version() {
  const long standard = __cplusplus / 100 % 100;  // 202002L is C++20
  return InterfaceVersion() + " C++" + std::to_string(standard) + " " + Compiler();
}

}  // namespace reprise
