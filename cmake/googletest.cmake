# Finds GoogleTest and defines GTest::gtest_main: an installed one (the system's, a site's, Spack's, conda's), Debian's
# sources in /usr/src/googletest, or with REPRISE_GET_GOOGLETEST (`make test` sets it) those that
# scripts/setup_googletest.py unpacks. An error where there is none: tests are never left out in silence.
#
# Under a sanitizer the sources come first: code that it has not seen hides races.
option(REPRISE_GET_GOOGLETEST "Have scripts/setup_googletest.py get GoogleTest where there is none" OFF)
set(REPRISE_GOOGLETEST_SOURCE "/usr/src/googletest" CACHE PATH "The sources of GoogleTest")

set(googletest_install
  "install libgtest-dev (Debian, Ubuntu), load your site's module (spack load googletest), or set BUILD_TESTING=OFF")
set(googletest_sources "${REPRISE_GOOGLETEST_SOURCE}")
set(googletest_entry googletest/src/gtest-all.cc)

if(NOT REPRISE_SANITIZE OR NOT EXISTS "${googletest_sources}/${googletest_entry}")
  find_package(GTest QUIET)
endif()
if(NOT TARGET GTest::gtest_main AND NOT EXISTS "${googletest_sources}/${googletest_entry}" AND REPRISE_GET_GOOGLETEST)
  find_program(Python_EXECUTABLE NAMES python3 REQUIRED)
  execute_process(
    COMMAND "${Python_EXECUTABLE}" "${CMAKE_CURRENT_SOURCE_DIR}/scripts/setup_googletest.py"
    RESULT_VARIABLE googletest_failed
    OUTPUT_VARIABLE googletest_sources
    ERROR_VARIABLE googletest_said
    OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_STRIP_TRAILING_WHITESPACE)
  if(googletest_failed)
    message(FATAL_ERROR " ${googletest_said}")
  endif()
endif()

if(NOT TARGET GTest::gtest_main)
  if(NOT EXISTS "${googletest_sources}/${googletest_entry}")
    message(FATAL_ERROR " no GoogleTest: ${googletest_install}")
  endif()
  # Not add_subdirectory: its own build asks for warnings of its own and brings the mocks and an installation along.
  set(googletest_root "${googletest_sources}/googletest")
  add_library(reprise_googletest STATIC EXCLUDE_FROM_ALL
    "${googletest_root}/src/gtest-all.cc" "${googletest_root}/src/gtest_main.cc")
  target_include_directories(reprise_googletest SYSTEM PUBLIC "${googletest_root}/include" PRIVATE "${googletest_root}")
  target_compile_options(reprise_googletest PRIVATE -O0)  # a quarter of the time to compile, and none of it to run
  target_link_libraries(reprise_googletest PUBLIC Threads::Threads)
  add_library(GTest::gtest_main ALIAS reprise_googletest)
endif()
