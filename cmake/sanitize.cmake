# REPRISE_SANITIZE: compiler flags for everything that is built, GoogleTest included where it is built from its sources,
# and how the resulting programs are run. Included by the top level only; sets sanitizer_test_flags, compiler flags for
# the tests alone.
include(CheckCXXSourceCompiles)

set(flags_address -fsanitize=address,undefined -fno-sanitize-recover=all)
set(flags_thread -fsanitize=thread)
# Up to GCC 13 and LLVM 16 the runtime may take a thread's own memory for a header of glibc's before 2.25, and then dies
# while it looks for leaks.
set(options_address UBSAN_OPTIONS=print_stacktrace=1 ASAN_OPTIONS=intercept_tls_get_addr=0)
set(options_thread TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1)
set(test_flags_address -O0)  # GoogleTest's macros: 23 s instead of 58 s to compile, 2 s more to run
set(test_flags_thread)
if(NOT DEFINED flags_${REPRISE_SANITIZE})
  message(FATAL_ERROR " REPRISE_SANITIZE=${REPRISE_SANITIZE}: expected address or thread, or nothing")
endif()
set(sanitizer_flags ${flags_${REPRISE_SANITIZE}})
set(sanitizer_test_flags ${test_flags_${REPRISE_SANITIZE}})

list(JOIN sanitizer_flags " " CMAKE_REQUIRED_FLAGS)
check_cxx_source_compiles("int main() { return 0; }" REPRISE_SANITIZER_${REPRISE_SANITIZE}_WORKS)
unset(CMAKE_REQUIRED_FLAGS)
if(NOT REPRISE_SANITIZER_${REPRISE_SANITIZE}_WORKS)
  message(FATAL_ERROR
    " ${CMAKE_CXX_COMPILER} cannot link with ${sanitizer_flags}: install the compiler's sanitizers (libasan, libubsan, libtsan)")
endif()

# Assertions stay on: Debug does not define NDEBUG, and the standard library checks its indices.
set(CMAKE_BUILD_TYPE Debug)
add_compile_options(${sanitizer_flags} -O1 -g -fno-omit-frame-pointer)
add_link_options(${sanitizer_flags})
add_compile_definitions(_GLIBCXX_ASSERTIONS)

set(CMAKE_CROSSCOMPILING_EMULATOR env ${options_${REPRISE_SANITIZE}})

# Kernels that randomise more address bits than the sanitizers' maps allow for ("unexpected memory mapping") need it
# switched off for the test programs. Some containers forbid the switch; then they run as they are.
find_program(REPRISE_SETARCH setarch)
if(REPRISE_SETARCH)
  execute_process(
    COMMAND "${REPRISE_SETARCH}" ${CMAKE_HOST_SYSTEM_PROCESSOR} -R true
    RESULT_VARIABLE refused OUTPUT_QUIET ERROR_QUIET)
  if(refused EQUAL 0)
    list(APPEND CMAKE_CROSSCOMPILING_EMULATOR "${REPRISE_SETARCH}" ${CMAKE_HOST_SYSTEM_PROCESSOR} -R)
  endif()
endif()
