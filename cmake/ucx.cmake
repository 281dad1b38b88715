# Finds UCX's headers and defines reprise_ucx: an interface library with their folder and REPRISE_HAVE_UCX, or with nothing
# where there are none; then the engine is built without that transport. The library itself is opened at run time and never
# linked: a build by one UCX works with another (1.13 or later). Looked for in this order: REPRISE_UCX_INCLUDE, a system's,
# site's or Spack's installation, and the `libucx` Python package beside Python_EXECUTABLE. Included by the top level only.
set(REPRISE_UCX_INCLUDE "" CACHE PATH "Folder of UCX's headers, in which ucp/api/ucp.h is; empty: look for it")

if(NOT REPRISE_UCX_INCLUDE)
  find_package(PkgConfig QUIET)
  if(PKG_CONFIG_FOUND)
    pkg_check_modules(UCX QUIET ucx)
  endif()
  find_package(Python 3.10 QUIET COMPONENTS Interpreter)
  if(Python_EXECUTABLE)
    # Not imported: that would load its libraries.
    execute_process(
      COMMAND "${Python_EXECUTABLE}" -c "from importlib.util import find_spec as f; print(f('libucx').submodule_search_locations[0])"
      OUTPUT_VARIABLE ucx_package
      OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  endif()
  find_path(UCX_INCLUDE ucp/api/ucp.h HINTS ${UCX_INCLUDE_DIRS} ENV UCX_DIR ENV UCX_ROOT PATH_SUFFIXES include)
  if(NOT UCX_INCLUDE AND ucx_package)
    find_path(UCX_INCLUDE ucp/api/ucp.h PATHS "${ucx_package}/include" NO_DEFAULT_PATH)
  endif()
  mark_as_advanced(UCX_INCLUDE)
  set(ucx_include "${UCX_INCLUDE}")
else()
  set(ucx_include "${REPRISE_UCX_INCLUDE}")
  if(NOT EXISTS "${ucx_include}/ucp/api/ucp.h")
    message(FATAL_ERROR " REPRISE_UCX_INCLUDE=${ucx_include}: there is no ucp/api/ucp.h")
  endif()
endif()

if(ucx_include AND EXISTS "${ucx_include}/ucp/api/ucp_version.h")
  file(STRINGS "${ucx_include}/ucp/api/ucp_version.h" ucx_lines REGEX "define +UCP_API_(MAJOR|MINOR)")
  string(REGEX REPLACE ".*UCP_API_MAJOR +([0-9]+).*UCP_API_MINOR +([0-9]+).*" "\\1.\\2" ucx_version "${ucx_lines}")
  if(ucx_version VERSION_LESS 1.13)
    message(STATUS "UCX ${ucx_version} in ${ucx_include} is too old: 1.13 or later is needed")
    unset(ucx_include)
  endif()
endif()

add_library(reprise_ucx INTERFACE)
set(ucx_library libucp.so.0)  # for the tests: what to open where the loader knows none
if(ucx_include)
  if(EXISTS "${ucx_include}/../lib/libucp.so.0")
    get_filename_component(ucx_library "${ucx_include}/../lib/libucp.so.0" ABSOLUTE)
  endif()
  message(STATUS "UCX's headers: ${ucx_include} (${ucx_version})")
  target_include_directories(reprise_ucx SYSTEM INTERFACE "${ucx_include}")
  target_compile_definitions(reprise_ucx INTERFACE REPRISE_HAVE_UCX)
else()
  message(STATUS "UCX's headers: none; ranks on several nodes will exchange samples by collectives")
endif()
