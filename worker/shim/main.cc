// switchyard-shim ATTEMPT_FOLDER: started by switchyard-agent, see shim.h.
#include <cstdio>

#include "worker/shim/shim.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: switchyard-shim ATTEMPT_FOLDER (switchyard-agent starts it)\n");
    return 2;
  }
  return switchyard::RunShim(argv[1]);
}
