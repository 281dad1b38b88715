#include "version.h"

#include <gtest/gtest.h>

#include <string>

namespace reprise {
namespace {

TEST(VersionTest, StartsWithTheInterfaceVersion) { EXPECT_EQ(Version().rfind(InterfaceVersion() + " ", 0), 0u); }

TEST(VersionTest, IsCompiledAsCxx20) { EXPECT_NE(Version().find(" C++20 "), std::string::npos) << Version(); }

TEST(VersionTest, IsOneLine) { EXPECT_EQ(Version().find('\n'), std::string::npos) << Version(); }

}  // namespace
}  // namespace reprise
