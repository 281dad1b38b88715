# Horovod 0.28.1 asks for C++14, torch >= 2.1 needs C++17 (horovod issues 3996 and 4014).
set(CMAKE_CXX14_STANDARD_COMPILE_OPTION "-std=c++17")
set(CMAKE_CXX14_EXTENSION_COMPILE_OPTION "-std=gnu++17")
# horovod/torch/*.so finds the libmpi of the environment that it is installed in, not only of the one it was built in.
set(CMAKE_BUILD_RPATH "$ORIGIN/../../../..")
