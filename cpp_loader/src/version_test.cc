#include "version.h"

#include <cstdio>
#include <string>

// A framework-free check: returns how many expectations failed, each of which it prints.
int main() {
  int failed = 0;
  const auto expect = [&failed](bool holds, const char* what) {
    if (!holds) {
      std::fprintf(stderr, "failed: %s (version is \"%s\")\n", what, reprise::Version().c_str());
      ++failed;
    }
  };
  expect(reprise::Version().rfind(reprise::InterfaceVersion() + " ", 0) == 0, "starts with the interface version");
  expect(reprise::Version().find(" C++20 ") != std::string::npos, "is compiled as C++20");
  expect(reprise::Version().find('\n') == std::string::npos, "is one line");
  return failed;
}
