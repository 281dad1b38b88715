# A CMake "toolchain" with no toolchain in it: the one way to reach into Horovod's build without patching Horovod.
# scripts/setup_horovod.py names this file in CMAKE_TOOLCHAIN_FILE; nothing else uses it.
set(CMAKE_PROJECT_horovod_INCLUDE "${CMAKE_CURRENT_LIST_DIR}/horovod_standard.cmake")
